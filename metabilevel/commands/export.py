"""`metabilevel export`."""

from dataclasses import asdict
from pathlib import Path

import click
import jax

from ..errors import InputError
from ..learned import LearnedOptimizer, plugin_of
from .experiment import Experiment
from .output import json_option, show
from .types import Folder, NewFile


@click.command("export")
@click.argument("run", type=Folder())
@click.option("--out", type=NewFile(), required=True, metavar="FILE")
@json_option
def command(run: Path, out: Path, as_json: bool) -> None:
    """Write the optimizer that a run has learned to one file.

    RUN is a run directory. `metabilevel.load_optimizer` reads the file, and `metabilevel.as_optax` makes an optax
    transformation of it.
    """
    learned, step = learned_in(run)
    learned.save(out)
    rule = plugin_of(learned.rule)
    count = sum(a.size for a in jax.tree.leaves(learned.weights))
    document = {"run": str(run), "step": step, "file": str(out), "rule": asdict(rule), "weights": count}
    show(as_json, document, f"{rule.name}, {count:,} weights, of step {step}, is in {out}")


def learned_in(run: Path) -> tuple[LearnedOptimizer, int]:
    """What the run in a directory has learned, and the step that it is of.

    **Raises:** `InputError` for a run of another kind of method, and as `Experiment.restored`.
    """
    experiment, x, step = Experiment.restored(run)
    try:
        return LearnedOptimizer.of(experiment.method, x), step
    except InputError as error:
        raise InputError(f"The run in {run} is of {experiment.config.method.name}: {error}") from error
