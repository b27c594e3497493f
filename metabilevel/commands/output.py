"""What a command says: one JSON document, or tables; and notes on standard error."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType

from ..storage.files import dumps
from .document import DOCUMENT

F = TypeVar("F", bound=Callable[..., Any])

WIDTH = 140  # of a table that goes to a file or a pipe


def json_option(command: F) -> F:
    """Adds `--json` to a command."""
    text = "Print one JSON document, and nothing else, on standard output."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def show(as_json: bool, document: object, *parts: RenderableType) -> None:
    """Prints `document` where JSON was asked for, or else `parts`, on standard output. A text is printed as it is."""
    if as_json:
        DOCUMENT.print(dumps(document))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for part in parts:
        if isinstance(part, str):
            click.echo(part)
        else:
            console.print(part)


def note(message: str) -> None:
    """One line on standard error."""
    click.echo(" ".join(message.split()), err=True)
