"""`metabilevel verify`."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from ..errors import ComputationError, RunError
from ..storage.config import Environment
from .devices import DEVICES, MESH, meshed
from .experiment import Experiment
from .interrupts import Interrupts
from .output import json_option, show
from .types import Count, Folder, Positive


@click.command("verify")
@click.argument("run", type=Folder())
@click.option("--reports", type=Count(1), default=1, show_default=True, help="How many of the first are repeated.")
@click.option(
    "--tolerance",
    type=Positive(),
    default=1e-3,
    show_default=True,
    help="The largest relative difference of a number, where not all bits are the same.",
)
@click.option("--devices", **DEVICES)
@click.option("--mesh", **MESH)
@json_option
def command(
    run: Path, reports: int, tolerance: float, devices: int | None, mesh: dict[str, int] | None, as_json: bool
) -> None:
    """Repeat the first steps of a run, and compare what they report.

    RUN is a run directory, which is not changed. On the same machine with the same versions every bit is the same; on
    another one numbers differ by rounding, which grows with the steps. Status 1 where they differ by more than that.
    """
    with Interrupts(), meshed(devices, mesh):
        experiment, opened = Experiment.of_run(run)
        known = opened.metrics()[:reports]
        if not known:
            raise RunError(f"The run in {run} has reported nothing yet: there is nothing to repeat.")
        repeated = list(islice((row for _, row in experiment.stages() if row), len(known)))
    compared = [(old["step"], *compare(old, new)) for old, new in zip(known, repeated, strict=True)]
    step, name, largest = max(compared, key=itemgetter(2))
    then, now = (asdict(each)["versions"] for each in (experiment.config.environment, Environment.current()))
    changed = {key: [then.get(key), now.get(key)] for key in {**then, **now} if then.get(key) != now.get(key)}
    document = {
        "run": str(run),
        "steps": known[-1]["step"],
        "identical": largest == 0,
        "largest_difference": largest,
        "of": name,
        "changed_versions": changed,
    }
    upto = f"The first {known[-1]['step']} steps, {len(known)} report{'s' if len(known) > 1 else ''}"
    if largest > tolerance:
        raise ComputationError(
            f"{upto}: {name} at step {step} is off by {largest:.1e} of its size, and {tolerance:g} is allowed."
            f"{f' Versions that differ: {_told(changed)}.' if changed else ''}"
        )
    same = "are the same, bit for bit" if largest == 0 else f"differ by {largest:.1e} at most ({name}, step {step})"
    show(as_json, document, f"{upto}, {same}.")


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, float]:
    """The number of two rows that differs most, and by how much of its size; infinity where one lacks it."""
    differences = {name: _apart(old.get(name), new.get(name)) for name in {**old, **new} if name != "seconds"}
    name = max(differences, key=differences.__getitem__)
    return name, differences[name]


def _apart(old: Any, new: Any) -> float:
    if old == new or (old != old and new != new):
        return 0.0
    if old is None or new is None or not abs(old - new) < float("inf"):
        return float("inf")
    return abs(old - new) / max(abs(old), abs(new))


def _told(changed: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{name} {old} then, {new} now" for name, (old, new) in changed.items())
