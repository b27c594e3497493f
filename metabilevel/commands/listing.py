"""`metabilevel list`."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from .. import stamps
from ..errors import InputError
from ..registry import METHODS, REPRO, TASKS, Entry, entries
from .output import json_option, note, show

GROUPS = {"methods": METHODS, "tasks": TASKS, "repro": REPRO}
COLUMNS = ("name", "distribution", "version", "module")


@click.command("list")
@click.argument("kind", type=click.Choice(list(GROUPS)), required=False)
@json_option
def command(kind: str | None, as_json: bool) -> None:
    """What is installed, and by which distribution. Nothing is imported.

    Of a method, `conformance` is the stamp that `metabilevel plugin check` gave it.
    """
    found = {name: [_row(name, entry) for entry in entries(GROUPS[name])] for name in GROUPS if kind in (name, None)}
    show(as_json, found, *[_table(name, rows) for name, rows in found.items()])


def _row(kind: str, entry: Entry) -> dict[str, Any]:
    row = {column: getattr(entry, column) for column in COLUMNS}
    return {**row, "conformance": _conformance(entry)} if kind == "methods" else row


def _conformance(entry: Entry) -> dict[str, Any] | None:
    """The stamp, and whether it still `holds`."""
    try:
        stamp = stamps.read(entry)
    except InputError as error:
        note(f"Warning: {error} Renew it: metabilevel plugin check {entry.qualified}")
        return None
    return stamp and {**asdict(stamp), "holds": stamp.holds(entry)}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*(rows[0] if rows else COLUMNS), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else _words(value) for value in row.values()))
    return table


def _words(stamp: dict[str, Any] | None) -> str:
    if stamp is None:
        return "-"
    if not stamp["holds"]:
        return f"changed since {stamp['date'].partition('T')[0]}"
    return f"conforms {stamp['metabilevel']}, {stamp['checks']} checks"
