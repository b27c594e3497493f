"""The one JSON document that `--json` promises on standard output, whatever a plugin or a user's file prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import click


class Document:
    """Standard output, kept for one document."""

    def __init__(self):
        self.printed = False
        self._stream: TextIO | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What others print meanwhile goes to standard error. In the program itself so does, until the process ends,
        whatever is written to the file descriptor: by other programs, compiled code, functions that run at exit."""
        taken = _taken()
        self._stream, self.printed = taken or sys.stdout, False
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self._stream = taken

    def print(self, text: str) -> None:
        """Prints the document. Where that fails, as on a full disk, no other one is to be tried."""
        self.printed = True
        click.echo(text, file=self._stream)


def _taken() -> TextIO | None:
    """Standard output, which only the result writes to from now on; None where `sys.stdout` is not the process's."""
    if None in (sys.stdout, sys.stderr) or sys.stdout is not sys.__stdout__:
        return None
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)
    return own


DOCUMENT = Document()
