"""`metabilevel evaluate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from ..errors import InputError
from ..solvers import AbstractIterativeSolver
from ..storage.files import write_json
from ..tasks import Split
from .devices import DEVICES, MESH, meshed
from .experiment import Experiment
from .interrupts import Interrupts
from .output import json_option, show
from .types import Count, Counts, Folder


@click.command("evaluate")
@click.argument("run", type=Folder())
@click.option("--split", type=click.Choice(get_args(Split)), default="test", show_default=True)
@click.option("--episodes", type=Count(1), help="Fresh tasks. [default: 600, or what the tasks say]")
@click.option("--inner-steps", type=Counts(), help="As 0,1,5,10. [default: 0 and the method's own number]")
@click.option("--seed", type=Count(0, 2**32 - 1), help="Of the episodes. [default: the run's]")
@click.option("--task-chunk", type=Count(1), help="Tasks computed at once. [default: as in the run]")
@click.option("--devices", **DEVICES)
@click.option("--mesh", **MESH)
@json_option
def command(
    run: Path,
    seed: int | None,
    inner_steps: list[int] | None,
    devices: int | None,
    mesh: dict[str, int] | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Judge a run on fresh tasks, after several numbers of inner steps.

    RUN is a run directory. Its newest checkpoint is judged, and evaluation-SPLIT.json is written beside it.
    """
    with Interrupts(), meshed(devices, mesh):
        experiment, x, step = Experiment.restored(run)
        solver = experiment.method.solver
        if inner_steps is not None and not isinstance(solver, AbstractIterativeSolver):
            raise InputError(f"--inner-steps: the inner solver of {experiment.config.method.name} takes no steps.")
        judgement = experiment.judge(
            x,
            step,
            seed=experiment.config.seed if seed is None else seed,
            steps=inner_steps,
            progress=False if as_json else None,
            **given,
        )
    document = {"run": str(run), **asdict(judgement)}
    path = run / f"evaluation-{judgement.split}.json"
    write_json(path, document)
    show(as_json, document, judgement.table(experiment.title), f"Written to {path}")
    judgement.require_finite()
