"""What is checked: a direction, and the function that it claims to be the derivative of."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..batching import leading
from ..differences import (
    Differences,
    central_differences,
    coordinate_directions,
    random_directions,
)
from ..estimators import AbstractEstimator
from ..hypergradients import with_task
from ..info import Certificate
from ..method import Method
from ..precision import doubled, draws
from ..problem import BilevelProblem, Key, Outer, Scalar, Task

RANDOM, LEAVES, COORDINATES, FEW = 4, 20, 3, 12  # directions, at most; entries of x of which each is one
SETTLING = 2000  # steps after which the memory of a single-loop method is taken to have come to rest at the latest
AT_REST = 1e-9  # relative change of its direction in a step


class Claim(eqx.Module):
    """`estimator` on a batch of tasks.

    Its direction, where it begins, is held against the loss that it reports. An estimator whose inner variable only
    follows x is held, come to rest at x, against the loss of `solved`, a method that solves.
    """

    estimator: AbstractEstimator
    tasks: Task
    solved: Method | None = None

    def begin(self, x: Outer, key: Key) -> PyTree:
        """The carry at x, which is a constant to the derivative."""
        carry = self.estimator.init(x, self.tasks, key)
        if self.solved is None:
            return carry

        def step(state: Any) -> Any:
            i, carry, before, _ = state
            found, carry, _ = self.estimator(x, self.tasks, carry, jax.random.fold_in(key, i))
            flat = ravel_pytree(found)[0]
            return i + 1, carry, flat, jnp.linalg.norm(flat - before) / jnp.linalg.norm(flat)

        start = ravel_pytree(x)[0]
        moves = lambda state: (state[0] < SETTLING) & ~(state[3] <= AT_REST)
        return jax.lax.while_loop(moves, step, (jnp.int32(0), carry, start, jnp.ones_like(start[0])))[1]

    def direction(self, x: Outer, carry: PyTree, key: Key) -> Float[Array, " n"]:
        """Raveled; NaN where it is not finite on some task."""
        found, _, info = self.estimator(x, self.tasks, carry, key)
        flat = ravel_pytree(found)[0]
        return jnp.where(info.finite.all(), flat, jnp.nan)  # a task that is left out is not to be hidden

    def both(self, x: Outer, key: Key) -> tuple[PyTree, Scalar]:
        """All that is computed of it, in one."""
        carry = self.begin(x, key)
        return self.direction(x, carry, key), self.value(x, carry, key)

    def value(self, x: Outer, carry: PyTree, key: Key) -> Scalar:
        """Mean over the tasks."""
        if (solved := self.solved) is not None:
            keys = jax.random.split(key, leading(self.tasks))
            return jax.vmap(lambda task, k: solved.test(x, task, k)["loss"])(self.tasks, keys).mean()
        return self.estimator(x, self.tasks, carry, key)[2].loss.mean()


class Evidence(eqx.Module):
    """Slopes of a direction g along D directions d, <g, d>, beside the central differences of what it claims."""

    names: tuple[str, ...]
    leaves: tuple[int | None, ...]  # the leaf of x that a direction moves, None for all of them
    directions: Float[Array, "directions n"]
    gradient: np.ndarray
    differences: Differences
    value: float
    draws: bool  # whether random numbers have a part in it

    @property
    def slopes(self) -> np.ndarray:
        return np.asarray(self.directions, np.float64) @ self.gradient

    @property
    def coordinates(self) -> np.ndarray:
        """Which directions move one entry alone."""
        return (np.asarray(self.directions) != 0).sum(1) == 1

    @property
    def whole(self) -> np.ndarray:
        """The directions that move all of x."""
        return np.asarray(self.directions, np.float64)[[leaf is None for leaf in self.leaves]]

    @property
    def error(self) -> float:
        """Of the slopes along `whole`, as `relative_error`."""
        return relative_error(
            self.whole @ self.gradient, self.differences.value[[leaf is None for leaf in self.leaves]]
        )


def relative_error(slopes: np.ndarray, differences: np.ndarray) -> float:
    """Root mean square of what lies between them, relative to that of the differences."""
    away, size = float(np.linalg.norm(slopes - differences)), float(np.linalg.norm(differences))
    return away / size if size else (0.0 if away == 0 else np.inf)


@eqx.filter_jit
def _begin(claim: Claim, x: Outer, key: Key) -> PyTree:
    return claim.begin(x, key)


@eqx.filter_jit
def certificate_of(claim: Claim, x: Outer, key: Key) -> Certificate:
    """A row a task."""
    return claim.estimator(x, claim.tasks, claim.begin(x, key), key)[2].certificate


@eqx.filter_jit
def _direction(claim: Claim, x: Outer, carry: PyTree, key: Key) -> Float[Array, " n"]:
    return claim.direction(x, carry, key)


def _value(x: Outer, claim: Claim, carry: PyTree, key: Key) -> Scalar:
    return claim.value(x, carry, key)


def gradient_of(claim: Claim, x: Outer, key: Key) -> np.ndarray:
    """The direction, raveled."""
    return np.asarray(_direction(claim, x, _begin(claim, x, key), key), np.float64)


def differences_of(claim: Claim, x: Outer, directions: Array, key: Key) -> Differences:
    """Those of the loss, from the same carry."""
    return central_differences(_value, x, directions, claim, _begin(claim, x, key), key)


def gather(claim: Claim, x: Outer, key: Key) -> Evidence:
    """Slopes and differences in random directions, in a random direction of each leaf, and along coordinates."""
    gradient = gradient_of(claim, x, key)
    names, leaves, directions = directions_of(x, gradient, key)
    given = claim, _begin(claim, x, key), key
    value, differences = float(eqx.filter_jit(_value)(x, *given)), differences_of(claim, x, directions, key)
    return Evidence(names, leaves, directions, gradient, differences, value, draws(_value, x, *given))


def directions_of(
    x: Outer, gradient: np.ndarray, key: Key
) -> tuple[tuple[str, ...], tuple[int | None, ...], Float[Array, "directions n"]]:
    """Names, leaves and vectors: random ones; one of each leaf, or, where there are many, of those with the least
    gradient an entry; and coordinates, all of a few, or that of the largest gradient and others that are drawn."""
    flat = ravel_pytree(x)[0]
    k_random, k_leaf, k_entry = jax.random.split(key, 3)
    number = min(RANDOM, len(flat))
    found = [random_directions(x, number, k_random)]
    names = [f"random {i + 1}" for i in range(number)]
    leaves: list[int | None] = [None] * number
    paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(x)]
    ends = np.cumsum([leaf.size for _, leaf in paths])
    inside = lambda i: (np.arange(len(flat)) >= ends[i] - paths[i][1].size) & (np.arange(len(flat)) < ends[i])
    if len(paths) > 1:
        filled = [i for i, (_, leaf) in enumerate(paths) if leaf.size > 1 or len(flat) > FEW]
        least = sorted(filled, key=lambda i: float(np.nan_to_num(np.abs(gradient[inside(i)])).mean()))
        for i in sorted(least[:LEAVES]):
            drawn = random_directions(x, 1, jax.random.fold_in(k_leaf, i)) * jnp.asarray(inside(i))
            found.append(drawn / jnp.linalg.norm(drawn))
            names.append(f"x{paths[i][0]}")
            leaves.append(i)
    if len(flat) > 1:
        entries = list(range(len(flat)))
        if len(flat) > FEW:
            largest = int(np.abs(np.nan_to_num(gradient)).argmax())
            drawn = jax.random.choice(k_entry, len(flat), (COORDINATES,), replace=False)
            entries = list(dict.fromkeys([largest, *map(int, drawn)]))[:COORDINATES]
        found.append(coordinate_directions(flat, entries))
        for entry in entries:
            i = int(np.searchsorted(ends, entry, side="right"))
            name, leaf = paths[i]
            index = np.unravel_index(entry - (ends[i] - leaf.size), leaf.shape)
            names.append(f"x{name}{''.join(f'[{int(j)}]' for j in index)}")
            leaves.append(i)
    return tuple(names), tuple(leaves), jnp.concatenate(found)


def batch_of_one(problem: BilevelProblem, task: Task) -> tuple[BilevelProblem, Task]:
    """The same problem on a batch of tasks, and the batch that holds `task` alone, whatever a task is made of."""
    arrays, static = eqx.partition(task, lambda a: isinstance(a, jax.Array | np.ndarray))
    bound = with_task(problem, lambda t: eqx.combine(t[0], static))
    # a start in single precision would make single what is to be looked at in double
    posed = dataclasses.replace(bound, init=lambda *args: doubled(bound.init(*args)))
    return posed, jax.tree.map(lambda a: jnp.asarray(a)[None], (arrays, jnp.zeros(())))
