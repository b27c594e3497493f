"""The outer loop of a population."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from .errors import NonFiniteError
from .method import Method
from .population import Population, begin, part, reported, stack, stacked, validated, walk
from .problem import Outer
from .progress import bar
from .tasks import TaskDistribution
from .training import CHUNK_SECONDS, Row, TrainState, _complaint, _empty, _remedy, _require_schedule, _row, _tired


class Stage(NamedTuple):
    """What a look at a population sees.

    - `step`, which the members in `going` have reached; `state(member)` is theirs.
    - `rows`: of those that have something to report; `failed`: of those that go no further, why, with the last good
      state; `ended`: those that have come to their end.
    """

    step: int
    going: Sequence[int]
    state: Callable[[int], TrainState]
    rows: Mapping[int, Row]
    failed: Mapping[int, NonFiniteError]
    ended: Sequence[int]


class Trained(NamedTuple):
    """What became of one member: x and history as of `fit`, up to where it failed, if it has a `failure`."""

    x: Outer
    history: list[Row]
    failure: NonFiniteError | None


def fit_population(
    method: Method | Callable[..., Method],
    tasks: TaskDistribution,
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    *,
    keys: Array,
    values: Mapping[str, Any] | None = None,
    steps: int,
    meta_batch: int,
    every: int | None = None,
    task_chunk: int | None = None,
    on_nonfinite: str = "raise",
    validation: int | None = None,
    patience: int | None = None,
    progress: bool | None = None,
) -> list[Trained]:
    """`fit`, of many members in one compiled program: each comes to what it comes to by itself, but for rounding.

    **Arguments:**

    - `method`, `optimizer`: what all members have in common, or a function of the `values` that gives them, such as
      `lambda rate: mb.load_method("maml")(tasks.subject, learning_rate=rate)`; it is traced, and a number of it is a
      scalar array.
    - `keys` [members]: the randomness of each; `values`: by name, the numbers [members] in which they differ.
    - The others: as of `fit`. A member that `on_nonfinite` stops, or whose `patience` ends, leaves the others alone.

    **Returns:** one entry a member.

    **Raises:** `InputError` for wrong arguments, before compilation.
    """
    every = max(1, steps // 20) if every is None else every
    population = stack(method, optimizer, keys, values or {}, task_chunk)
    histories: list[list[Row]] = [[] for _ in range(len(population))]
    found: dict[int, tuple[TrainState, NonFiniteError | None]] = {}
    stages = train(
        population, tasks, steps=steps, meta_batch=meta_batch, every=every, on_nonfinite=on_nonfinite,
        validation=validation, patience=patience,
    )  # fmt: skip
    for stage in tracked(stages, steps, show=progress):
        for member, row in stage.rows.items():
            histories[member].append(row)
        found |= {member: (stage.state(member), None) for member in stage.ended}
        found |= {member: (error.state, error) for member, error in stage.failed.items()}  # pyright: ignore[reportAssignmentType]
    return [Trained(found[j][0].chosen, history, found[j][1]) for j, history in enumerate(histories)]


def train(
    population: Population,
    tasks: TaskDistribution,
    *,
    steps: int,
    meta_batch: int,
    every: int,
    on_nonfinite: str = "raise",
    validation: int | None = None,
    patience: int | None = None,
    states: Sequence[TrainState] | None = None,
) -> Iterator[Stage]:
    """`fit_population` as an iterator: over the first states, and then over stages of about a second.

    `states`, one a member, are where to go on from. Members that are behind catch up with the others first. The place
    of one that has failed or ended, or is ahead, is taken by a copy of another, so that nothing is compiled anew.
    """
    _require_schedule(steps, meta_batch, every, on_nonfinite, validation, patience)
    if states is None:
        first = begin(population, tasks, meta_batch, validation is not None)
        states = [part(first, j) for j in range(len(population))]
        for j, state in enumerate(states):
            method, _, key = population.alone(j)
            method.estimator.check(state.x, tasks, key)
    left = dict(enumerate(states))
    ended = [j for j, s in left.items() if int(s.step) >= steps or _tired(s, every, patience)]
    yield Stage(min(int(s.step) for s in states), list(left), left.__getitem__, {}, {}, ended)
    begun, length = time.perf_counter(), 1
    left = {j: state for j, state in left.items() if j not in ended}
    while left:
        done = min(int(state.step) for state in left.values())
        going = [j for j, state in left.items() if int(state.step) == done]
        goal = min([steps, *(int(state.step) for j, state in left.items() if j not in going)])
        places = [j if j in going else going[0] for j in range(len(population))]
        now, some = stacked([left[j] for j in places]), population.at(places)
        gone: set[int] = set()
        while done < goal and not gone:
            report = min(steps, done - done % every + every)
            stop = min(report, goal, done + length)
            before, tick = now, time.perf_counter()
            now, finite = walk(some, tasks, meta_batch, now, jnp.asarray(stop, now.step.dtype))
            windows, sound = jax.device_get((now.window, finite))
            row_of = lambda tree, j: jax.tree.map(itemgetter(j), tree)
            failed = {}
            for j in going:
                advice = partial(_remedy_of, population, j, tasks, now)
                window = row_of(windows, j)
                if said := _complaint(done, stop, window, bool(sound[j]), on_nonfinite, advice):
                    failed[j] = NonFiniteError(said, part(before, j))
            seconds = time.perf_counter() - tick
            length = max(1, int((stop - done) * min(4.0, CHUNK_SECONDS / seconds)))
            done, rows, good = stop, {}, [j for j in going if j not in failed]
            if done == report:
                certified = jax.device_get(reported(some, tasks, meta_batch, now))
                rows = {j: _row(done, row_of(windows, j), row_of(certified, j)) for j in good}
                if validation is not None:
                    now, losses = validated(some, now, tasks, validation)
                    rows = {j: {**row, "valid_loss": float(losses[j])} for j, row in rows.items()}
                rows = {j: {**row, "seconds": time.perf_counter() - begun} for j, row in rows.items()}
                now = eqx.tree_at(lambda s: s.window, now, jax.vmap(_empty)(now.window.sums))
            tired = lambda j, now=now: patience is not None and _tired(part(now, j), every, patience)
            ended = [j for j in good if done >= steps or (j in rows and tired(j))]
            gone = {*failed, *ended}
            yield Stage(done, good, partial(part, now), rows, failed, ended)
        left = {j: part(now, j) if j in going else state for j, state in left.items() if j not in gone}


def _remedy_of(population: Population, member: int, tasks: TaskDistribution, states: TrainState) -> str:
    method, _, key = population.alone(member)
    return _remedy(method, tasks, part(states.x, member), key)


def tracked(stages: Iterable[Stage], steps: int, *, show: bool | None) -> Iterator[Stage]:
    """Passes on the stages of `train`; the bar shows the step and the mean of the last reported losses."""
    with bar(show) as progress:
        task = progress.add_task("training", total=steps)
        for stage in stages:
            progress.update(task, completed=stage.step)
            if stage.rows:
                losses = [float(row["loss"]) for row in stage.rows.values()]
                progress.update(task, description=f"mean loss {np.mean(losses):.4g}")
            yield stage
