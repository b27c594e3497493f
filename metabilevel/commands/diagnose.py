"""`metabilevel diagnose`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import jax
from rich.console import RenderableType

from ..diagnostics.diagnosis import Diagnosis, NotApplicable
from ..diagnostics.gradients import gradients
from ..diagnostics.memory import memory
from ..diagnostics.probe import probe
from ..diagnostics.similarity import similarity
from ..diagnostics.tangent import tangent
from ..progress import bar
from ..storage.files import write_json
from ..tasks import Split
from .experiment import JUDGED, Experiment, memory_errors
from .interrupts import Interrupts
from .output import json_option, note, show
from .types import Count, Counts, Folder

FOLDER, DOCUMENT = "diagnose", "diagnose.json"
WHAT = {
    "gradients": "growth of the outer gradient and of the inner path's Jacobian with the inner steps",
    "memory": "compiled memory of the outer gradient against the inner steps, for every adjoint",
    "similarity": "CKA and CCA of every block's activations, before against after adaptation",
    "probe": "a linear probe of every block, before and after adaptation",
    "tangent": "kernel and linearised network of one task, fresh and meta-trained",
}


@click.command("diagnose")
@click.argument("run", type=Folder())
@click.option("--what", multiple=True, type=click.Choice(list(WHAT)), help="Repeatable. [default: all that apply]")
@click.option("--tasks", "episodes", type=Count(1), default=100, show_default=True, help="Fresh tasks to look at.")
@click.option("--inner-steps", type=Counts(), help="Of gradients and memory, as 1,5,10. [default: 1 to 50, and 64]")
@click.option("--split", type=click.Choice(get_args(Split)), default="test", show_default=True)
@click.option("--seed", type=Count(0, 2**32 - 1), help="Of the tasks. [default: the run's]")
@json_option
def command(
    run: Path,
    what: tuple[str, ...],
    episodes: int,
    inner_steps: list[int] | None,
    split: str,
    seed: int | None,
    as_json: bool,
) -> None:
    with Interrupts(), memory_errors():
        experiment, x, step = Experiment.restored(run)
        method, tasks = experiment.method, experiment.tasks
        key = jax.random.fold_in(jax.random.key(experiment.config.seed if seed is None else seed), JUDGED)
        steps: dict[str, Any] = {} if inner_steps is None else {"steps": inner_steps}
        drawn: dict[str, Any] = {"key": key, "split": split}
        diagnostics: dict[str, Callable[[], Diagnosis]] = {
            "gradients": lambda: gradients(method, x, tasks, **drawn, **steps, episodes=episodes),
            "memory": lambda: memory(method, x, tasks, **steps, split=split),
            "similarity": lambda: similarity(method, x, tasks, **drawn, episodes=episodes),
            "probe": lambda: probe(method, x, tasks, **drawn, episodes=episodes),
            "tangent": lambda: tangent(method, x, tasks, **drawn),
        }
        done: list[Diagnosis] = []
        with bar(False if as_json else None) as shown:
            wanted = what or tuple(WHAT)
            bar_id = shown.add_task("", total=len(wanted))
            for name in wanted:
                shown.update(bar_id, description=f"diagnosing: {name}")
                try:
                    done.append(diagnostics[name]())
                except NotApplicable as error:
                    if what:
                        raise
                    note(f"Skipped: {error}")
                shown.advance(bar_id)
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for diagnosis in done:
        diagnosis.draw(folder / f"{diagnosis.name}.png", experiment.title)
    document = {"run": str(run), "step": step, "split": split, "diagnostics": [each.as_json() for each in done]}
    write_json(folder / DOCUMENT, document)
    tables: list[RenderableType] = [each.table(experiment.title) for each in done]
    show(as_json, document, *tables, f"Written to {folder}")


command.help = "\n\n".join(
    [
        "Look inside the adaptation of a run: at its gradients, memory, features and kernel.",
        f"RUN is a run directory. Its newest checkpoint is looked at, and a picture each and {DOCUMENT} go into its "
        f"folder {FOLDER}. What does not apply to the method is skipped, unless it was asked for.",
        "\n".join(["\b", *(f"{name:11} {about}" for name, about in WHAT.items())]),
    ]
)
