"""`metabilevel list`."""

import click
from rich.table import Table

from ..registry import METHODS, REPRO, TASKS, Entry, entries
from .output import json_option, show

GROUPS = {"methods": METHODS, "tasks": TASKS, "repro": REPRO}
COLUMNS = ("name", "distribution", "version", "module")


@click.command("list")
@click.argument("kind", type=click.Choice(list(GROUPS)), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """What is installed, and by which distribution. Nothing is imported."""
    found = {name: entries(group) for name, group in GROUPS.items() if kind in (name, None)}
    document = {name: [_document(entry) for entry in held] for name, held in found.items()}
    show(as_json, document, *[_table(name, held) for name, held in found.items()])


def _document(entry: Entry) -> dict[str, str]:
    fields = asdict(entry)
    return {
        "name": fields["name"],
        "distribution": entry.distribution,
        "version": entry.version,
        "module": entry.module,
    }


def _table(title: str, held: list[Entry]) -> Table:
    table = Table(*COLUMNS, title=title, title_justify="left")
    for entry in held:
        table.add_row(*_document(entry).values())
    return table
