"""`metabilevel list`."""

import click
from rich.table import Table

from ..registry import METHODS, REPRO, TASKS, entries
from .output import json_option, show

GROUPS = {"methods": METHODS, "tasks": TASKS, "repro": REPRO}
COLUMNS = ("name", "distribution", "version", "module")


@click.command("list")
@click.argument("kind", type=click.Choice(list(GROUPS)), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """What is installed, and by which distribution. Nothing is imported."""
    found = {
        name: [{column: getattr(entry, column) for column in COLUMNS} for entry in entries(group)]
        for name, group in GROUPS.items()
        if kind in (name, None)
    }
    show(as_json, found, *[_table(name, rows) for name, rows in found.items()])


def _table(title: str, rows: list[dict[str, str]]) -> Table:
    table = Table(*COLUMNS, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row.values())
    return table
