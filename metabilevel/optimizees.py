"""Optimizees: what an optimizer is learned on, and the simplest families of them."""

import abc
import inspect
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .errors import InputError
from .info import all_finite
from .problem import Inner, Key, Metrics, Scalar, Task, canonical
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
        return jax.eval_shape(lambda: self.init(self.draw(key), key))

    def init(self, task: Task, key: Key) -> Inner:
        return canonical(self.start(task, key), "y0")

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

    **Raises:** `InputError` for a function of other arguments, a y0 that holds other than floating arrays, a loss that
    gives no floating scalar, or where y0, the loss there or its gradient is not finite.
    """
    _require_arguments(init, "init", "task", "key")
    _require_arguments(loss, "loss", "y", "task", "key")
    _require_arguments(sample, "sample", "key")
    key = jax.random.key(0)
    task = sample(key)
    given = init(task, key)
    try:
        y = canonical(given, "y0")
    except TypeError as error:
        raise InputError(f"init: {error}") from error
    out = eqx.filter_eval_shape(loss, y, task, key)
    if not (isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        array = isinstance(out, jax.ShapeDtypeStruct)
        said, hint = (f"{out.dtype}{list(out.shape)}", " Take the mean or the sum of a vector.") if array else (out, "")
        raise InputError(f"loss gives {said}: one floating scalar is wanted.{hint}")
    value, gradient = jax.value_and_grad(loss)(y, task, key)
    for name, tree in {"y0": y, "loss": value, "the gradient of loss": gradient}.items():
        if not all_finite(tree):
            raise InputError(
                f"{name} is not finite at the y0 of init, where every optimizer starts: start elsewhere, or change the "
                "loss there."
            )
    return Drawn(Given(sample, init, loss))


def _require_arguments(function: Callable[..., object], name: str, *arguments: str) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        given = getattr(function, "__name__", repr(function))
        raise InputError(
            f"{name} is {given}, which cannot be called as {name}({', '.join(arguments)}): {error}. "
            "The order is from_function(init, loss, sample)."
        ) from error
    except ValueError:  # of a builtin, whose arguments nobody knows
        return
