"""Many runs as one program: seeds, and values of hyperparameters, as one more axis of the outer loop.

    member j:   x_j trained as `fit` trains it, with the key k_j and the hyperparameters v_j

One program is compiled for all of them, in which each is traced as it is of one alone: what comes out is what each
would come to by itself, but for rounding. A member that fails leaves the others alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .batching import fitting_chunk
from .devices import sharing_runs, vmapped_runs
from .errors import InputError
from .evaluation import BLOCK, Interval, _block, interval, usual_episodes
from .method import Method
from .planning import Plan, Programs, choose, lowered
from .problem import Key, Outer
from .progress import bar
from .tasks import TaskDistribution
from .training import (
    VALIDATED,
    Best,
    TrainState,
    _certified,
    _loop,
    start,
)

Scores: TypeAlias = dict[int | None, dict[str, Interval]]


class Fixed(eqx.Module):
    """Gives `value` whatever the hyperparameters: a method, or an optimizer, that all members have in common."""

    value: Any

    def __call__(self, **values: Array) -> Any:
        return self.value


class Population(eqx.Module):
    """Members that differ in their key, and in the values of some hyperparameters.

    **Arguments:**

    - `method(**values) -> Method`, `optimizer(**values)`: called with a traced number for each of the `values`.
    - `keys` [members], `values` by name, each [members].
    - `way`: how the method is computed.
    """

    method: Callable[..., Method]
    optimizer: Callable[..., optax.GradientTransformation]
    keys: Array
    values: dict[str, Array] = eqx.field(default_factory=dict)
    way: Plan = eqx.field(static=True, default=Plan(None))

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, places: Sequence[int]) -> "Population":
        """The members at `places`, in this order; one may stand there twice."""
        keys, values = jax.tree.map(lambda a: a[np.asarray(places)], (self.keys, self.values))
        return Population(self.method, self.optimizer, keys, values, self.way)

    def alone(self, member: int) -> tuple[Method, Any, Key]:
        """Method, optimizer and key of one member."""
        values = {name: a[member] for name, a in self.values.items()}
        return self.way.applied(self.method(**values)), self.optimizer(**values), self.keys[member]

    def each(self, fn: Callable[..., Any], *stacked: PyTree) -> Any:
        """`fn(method, optimizer, key, *one)` of every member, stacked.

        `stacked` has a leading axis of members. As many are vmapped at once as tasks would be, and the rest one after
        the other: on a CPU those whose arrays the caches hold, on an accelerator all. The axis `runs` of the mesh, if
        it has one, shares them out.
        """

        @jax.jit
        def one(values: dict[str, Array], key: Key, *given: PyTree) -> Any:
            method, optimizer = self.method(**values), self.optimizer(**values)
            return fn(self.way.applied(method), optimizer, key, *given)

        members = self.values, self.keys, *stacked
        size = len(self) if sharing_runs() > 1 else fitting_chunk(one, members)
        if size == len(self):
            return vmapped_runs(one, *members)
        if size == 1:
            return jax.lax.map(lambda each: one(*each), members)
        return jax.lax.map(lambda each: one(*each), members, batch_size=size)


def stack(
    method: Method | Callable[..., Method],
    optimizer: Any,
    keys: Array,
    values: Mapping[str, Any],
    task_chunk: int | None = None,
) -> Population:
    """The members in which `method` and `optimizer`, fixed or functions of the values, have these keys and values.

    **Raises:** `InputError` for no members, or values of another number.
    """
    if not (eqx.is_array(keys) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) and keys.ndim == 1 and len(keys)):
        raise InputError("keys: a typed key for each member is wanted, such as jax.random.split(key, 8).")
    numbers = {name: jnp.stack([jnp.asarray(a) for a in value]) for name, value in values.items()}
    for name, a in numbers.items():
        if a.shape != keys.shape or not jnp.issubdtype(a.dtype, jnp.floating):
            raise InputError(
                f"values: {name!r} is {a.dtype} of shape {a.shape}; a floating number for each of {len(keys)} members "
                "is wanted."
            )
    fixed = lambda given, kind: Fixed(given) if isinstance(given, kind) else given
    method, optimizer = fixed(method, Method), fixed(optimizer, optax.GradientTransformation)
    return Population(method, optimizer, keys, numbers, Plan(task_chunk))


def plan(
    population: Population,
    tasks: TaskDistribution,
    *,
    meta_batch: int,
    memory_budget: int | None = None,
    validation: int | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """What the population takes in memory, and which way of computing it fits into `memory_budget`: as
    `training.plan`."""
    states = begin(population, tasks, meta_batch, validation is not None)
    judged = [] if validation is None else [{"split": "valid", "episodes": validation}]

    def programs(way: Plan) -> Programs:
        some = by(population, way)

        def others() -> Iterable[tuple[str, jax.stages.Compiled]]:
            yield "report", lowered(reported, some, tasks, meta_batch, states).compile()
            for given in (*judged, *evaluations):
                split, steps = given.get("split", "test"), given.get("steps")
                episodes = min(BLOCK, given.get("episodes") or usual_episodes(tasks))
                keys = jax.vmap(partial(jax.random.split, num=episodes))(population.keys)
                program = lowered(_scored, some, states.x, tasks, keys, split, steps).compile()
                yield f"evaluation ({split})", program

        return Programs(lowered(walk, some, tasks, meta_batch, states, states.step[0]), others)

    method = population.alone(0)[0]
    return choose(method, programs, task_chunk=population.way.task_chunk, budget=memory_budget)


def takes(population: Population, tasks: TaskDistribution, meta_batch: int) -> bool:
    """Whether `population` can be traced: not where a factory, or what it makes, looks at a number to decide. Nothing
    is compiled."""

    def traced(population: Population) -> Any:
        states = begin(population, tasks, meta_batch, False)
        keys = jax.vmap(partial(jax.random.split, num=1))(population.keys)
        return states, _scored(population, states.x, tasks, keys, "test", None)

    try:
        eqx.filter_eval_shape(traced, population)
    except (TypeError, ValueError):  # what jax, and whoever wants a number, say of one that is not known yet
        return False
    return True


def by(population: Population, way: Plan) -> Population:
    """`population`, computed as `way` says."""
    bare = Plan(way.task_chunk, way.checkpoint, way.mixed_mode, way.offload)
    return Population(population.method, population.optimizer, population.keys, population.values, bare)


def evaluate(
    population: Population,
    xs: Sequence[Outer],
    tasks: TaskDistribution,
    *,
    keys: Array,
    split: str = "test",
    episodes: int | None = None,
    steps: Sequence[int] | None = None,
    progress: bool | None = None,
) -> list[Scores]:
    """As `evaluation.evaluate` of every member: its x on the episodes of its key."""
    episodes = usual_episodes(tasks) if episodes is None else episodes
    wanted = None if steps is None else sorted(set(steps))
    size = min(BLOCK, episodes)
    drawn = jax.vmap(partial(jax.random.split, num=-(-episodes // size) * size))(keys)
    together, parts = stacked(xs), []
    with bar(progress) as shown:
        for at in shown.track(range(0, episodes, size), description=f"evaluating ({split})"):
            scores = _scored(population, together, tasks, drawn[:, at : at + size], split, wanted)
            parts.append(jax.device_get(scores))
    whole = jax.tree.map(lambda *a: np.concatenate(a, 1)[:, :episodes], *parts)
    found = []
    for j in range(len(population)):
        rows = jax.tree.map(lambda a, j=j: interval(a[j]), whole)
        found.append(dict(zip(wanted if wanted is not None else [None], rows, strict=True)))
    return found


@eqx.filter_jit
def begin(population: Population, tasks: TaskDistribution, meta_batch: int, validated: bool) -> TrainState:
    """The states before the first step, stacked."""
    return population.each(lambda method, optimizer, key: start(method, tasks, optimizer, key, meta_batch, validated))


@eqx.filter_jit
def walk(
    population: Population, tasks: TaskDistribution, meta_batch: int, states: TrainState, stop: Array
) -> tuple[TrainState, Array]:
    """`training._loop` of every member. All are at the same step, which has no axis of members in the loop."""
    step = states.step[0]

    def one(method: Method, optimizer: Any, key: Key, state: TrainState) -> tuple[TrainState, Array]:
        state = eqx.tree_at(lambda s: s.step, state, step)
        return _loop(method, tasks, optimizer, meta_batch, state, key, stop)

    return population.each(one, states)


@eqx.filter_jit
def reported(population: Population, tasks: TaskDistribution, meta_batch: int, states: TrainState) -> dict[str, Array]:
    """`training._certified` of every member."""
    return population.each(
        lambda method, optimizer, key, state: _certified(method, tasks, meta_batch, state, key), states
    )


@eqx.filter_jit
def _scored(
    population: Population, xs: Outer, tasks: TaskDistribution, keys: Array, split: Any, steps: list[int] | None
) -> Any:
    """`evaluation._block` of every member; `keys` [members, episodes]."""
    chunk = population.way.task_chunk
    return population.each(
        lambda method, optimizer, key, x, keys: _block(method, x, tasks, keys, split, steps, chunk), xs, keys
    )


def validated(
    population: Population, states: TrainState, tasks: TaskDistribution, episodes: int
) -> tuple[TrainState, Array]:
    """The states, in which x is the best one where it is that, and the validation losses [members]."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, VALIDATED))(population.keys)
    xs = [part(states.x, j) for j in range(len(population))]
    scores = evaluate(population, xs, tasks, keys=keys, split="valid", episodes=episodes, progress=False)
    losses = jnp.asarray([score[None]["loss"].mean for score in scores])
    assert states.best is not None
    better = losses < states.best.loss
    now = Best(states.x, losses.astype(states.best.loss.dtype), states.step)
    pick = lambda a, b: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return eqx.tree_at(lambda s: s.best, states, jax.tree.map(pick, now, states.best)), losses


@jax.jit
def stacked(trees: Sequence[PyTree]) -> Any:
    """One tree of several, whose leaves have a leading axis of them."""
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)


@jax.jit
def part(tree: PyTree, member: Any) -> Any:
    """What `tree`, stacked, holds of one member."""
    return jax.tree.map(lambda a: a[member], tree)
