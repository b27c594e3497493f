"""Optimizees: what an optimizer is learned on, and the simplest families of them."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .errors import InputError
from .problem import Inner, Key, Metrics, Scalar, Task
from .tasks import Split, TaskDistribution


class AbstractOptimizee(eqx.Module):
    """A family of functions f_t(y) to be minimised. What all of them share, data sets say, are its array fields; a
    task holds what is the function's own, and is small: a learned optimizer keeps one for every run that goes on."""

    @property
    @abc.abstractmethod
    def protocol(self) -> str:
        """What must be said beside every loss."""

    @property
    @abc.abstractmethod
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Structure, shapes and types of y."""

    @abc.abstractmethod
    def init(self, task: Task, key: Key) -> Inner:
        """y_0, where an optimizer starts."""

    @abc.abstractmethod
    def loss(self, y: Inner, task: Task, key: Key) -> Scalar:
        """f_t(y), or its estimate on a minibatch that `key` draws: what an optimizer descends and is trained by."""

    @abc.abstractmethod
    def judge(self, y: Inner, task: Task, key: Key) -> tuple[Scalar, Metrics]:
        """The loss that a test reports, with metrics."""


class Given(AbstractOptimizee):
    """The optimizee of `from_function`."""

    draw: Callable[[Key], Task]
    start: Callable[[Task, Key], Inner]
    function: Callable[[Inner, Task, Key], Scalar]

    @property
    def protocol(self) -> str:
        return "given function"

    @property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        key = jax.random.key(0)
        return jax.eval_shape(lambda: self.start(self.draw(key), key))

    def init(self, task: Task, key: Key) -> Inner:
        return self.start(task, key)

    def loss(self, y: Inner, task: Task, key: Key) -> Scalar:
        return self.function(y, task, key)

    def judge(self, y: Inner, task: Task, key: Key) -> tuple[Scalar, Metrics]:
        return self.function(y, task, key), {}


class Drawn(TaskDistribution):
    """The same law of tasks in every split."""

    subject: Given

    def sample(self, key: Key, split: Split) -> Task:
        return self.subject.draw(key)


def from_function(
    init: Callable[[Task, Key], Inner],
    loss: Callable[[Inner, Task, Key], Scalar],
    sample: Callable[[Key], Task] = lambda key: jnp.zeros(()),
) -> TaskDistribution:
    """A task family out of an optimizee of one's own.

    **Arguments:**

    - `init(task, key) -> y0`: a pytree of floating arrays.
    - `loss(y, task, key) -> scalar`: f_t(y); a minibatch is drawn by `key`.
    - `sample(key) -> task`: what tells one function of the family from another, a pytree of arrays; they are all
      the same if it is not given.

    **Raises:** `InputError` for a loss that gives no floating scalar, or a y0 or a loss there that is not finite.
    """
    key = jax.random.key(0)
    tasks = Drawn(Given(sample, init, loss))
    task = sample(key)
    y = init(task, key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        where = jax.tree_util.keystr(path)
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InputError(f"init gives y{where} of type {jnp.result_type(leaf)}: floating arrays are wanted.")
        if not jnp.isfinite(leaf).all():
            raise InputError(f"init gives a y{where} that is not finite.")
    value = jnp.asarray(loss(y, task, key))
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"loss gives {value.dtype}{list(value.shape)}: one floating scalar is wanted. Take a mean.")
    if not jnp.isfinite(value):
        raise InputError(f"loss is {value} at the y0 of init, where every optimizer starts: a finite one is wanted.")
    return tasks
