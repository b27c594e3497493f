"""The one JSON document that `--json` promises on standard output, whatever a plugin or a user's file prints."""

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
        """What others print meanwhile goes to standard error."""
        self._stream, self.printed = sys.stdout, False
        with redirect_stdout(sys.stderr):
            yield

    def print(self, text: str) -> None:
        """Prints the document."""
        click.echo(text, file=self._stream)
        self.printed = True


DOCUMENT = Document()
