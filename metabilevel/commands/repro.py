"""`metabilevel repro`."""

from importlib.util import find_spec
from pathlib import Path

import click
from rich.table import Table

from ..errors import PluginError, RunError
from ..findings import RESULT, Report, cited
from ..registry import REPRO, entries, find, load
from ..reproduction import Reproduction
from ..storage.files import read_json
from .group import Group
from .interrupts import Interrupted, Interrupts
from .output import json_option, note, show
from .types import Count, Folder


@click.group("repro", cls=Group)
def command() -> None:
    """Reproductions of papers: what was published, beside what comes out here."""


@command.command("list")
@json_option
def listed(as_json: bool) -> None:
    """All reproductions, with their papers."""
    table = Table("name", "reproduces", "paper", "scales")
    documents = []
    for entry in entries(REPRO):
        about = {
            "name": entry.name,
            "distribution": entry.distribution,
            "version": entry.version,
            "module": entry.module,
        }
        try:
            found = _loaded(entry.qualified)
        except PluginError as error:
            note(f"Warning: {error}")
            documents.append({**about, "problem": str(error)})
            table.add_row(entry.name, "(does not import)")
            continue
        documents.append({**about, **found.about(), "scales": list(found.scales)})
        table.add_row(entry.name, found.reproduces, cited(found.about()), ", ".join(found.scales))
    show(as_json, {"repro": documents}, table)


@command.command("show")
@click.argument("name")
@json_option
def shown(name: str, as_json: bool) -> None:
    """The published numbers with their places in the paper, its claims, and the protocol of every scale.

    What the small scale gave follows, where its result lies beside the reproduction's source, as in a clone.
    """
    found = _loaded(name)
    about = f"{found.title} ({cited(found.about())})."
    numbers = Table("setting", "published", "where", "source", title=f"{found.reproduces}: {found.metric}")
    for number in found.published:
        numbers.add_row(number.setting, str(number), number.place, number.source)
    claims = Table("claim", "where", title="Claims of the paper")
    for claim in found.claims:
        claims.add_row(claim.sentence, claim.place)
    scales = Table("scale", "protocol", "departures from the paper", title="Scales", show_lines=True)
    for scale, protocol in found.scales.items():
        scales.add_row(scale, protocol.protocol, "\n".join(protocol.departures))
    published = [f"The paper's ± is {found.interval}.", numbers] if found.published else []
    folder = _committed(name)
    if folder is None:
        show(as_json, found.as_json(), about, *published, claims, scales)
        return
    result = Report.load(folder)
    document = {**found.as_json(), "result": {"folder": str(folder), **result.as_json()}}
    show(as_json, document, about, *published, claims, scales, result.table(), f"This result lies in {folder}")


@command.command()
@click.argument("name")
@click.option("--scale", default="small", show_default=True, help="smoke, small or full.")
@click.option("--seed", type=Count(0, 2**32 - 1), default=0, show_default=True, help="Of all randomness.")
@click.option("--out", type=Folder(), metavar="DIR", help="For the result. [default: runs/repro/NAME-SCALE]")
@json_option
def run(name: str, scale: str, seed: int, out: Path | None, as_json: bool) -> None:
    """Run the experiment, print its numbers beside the paper's, and write result.json and curves.png.

    An earlier result of the same reproduction and scale is replaced.
    """
    found = _loaded(name)
    found.promised(scale)
    folder = out or Path("runs", "repro", f"{found.name}-{scale}")
    _require_place(folder, found.name, scale)
    with Interrupts():
        try:
            report = found.run(scale, seed=seed, progress=False if as_json else None)
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop} Nothing is kept of a reproduction that is not done.") from stop
        report.save(folder)
    show(as_json, report.as_json(), report.table(), f"Written to {folder}")


def _committed(name: str) -> Path | None:
    """The folder results/NAME/small beside the reproduction's package, if there is a result in it."""
    entry = find(REPRO, name)
    spec = find_spec(entry.module)
    folder = Path(spec.origin).parents[1] / "results" / entry.name / "small" if spec and spec.origin else None
    return folder if folder and (folder / RESULT).is_file() else None


def _loaded(name: str) -> Reproduction:
    found = load(REPRO, name)
    if not isinstance(found, Reproduction):
        raise PluginError(f"The reproduction {name!r} of {find(REPRO, name)} is a {type(found).__name__}.")
    return found


def _require_place(folder: Path, name: str, scale: str) -> None:
    """Refuses a folder that holds anything but an earlier result of the same reproduction and scale."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out: {folder} is no directory.")
    if (folder / RESULT).exists():
        match read_json(folder / RESULT):
            case {"about": {"name": held}, "scale": of} if (held, of) == (name, scale):
                return
        raise RunError(f"--out: {folder} holds a result of another reproduction: give another directory.")
    if folder.exists() and (items := sorted(item.name for item in folder.iterdir())):
        raise RunError(
            f"--out: {folder} holds {items[0]!r}, which is no result's: give an empty directory or a new one."
        )
