"""`metabilevel bench`."""

import os
from pathlib import Path

import click
from rich.table import Table

from ..errors import PluginError
from ..registry import BENCHMARKS, Entry, entries, load
from ..storage.files import write_json
from .interrupts import Interrupted, Interrupts
from .output import json_option, note, show
from .types import Count, Folder, PluginName


@click.command("bench")
@click.argument("workloads", metavar="[NAME]...", nargs=-1, type=PluginName(BENCHMARKS))
@click.option("--list", "listed", is_flag=True, help="Say what can be run, and run nothing.")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: seconds, and speeds that mean nothing.")
@click.option("--rounds", type=Count(1), help="Turns of every candidate. [default: the workload's own]")
@click.option(
    "--out", type=Folder(), metavar="DIR", default=Path("runs/bench"), show_default=True, help="For the results."
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Whether other frameworks take part.")
@click.option("--peers-python", type=click.Path(path_type=Path), metavar="PATH", help="The Python that has them.")
@click.option("--install-peers", is_flag=True, help="Make the environment of the other frameworks; run nothing.")
@click.option("--report", type=Folder(), metavar="DIR", help="Write speed.md and speed.png from --out; run nothing.")
@json_option
def command(
    workloads: tuple[Entry, ...],
    listed: bool,
    quick: bool,
    rounds: int | None,
    out: Path,
    peers: bool,
    peers_python: Path | None,
    install_peers: bool,
    report: Path | None,
    as_json: bool,
) -> None:
    """Time the workloads called NAME, all if none is named: ours beside others' ways to compute the same.

    The result of each is written as soon as it is there; an earlier one of the same name is replaced.
    """
    if listed:
        _list(as_json)
        return
    if install_peers:
        _install(as_json)
        return
    if report is not None:
        _report(out, report, as_json)
        return
    if not quick:  # so that the seconds of compilation are those of a first run; jax is not imported yet
        os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    from ..bench.peers import find_python

    python = find_python(peers_python) if peers else None
    chosen = workloads or entries(BENCHMARKS)
    loaded = [_loaded(entry) for entry in chosen]
    _run(loaded, as_json, out, rounds=rounds, quick=quick, python=python, peers=peers)


def _list(as_json: bool) -> None:
    found = entries(BENCHMARKS)
    columns = ("name", "distribution", "version", "module")
    rows = [{column: getattr(entry, column) for column in columns} for entry in found]
    table = Table(*columns)
    for row in rows:
        table.add_row(*row.values())
    show(as_json, {"benchmarks": rows}, table)


def _install(as_json: bool) -> None:
    from ..bench import Race
    from ..bench.peers import environment, install

    workloads = [_loaded(entry) for entry in entries(BENCHMARKS)]
    with Interrupts():
        rows = install([each.peers for each in workloads if isinstance(each, Race) and each.peers], note)
    table = Table("package", "version")
    for row in rows:
        table.add_row(row["package"], row.get("version") or f"not there: {row['problem']}")
    show(as_json, {"environment": str(environment()), "packages": rows}, table, f"In {environment()}")


def _report(out: Path, folder: Path, as_json: bool) -> None:
    from ..bench.report import load as documents
    from ..bench.report import write

    found = documents(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = [str(path) for path in write(found, folder)]
    show(as_json, {"written": written}, *[f"Written: {path}" for path in written])


def _run(loaded: list, as_json: bool, out: Path, **options) -> None:
    from ..bench.measure import measure
    from ..bench.report import table

    out.mkdir(parents=True, exist_ok=True)
    documents = []
    with Interrupts():
        try:
            for workload in loaded:
                document = measure(workload, **options, progress=False if as_json else None)
                write_json(out / f"{workload.name}.json", document)
                documents.append(document)
                if not as_json:
                    show(False, document, table(document))
        except Interrupted as stop:
            kept = f"{len(documents)} of {len(loaded)} workloads are done, and lie in {out}."
            raise Interrupted(stop.signum, f"{stop} {kept}") from stop
    show(as_json, {"out": str(out), "results": documents}, f"Written to {out}")


def _loaded(entry: Entry):
    from ..bench import Race, Study

    found = load(BENCHMARKS, entry.qualified)
    if not isinstance(found, Race | Study):
        raise PluginError(f"The benchmark {entry.name!r} of {entry} is a {type(found).__name__}, no Race or Study.")
    return found
