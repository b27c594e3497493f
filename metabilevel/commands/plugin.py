"""`metabilevel plugin`."""

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from .. import __version__, stamps
from ..errors import InputError, PluginError
from ..progress import bar
from ..registry import METHODS, Entry, load_method
from ..scaffold import Package
from .group import Group
from .interrupts import Interrupts
from .output import json_option, show
from .types import Folder, PluginName


@click.group("plugin", cls=Group)
def command() -> None:
    """Methods of your own: a package to begin with, and whether a method keeps what the outer loop relies on."""


@command.command()
@click.argument("name")
@click.option("--out", type=Folder(), metavar="DIR", help="Where the package goes, new or empty. [default: NAME]")
@json_option
def new(name: str, out: Path | None, as_json: bool) -> None:
    """Write a package with a method called NAME, to be made another.

    It holds pyproject.toml, which registers the method, the method in a module, its test with the conformance kit, and
    a README.md.
    """
    package = Package.called(name)
    folder = out or Path(name)
    written = [path.name for path in package.write(folder)]
    document = {"name": package.name, "module": package.module, "folder": str(folder), "files": written}
    place = shlex.quote(str(folder))
    then = [f"pip install -e {place}", f"pytest {place}", f"metabilevel plugin check {package.name}"]
    show(as_json, document, f"Written to {folder}: {', '.join(written)}", "Next:", *[f"    {line}" for line in then])


@command.command()
@click.argument("entry", metavar="NAME", type=PluginName(METHODS))
@json_option
def check(entry: Entry, as_json: bool) -> None:
    """Run the conformance kit on an installed method, and stamp the method if it fails no check.

    `metabilevel list` shows the stamp until the version or the source of the method changes. Stamps lie in the folder
    that METABILEVEL_STAMPS names, or else in the user's data folder. Exit status 0 if no check fails, 1 if one does.
    """
    stamps.require_folder()
    source = stamps.digest(entry)
    factory = load_method(entry.qualified)
    from ..conformance import CHECKS, run

    with Interrupts(), bar(False if as_json else None) as progress:
        task = progress.add_task(entry.name, total=len(CHECKS))
        try:
            found = run(factory, on_outcome=lambda outcome: progress.advance(task))
        except SystemExit as error:
            raise PluginError(f"The method {entry.name!r} of {entry} calls sys.exit({error.code!r}).") from error
    counts = Counter(outcome.status for outcome in found)
    if not counts["passed"] and not counts["failed"]:
        raise InputError(f"No check applies to {entry.name}: {found[0].message}")
    conforms = not counts["failed"]
    stamp = stamps.keep(entry, counts["passed"], source) if conforms else stamps.discard(entry)
    document = {
        **{field: getattr(entry, field) for field in ("name", "distribution", "version", "module")},
        "metabilevel": __version__,
        "conforms": conforms,
        "checks": [asdict(outcome) for outcome in found],
        "stamp": stamp and str(stamp),
    }
    table = Table("check", "finding", title=f"{entry.name} of {entry}", title_justify="left")
    for outcome in found:
        table.add_row(outcome.name, ": ".join(filter(None, [outcome.status, outcome.message])))
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    kept = f"stamp in {stamp}" if conforms else "no stamp"
    show(as_json, document, table, f"{'Conforms' if conforms else 'Does not conform'}: {counted}; {kept}")
    if not conforms:
        raise click.exceptions.Exit(1)
