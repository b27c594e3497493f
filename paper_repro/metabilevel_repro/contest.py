"""Methods on the same tasks and network, one after the other: what the comparisons of heads and baselines measure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Curve, Lab, Outcome, Panel, percent

from .accuracy import in_training, training_panel


@dataclass(frozen=True)
class Test:
    """What is other at a test than in training: options of the task family and of the method."""

    tasks: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One training, with options of the method and of the task family, and its tests, a row each."""

    name: str
    method: str
    tests: dict[str, Test]
    options: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    iterations: int = 1_000
    meta_batch: int = 1


@dataclass(frozen=True)
class Settings:
    """Adam with `learning_rate`, which falls to 0 as a cosine where `cosine_decay`; `family` is shared by all."""

    entries: tuple[Entry, ...]
    tasks: str
    family: dict[str, Any]
    learning_rate: float = 3e-3
    cosine_decay: bool = True
    episodes: int = 600


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains and tests every entry."""
    measured, trained = {}, []
    for entry in s.entries:
        x = _train(entry, s, lab)
        trained.append(in_training(entry.name, lab))
        for row, test in entry.tests.items():
            tasks = mb.load_tasks(s.tasks)(**s.family | entry.tasks | test.tasks)
            method = mb.load_method(entry.method)(tasks.subject, **entry.options | test.options)
            found = lab.evaluate(f"{row}: test, {tasks.subject.protocol}", method, x, tasks, episodes=s.episodes)
            measured[row] = percent(found[None]["accuracy"])
    return Outcome(measured, [_side_by_side(measured), training_panel(trained)])


def _side_by_side(measured: Mapping[str, Any]) -> Panel:
    """Rows "setting, method": the methods side by side, in a colour for each setting."""
    cells = {tuple(row.split(", ", 1)): value for row, value in measured.items()}
    settings, methods = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    curves = []
    for setting in settings:
        at = [i for i, method in enumerate(methods) if (setting, method) in cells]
        values = [cells[setting, methods[i]] for i in at]
        curves.append(Curve(setting, at, [v.mean for v in values], [v.ci95 for v in values], style="points"))
    return Panel("test tasks", "", "accuracy (%)", curves, ticks=methods)


def _train(entry: Entry, s: Settings, lab: Lab) -> Any:
    import optax

    tasks = mb.load_tasks(s.tasks)(**s.family | entry.tasks)
    method = mb.load_method(entry.method)(tasks.subject, **entry.options)
    rate = optax.cosine_decay_schedule(s.learning_rate, entry.iterations) if s.cosine_decay else s.learning_rate
    return lab.fit(f"{entry.name}: training", method, tasks, optax.adam(rate),
                   steps=entry.iterations, meta_batch=entry.meta_batch)  # fmt: skip
