"""Scores with confidence intervals on tasks that were not trained on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .batching import map_tasks
from .devices import even, everywhere, placed
from .errors import InputError, count
from .method import Method
from .planning import lowered
from .problem import Key, Metrics, canonical
from .progress import bar
from .tasks import Split, TaskDistribution

BLOCK = 50  # episodes in one compiled call: short enough to show progress and to be interrupted


class Interval(NamedTuple):
    """A mean over episodes and the half width of its 95% confidence interval, 1.96 standard deviations / sqrt(n)."""

    mean: float
    ci95: float
    episodes: int

    def __str__(self) -> str:
        """Both with as many decimals as two digits of the half width take; four digits of the mean where it has none.

        Of one episode the mean alone. What is very large or very small is written with one power of ten for both.
        """
        size = max((abs(value) for value in self[:2] if math.isfinite(value)), default=0.0)
        power = max(-300, math.floor(math.log10(size))) if size else 0  # of ten; below, it is itself zero
        scale = 1.0 if -4 <= power < 6 else 10.0**power
        mean, half = self.mean / scale, self.ci95 / scale
        width = next((value for value in (half, abs(mean) / 100) if 0 < value < math.inf), 0.1)
        decimals = min(6, max(0, 1 - math.floor(math.log10(width))))
        text = f"{mean:.{decimals}f}" if self.episodes == 1 else f"{mean:.{decimals}f} ± {half:.{decimals}f}"
        return text if scale == 1 else f"({text})e{power:+03d}"


def interval(values: np.ndarray) -> Interval:
    """The interval of the mean of independent `values` [n]."""
    n = len(values)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    return Interval(float(np.mean(values)), 1.96 * deviation / n**0.5, n)


def usual_episodes(tasks: TaskDistribution) -> int:
    """As many as a judgement takes where nothing is said."""
    return 1 if tasks.single else tasks.episodes


def evaluate(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    *,
    key: Key,
    split: str = "test",
    episodes: int | None = None,
    steps: Sequence[int] | None = None,
    task_chunk: int | None = None,
    progress: bool | None = None,
) -> dict[int | None, dict[str, Interval]]:
    """Adapts to `episodes` fresh tasks of `split` and judges each after each number of inner `steps`.

    **Arguments:** `episodes` are 600 if None, or what `tasks` says, or one where every draw is the same task. `steps`
    are numbers of inner steps, in any order; None takes the method as it is.

    **Returns:** for each number of steps (None where none was given) the interval of the loss and of each metric.
    The same episodes serve all of them. An episode that is not finite makes the mean so.

    **Raises:** `InputError` for no episodes, negative steps, or steps where the inner solver takes none.
    """
    if split not in get_args(Split):
        raise InputError(f"split = {split!r}: one of {', '.join(get_args(Split))} is wanted.")
    episodes = usual_episodes(tasks) if episodes is None else count("episodes", episodes, 1)
    wanted = None if steps is None else sorted({count("steps", each, 0) for each in steps})
    if wanted == []:
        raise InputError("steps = []: numbers of inner steps are wanted.")
    if task_chunk is not None:
        count("task_chunk", task_chunk, 1)
    size = even(min(BLOCK, episodes))
    keys = jax.random.split(key, -(-episodes // size) * size)  # the last block is filled up, and cut off again below
    method, x, tasks, keys = placed(method, canonical(x, "x"), tasks, keys)
    parts = []
    with bar(progress) as shown:
        for at in shown.track(range(0, episodes, size), description=f"evaluating ({split})"):
            parts.append(jax.device_get(_block(method, x, tasks, keys[at : at + size], split, wanted, task_chunk)))
    rows = jax.tree.map(lambda *a: interval(np.concatenate(a)[:episodes]), *parts)
    return dict(zip(wanted if wanted is not None else [None], rows, strict=True))


def compiled(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    *,
    split: str = "test",
    episodes: int | None = None,
    steps: Sequence[int] | None = None,
    task_chunk: int | None = None,
) -> jax.stages.Compiled:
    """The program of the `evaluate` that is called like this, which it then has no need to compile."""
    keys = jax.random.split(jax.random.key(0), even(min(BLOCK, episodes or usual_episodes(tasks))))
    wanted = None if steps is None else sorted(set(steps))
    return lowered(_block, *placed(method, canonical(x, "x"), tasks, keys), split, wanted, task_chunk).compile()


@eqx.filter_jit
def _block(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    keys: Array,
    split: Any,
    steps: list[int] | None,
    task_chunk: int | None,
) -> list[Metrics]:
    """For each number of steps, every metric of one episode a key. Compiled once for a method and its tasks."""

    def one(given: tuple[Method, PyTree, TaskDistribution], key: Key) -> list[Metrics]:
        method, x, tasks = given
        k_task, k_adapt = jax.random.split(key)
        task = tasks.sample(k_task, split)
        if steps is not None:
            return method.curve(x, task, k_adapt, steps)
        return [method.test(x, task, k_adapt)]

    return everywhere(map_tasks(one, (method, x, tasks), keys, chunk=task_chunk))


def as_rows(evaluation: dict[int | None, dict[str, Interval]]) -> list[dict]:
    """An evaluation as rows for JSON: one per number of steps and metric."""
    return [
        {"steps": steps, "metric": name, "mean": i.mean, "ci95": i.ci95, "episodes": i.episodes}
        for steps, metrics in evaluation.items()
        for name, i in metrics.items()
    ]
