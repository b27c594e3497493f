"""`metabilevel check`."""

from pathlib import Path
from typing import Any

import click
import jax

from ..check.examine import check_hypergradient, check_method
from ..check.report import Check
from ..errors import InputError, OptionError
from ..method import Method
from ..registry import METHODS, TASKS, Entry, entries, find, load_method, load_tasks
from ..schema import configure
from ..storage.config import Plugin
from ..tasks import TaskDistribution
from .experiment import JUDGED, Experiment, made, memory_errors
from .interrupts import Interrupts
from .output import json_option, note, show
from .problem_file import CONTENTS, load_case, split_target
from .types import Assignment, Count, Folder, PluginName, Positive

PICTURE = "check.png"
META_BATCH = 2  # where nothing else is asked for


@click.command("check")
@click.argument("target", metavar="FILE.py[:NAME] | METHOD | RUN")
@click.option("--tasks", type=PluginName(TASKS), help="The task family, for a METHOD.")
@click.option("--task-option", type=Assignment(), multiple=True, help="An option of the tasks; repeatable.")
@click.option("--option", type=Assignment(), multiple=True, help="Of the method, as learning_rate=.01; repeatable.")
@click.option("--meta-batch", type=Count(1), help=f"Tasks, for a METHOD or a RUN. [default: {META_BATCH}]")
@click.option("--tolerance", type=Positive(), default=1e-3, show_default=True, help="Relative; what still agrees.")
@click.option("--seed", type=Count(0, 2**32 - 1), help="Of all randomness. [default: 0, or the run's, or the file's]")
@click.option("--out", type=Folder(), metavar="DIR", help=f"Where {PICTURE} goes. [default: the run's, or checks/NAME]")
@json_option
def command(
    target: str,
    tasks: Entry | None,
    task_option: tuple[tuple[str, str], ...],
    option: tuple[tuple[str, str], ...],
    meta_batch: int | None,
    tolerance: float,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    with Interrupts(), memory_errors():
        settings: dict[str, Any] = {"tolerance": tolerance}
        if split := split_target(target):
            _refuse(target, "METHOD", tasks=tasks, task_option=task_option, option=option)
            _refuse(target, "METHOD or a RUN", meta_batch=meta_batch)
            case = load_case(*split)
            title, folder = case.title, Path("checks", f"{split[0].stem}-{case.title.partition(':')[2]}")
            key = case.key if seed is None else jax.random.key(seed)
            note(f"Checking {title} ...")
            found = check_hypergradient(
                case.problem, case.x, case.task, key=key, solver=case.solver, adjoint=case.adjoint, **settings
            )
        elif Path(target, "config.json").is_file():
            _refuse(target, "METHOD", tasks=tasks, task_option=task_option, option=option)
            experiment, x, step = Experiment.restored(target)
            title, folder = f"{experiment.title}, step {step}", Path(target)
            key = jax.random.fold_in(jax.random.key(experiment.config.seed if seed is None else seed), JUDGED)
            note(f"Checking {title} ...")
            settings |= {"meta_batch": meta_batch or META_BATCH}
            found = check_method(experiment.method, x, experiment.tasks, key=key, **settings)
        else:
            method, family, title = _method(target, tasks, dict(option), dict(task_option))
            folder, key = Path("checks", title.replace(" ", "-")), jax.random.key(seed or 0)
            note(f"Checking {title} ...")
            settings |= {"meta_batch": meta_batch or META_BATCH}
            found = check_method(method, method.init(key), family, key=key, **settings)
    folder = out or folder
    document = {"target": target, "title": title, **found.as_json()}
    parts = [found.table(title), _sentence(found)]
    if any(curve.x for panel in found.panels() for curve in panel.curves):
        folder.mkdir(parents=True, exist_ok=True)
        found.draw(folder / PICTURE, title)
        parts.append(f"Drawn in {folder / PICTURE}")
    show(as_json, document, *parts)
    if not found.right:
        raise click.exceptions.Exit(1)


def _sentence(found: Check) -> str:
    return f"{found.verdict.capitalize()}: {found.reason}"


def _refuse(target: str, of: str, **given: Any) -> None:
    for name, value in given.items():
        if value:
            raise click.BadParameter(
                f"only a {of} takes it, and {target!r} says it all itself.",
                param_hint=f"'--{name.replace('_', '-')}'",
            )


def _method(
    name: str, tasks: Entry | None, options: dict[str, str], task_options: dict[str, str]
) -> tuple[Method, TaskDistribution, str]:
    try:
        entry = find(METHODS, name)
    except InputError as error:
        if Path(name).is_dir():
            raise InputError(f"The directory {name!r} holds no run (config.json).") from error
        raise
    if tasks is None:
        families = ", ".join(each.name for each in entries(TASKS))
        raise InputError(f"check {entry.name}: on which tasks? --tasks NAME, one of {families}.")
    plugins = []
    for each, load, given, flag in [
        (tasks, load_tasks, task_options, "--task-option"),
        (entry, load_method, options, "--option"),
    ]:
        try:
            configured = configure(load(each.qualified), given)
        except OptionError as error:
            raise click.BadParameter(str(error), param_hint=f"'{flag}'") from error
        plugins.append(Plugin(each.name, each.distribution, each.version, configured))
    family = made(TASKS, plugins[0], load_tasks, TaskDistribution)
    method = made(METHODS, plugins[1], load_method, Method, family.subject)
    return method, family, f"{entry.name} on {tasks.name}"


command.help = "\n\n".join(
    [
        "Is this hypergradient right, and if not, why?",
        "Slopes along random directions, along every leaf of x and along coordinates are held against central "
        "differences of the solved problem, over a sweep of step sizes. Exit status 0 if they agree, 1 if not.",
        "METHOD is an installed method, at the start of its training on --tasks; RUN is a run directory, whose newest "
        "checkpoint is checked.",
        CONTENTS,
    ]
)
