"""`metabilevel data`."""

from dataclasses import asdict
from typing import Any

import click
from rich.table import Table

from .. import data as store
from ..data import DataError, DataSet, FileStatus, Status
from ..errors import PluginError
from ..registry import DATA, Entry, entries, load
from .group import Group
from .interrupts import Interrupts
from .output import json_option, note, show

_SERVES = "packed part serves"


@click.group("data", cls=Group)
def command() -> None:
    """Data sets: what is there, getting it, checking it.

    They lie in the folder that METABILEVEL_DATA names, or else in the user's cache. Nothing there is ever changed.
    """


@command.command("list")
@json_option
def listed(as_json: bool) -> None:
    """All data sets, and which of their files are there."""
    found: list[tuple[Entry, DataSet | PluginError]] = []
    for entry in entries(DATA):
        try:
            found.append((entry, _loaded(entry.qualified)))
        except PluginError as error:
            found.append((entry, error))
    table = Table("name", "ready", "licence", "folder")
    documents = []
    for entry, dataset in found:
        about = {"name": entry.name, "distribution": entry.distribution, "version": entry.version}
        if isinstance(dataset, PluginError):
            note(f"Warning: {dataset}")
            documents.append({**about, "ready": False, "problem": str(dataset)})
            table.add_row(entry.name, "no", "", "")
            continue
        status = store.status(dataset)
        documents.append({**about, "licence": dataset.licence, "citation": dataset.citation, **_document(status)})
        ready = "yes" if status.ready else _SERVES if status.packed_serves else "no"
        table.add_row(entry.name, ready, dataset.licence, str(dataset.folder))
    show(as_json, {"data": documents}, table)


@command.command()
@click.argument("name")
@json_option
def fetch(name: str, as_json: bool) -> None:
    """Download the files of a data set that are missing, and check them."""
    with Interrupts():
        status = store.fetch(_loaded(name))
    show(as_json, _document(status), _table([status]))


@command.command()
@click.argument("name", required=False)
@json_option
def verify(name: str | None, as_json: bool) -> None:
    """Read every file that is there, and compare it with its checksum.

    Without NAME, all data sets; one that is not there is passed over.
    """
    with Interrupts():
        datasets = [_loaded(entry.qualified) for entry in entries(DATA)] if name is None else [_loaded(name)]
        found = [store.verify(dataset) for dataset in datasets]
    if problems := [file.problem for status in found for file in _files(status) if file.problem]:
        raise DataError(" ".join(problems))
    if name is not None and not (found[0].ready or found[0].packed_serves):
        raise DataError(f"{found[0].name} is not there. It is downloaded by: metabilevel data fetch {found[0].name}")
    show(as_json, {"data": [_document(status) for status in found]}, _table(found))


def _loaded(name: str) -> DataSet:
    dataset = load(DATA, name)
    if not isinstance(dataset, DataSet):
        raise PluginError(f"The data set {name!r} is a {type(dataset).__name__}, and no DataSet.")
    return dataset


def _files(status: Status) -> list[FileStatus]:
    """All that there are or can be downloaded: a packed part that is not there can not."""
    packed = [file for file in status.packed.files if file.state != "missing"] if status.packed else []
    return [*status.files, *([status.cache] if status.cache else []), *packed]


def _document(status: Status) -> dict[str, Any]:
    files = [{**asdict(file), "path": str(file.path)} for file in _files(status)]
    return {"name": status.name, "ready": status.ready, "packed_serves": status.packed_serves, "files": files}


def _table(found: list[Status]) -> Table:
    table = Table("data set", "state", "bytes", "file")
    for status in found:
        served = status.ready or status.packed_serves
        for file in _files(status):
            unneeded = served and file.state == "missing" and file in status.files
            state = f"missing: {_SERVES}" if unneeded else file.state
            table.add_row(status.name, state, "" if file.size is None else f"{file.size:,}", str(file.path))
    return table
