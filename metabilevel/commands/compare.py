"""`metabilevel compare`."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import jax

from ..errors import InputError
from ..evaluation import evaluate
from ..learned import LearnedOptimizer, load_optimizer, plugin_of
from ..method import Method
from ..optimizees import AbstractOptimizee
from ..optimizing import optimizee_of, unrolled
from ..problem import Key
from ..progress import bar
from ..registry import RULES, TASKS, find, load, load_tasks
from ..rules import AbstractRule, require_fit
from ..schema import configure
from ..storage.config import Plugin
from ..tasks import TaskDistribution
from ..tuning import tune
from .comparison import Comparison, Family, Raced
from .experiment import JUDGED, made, memory_errors
from .export import learned_in
from .interrupts import Interrupts
from .output import json_option, note, show
from .types import Assignment, Count, Counts, Folder

RULE = "hand-made"
BASELINES = {"SGD": "sgd", "momentum": "momentum", "NAG": "nag", "RMSprop": "rmsprop", "Adam": "adam"}
TUNED = 2**32 - 4  # what is folded into the key for the tuning, where `JUDGED` is for the comparison
POINTS = 50  # of a curve


class FamilyText(click.ParamType):
    """NAME, or "NAME OPTION=VALUE ...", as the text and a plugin with every one of its options."""

    name = '"name [option=value ...]"'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            name, *assignments = shlex.split(value) or [""]
        except ValueError as error:
            self.fail(f"{value!r} cannot be split into words: {error}.", param, ctx)
        entry = find(TASKS, name)
        given = [Assignment().convert(each, param, ctx) for each in assignments]
        return " ".join([entry.name, *assignments]), entry, dict(given)


@click.command("compare")
@click.argument("optimizers", nargs=-1, required=True, type=Folder(or_file=True), metavar="RUN_OR_FILE...")
@click.option("--tasks", type=FamilyText(), multiple=True, required=True, help="A task family; repeatable.")
@click.option("--task-option", type=Assignment(), multiple=True, help="An option of all the families; repeatable.")
@click.option("--steps", type=Count(1), default=100, show_default=True, help="Steps of every optimizer.")
@click.option("--at", type=Counts(), help="Steps in the tables. [default: 0, a fifth, half and all of them]")
@click.option("--episodes", type=Count(2), default=100, show_default=True, help="Functions to tune on, and to test on.")
@click.option("--batch", type=Count(1), help="Examples of a step where a task is a data set. [default: all]")
@click.option("--seed", type=Count(0, 2**32 - 1), default=0, show_default=True, help="Of all randomness.")
@click.option("--out", type=Folder(), default=Path("comparison"), show_default=True, metavar="DIR")
@json_option
def command(
    optimizers: tuple[Path, ...],
    tasks: tuple[Any, ...],
    task_option: tuple[tuple[str, str], ...],
    steps: int,
    at: list[int] | None,
    episodes: int,
    batch: int | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Race learned optimizers against hand-made ones, whose learning rates are tuned on each family.

    RUN_OR_FILE is a run directory or what `metabilevel export` wrote. A family is NAME, or "NAME OPTION=VALUE ...", so
    that one can be given several times. SGD, momentum, NAG, RMSprop and Adam are tuned for the loss at the last step on
    functions of the validation split; all run on the same functions of the test split. Tables, curves.png, compare.json
    and, for more than one pair of a learned optimizer and a family, transfer.png go into the directory.
    """
    at = sorted({*(at or (0, steps // 5, steps // 2, steps))})
    if at[-1] > steps:
        raise InputError(f"--at {at[-1]}: every optimizer takes --steps {steps}.")
    with Interrupts(), memory_errors():
        learned = _learned(optimizers)
        families = _families(tasks, dict(task_option))
        for name, (_, family) in families.items():
            for label, each in learned.items():
                with _named(f"{label} on {name}"):
                    require_fit(each.rule, each.weights, optimizee_of(family.subject, batch).shapes)
        if batch is not None and all(isinstance(each.subject, AbstractOptimizee) for _, each in families.values()):
            raise InputError(
                f"--batch {batch}: the functions of {', '.join(families)} draw their minibatches themselves."
            )
        _make(out)
        course, found = _Course(steps, at, episodes, batch, jax.random.key(seed)), []
        with bar(False if as_json else None) as shown:
            bar_id = shown.add_task("", total=len(families) * (len(learned) + len(BASELINES)))
            for name, (plugin, family) in families.items():
                raced = []
                for label in [*learned, *BASELINES]:
                    shown.update(bar_id, description=f"{label} on {name}")
                    at_work = learned.get(label)
                    raced.append(course.run(label, at_work, family) if at_work else course.tuned(label, family))
                    shown.advance(bar_id)
                found.append(Family(name, plugin, family.subject.protocol, raced))
    rules = {label: plugin_of(each.rule) for label, each in learned.items()}
    sources = dict(zip(learned, map(str, optimizers), strict=True))
    comparison = Comparison(sources, rules, found, at, steps, episodes, batch, seed)
    comparison.save(out)
    for message in comparison.remarks():
        note(message)
    show(as_json, comparison.as_json(), *comparison.tables(), f"Written to {out}")


@dataclass(frozen=True)
class _Course:
    """What every optimizer runs: so many steps, on the same functions, starts and minibatches."""

    steps: int
    at: list[int]
    episodes: int
    batch: int | None
    key: Key

    def run(self, label: str, optimizer: LearnedOptimizer, tasks: TaskDistribution) -> Raced:
        """The losses of an optimizer on the test functions, at the steps that are asked for and along a curve."""
        points = sorted({*range(0, self.steps + 1, max(1, self.steps // POINTS)), *self.at, self.steps})
        scores = evaluate(
            self._method(optimizer.rule, tasks),
            optimizer.weights,
            tasks,
            key=jax.random.fold_in(self.key, JUDGED),
            episodes=self.episodes,
            steps=points,
            progress=False,
        )
        return Raced(label, {step: scores[step]["loss"] for step in points})

    def tuned(self, label: str, tasks: TaskDistribution) -> Raced:
        """As `run`, of a hand-made optimizer with the learning rate that is best on validation functions."""
        made = partial(load(RULES, RULE), optimizer=BASELINES[label])
        shapes = optimizee_of(tasks.subject, self.batch).shapes
        candidate = lambda rate: made(learning_rate=rate).init(shapes, self.key)
        search = tune(
            self._method(made(), tasks),
            candidate,
            tasks,
            key=jax.random.fold_in(self.key, TUNED),
            episodes=self.episodes,
            steps=self.steps,
            progress=False,
        )
        raced = self.run(label, LearnedOptimizer(made(), candidate(search.best)), tasks)
        return replace(raced, search=search)

    def _method(self, rule: AbstractRule, tasks: TaskDistribution) -> Method:
        return unrolled(rule, tasks.subject, steps=self.steps, batch=self.batch)


def _learned(paths: Sequence[Path]) -> dict[str, LearnedOptimizer]:
    """The learned optimizers by the last part of their paths; by the whole where that is not enough.

    Double precision is on afterwards where it was before, or where one of the runs had it.
    """
    short = [path.stem if path.is_file() else path.resolve().name for path in paths]
    names = short if len({*short}) == len(paths) else [str(path) for path in paths]
    if len({*names}) < len(paths):
        raise InputError("A learned optimizer is given twice.")
    found, double = {}, jax.config.read("jax_enable_x64")
    for name, path in zip(names, paths, strict=True):
        found[name] = learned_in(path)[0] if path.is_dir() else load_optimizer(path)
        double |= jax.config.read("jax_enable_x64")
        jax.config.update("jax_enable_x64", double)
    return found


def _families(given: Sequence[Any], common: dict[str, str]) -> dict[str, tuple[Plugin, TaskDistribution]]:
    """Each family by its name and own options."""
    families = {}
    for name, entry, own in given:
        if name in families:
            raise InputError(f"--tasks {name!r} is given twice.")
        with _named(name):
            options = configure(load_tasks(entry.qualified), {**common, **own})
        plugin = Plugin(entry.name, entry.distribution, entry.version, options)
        families[name] = plugin, made(TASKS, plugin, load_tasks, TaskDistribution)
    return families


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: The directory {folder} cannot be made: {error.strerror}.") from error


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says what an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
