"""Tasks: what is drawn anew for every inner problem."""

import abc
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
from equinox import AbstractVar
from jaxtyping import Array, Float, Int, PyTree

from .problem import Key, Task

Split: TypeAlias = Literal["train", "valid", "test"]


class Data(NamedTuple):
    """Examples `inputs` [n, ...] and their `targets` [n, ...] (integers for classes)."""

    inputs: Float[Array, "n ..."]
    targets: Array


class Episode(NamedTuple):
    """A supervised task: adapt on `support`, judge on `query`.

    `truth` is what generated it, where that is known. `id` is its number where training has finitely many tasks, each
    visited again and again with other examples: below `Learner.pool` in training, and -1 for any other task.
    """

    support: Data
    query: Data
    truth: PyTree = None
    id: Int[Array, ""] | None = None


class TaskDistribution(eqx.Module):
    """A family of tasks. Its data sets are array fields, so that they are arguments of compiled code, not constants.

    `subject` is what a method is built on: a `Learner` for supervised tasks.
    """

    subject: AbstractVar[Any]

    @abc.abstractmethod
    def sample(self, key: Key, split: Split) -> Task:
        """One task of `split`; a pure function of `key` that can be traced and vmapped."""


def sample_batch(tasks: TaskDistribution, key: Key, split: Split, size: int) -> Task:
    """`size` independent tasks of `split`, stacked along a new leading axis."""
    return jax.vmap(lambda k: tasks.sample(k, split))(jax.random.split(key, size))
