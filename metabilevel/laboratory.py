"""What the experiment of a reproduction works with: one source of randomness, one log, one progress bar."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .progress import bar, track

if TYPE_CHECKING:
    import optax

    from .evaluation import Interval
    from .method import Method
    from .problem import Key, Outer
    from .tasks import TaskDistribution


@dataclass(frozen=True)
class Stage:
    """A step of an experiment with its wall time, compilation included; `history` is that of a training."""

    label: str
    seconds: float
    history: tuple[dict[str, Any], ...] = ()

    @property
    def rate(self) -> float:
        """Outer steps a second after the first report, and so without compilation; NaN for fewer than two reports."""
        if len(self.history) < 2:
            return float("nan")
        first, last = self.history[0], self.history[-1]
        return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


@dataclass
class Lab:
    """Trains and judges. Every training draws the same tasks and starts, and every judgement the same episodes: what
    differs between two methods is the method."""

    seed: int
    progress: bool | None = None
    stages: list[Stage] = field(default_factory=list)

    def key(self, use: int) -> "Key":
        """The randomness of one use of the seed: 0 for training, 1 for tests; an experiment's own uses start at 2."""
        import jax

        return jax.random.fold_in(jax.random.key(self.seed), use)

    def fit(
        self,
        label: str,
        method: "Method",
        tasks: "TaskDistribution",
        optimizer: "optax.GradientTransformation",
        **options: Any,
    ) -> "Outer":
        """x, by `fit` with its `options`."""
        from .training import fit

        history = []
        with self._stage(label, history):
            x, rows = fit(method, tasks, optimizer, key=self.key(0), progress=self.progress, **options)
            history += rows
        return x

    def path(
        self,
        label: str,
        method: "Method",
        tasks: "TaskDistribution",
        optimizer: "optax.GradientTransformation",
        *,
        steps: int,
        every: int,
        **options: Any,
    ) -> "dict[int, Outer]":
        """x before the first step and after each `every` steps (and the last), by number of steps; else as `fit`."""
        from .training import train

        seen, history = {}, []
        with self._stage(label, history):
            stages = train(method, tasks, optimizer, key=self.key(0), steps=steps, every=every, **options)
            for state, row in track(stages, steps, show=self.progress):
                if row is not None or not seen:
                    seen[int(state.step)] = state.chosen
                history += [row] if row else []
        return seen

    def evaluate(
        self, label: str, method: "Method", x: "Outer", tasks: "TaskDistribution", **options: Any
    ) -> "dict[Any, dict[str, Interval]]":
        """Intervals by number of inner steps and metric, by `evaluate` with its `options`."""
        from .evaluation import evaluate

        with self._stage(label, []):
            return evaluate(method, x, tasks, key=self.key(1), progress=self.progress, **options)

    @contextmanager
    def _stage(self, label: str, history: list[dict[str, Any]]) -> Iterator[None]:
        shown = bar(self.progress)
        if not shown.disable:
            shown.console.print(label, style="dim", highlight=False)
        begun = time.perf_counter()
        yield
        self.stages.append(Stage(label, time.perf_counter() - begun, tuple(history)))


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
