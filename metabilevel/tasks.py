"""Tasks: what is drawn anew for every inner problem."""

import abc
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Int, PyTree

from .devices import spread
from .problem import Key, Task

Split: TypeAlias = Literal["train", "valid", "test"]
Inputs: TypeAlias = PyTree[Array]


class Data(NamedTuple):
    """Examples `inputs` [n, ...] and their `targets` [n, ...] (integers for classes).

    `inputs` may be a pytree of arrays [n, ...], for a network that takes one, such as one of sparse rows.
    """

    inputs: Inputs
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

    `subject` is what a method is built on: a `Learner` for supervised tasks. `single` says that every draw is the same
    task, as a data set is for hyperparameter optimisation: one is then enough. `episodes` are drawn for a judgement
    where nothing else is asked for: fewer where each is the training of a network.
    """

    single: ClassVar[bool] = False
    episodes: ClassVar[int] = 600
    subject: AbstractVar[Any]

    @abc.abstractmethod
    def sample(self, key: Key, split: Split) -> Task:
        """One task of `split`; a pure function of `key` that can be traced and vmapped."""


def sample_batch(tasks: TaskDistribution, key: Key, split: Split, size: int) -> Task:
    """`size` independent tasks of `split`, stacked along a new leading axis."""
    draw = lambda tasks, keys: jax.vmap(lambda k: tasks.sample(k, split))(keys)
    return spread(draw, tasks, jax.random.split(key, size))


def pooled(key: Key, pool: int | None, split: Split) -> tuple[Int[Array, ""] | None, Key, Key]:
    """Which task of a pool of `pool` is drawn: its number, the key of the task, and the key of its examples.

    The number is uniform, and the task's key a function of the number alone: a task of which it makes all but the
    examples is the same at every visit, and in every larger pool. Outside training the number is -1, and without a
    pool there is none; both keys are then `key`.
    """
    if pool is None:
        return None, key, key
    if split != "train":
        return jnp.int32(-1), key, key
    k_number, k_examples = jax.random.split(key)
    number = jax.random.randint(k_number, (), 0, pool, jnp.int32)
    return number, jax.random.fold_in(jax.random.key(0), number), k_examples
