"""Heads in closed form: y is a function of the features of the support set, and of nothing else of the body."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metabilevel import BilevelProblem, ClosedForm, Data, InputError, Learner, Method, Nested

from .descent import featured

Head: TypeAlias = Any


def closed_form(
    learner: Learner,
    formula: Callable[[Any, Data], Head],
    inner_loss: Callable[[Any, Head, Data], Float[Array, ""]],
    outputs: Callable[[Any, Head, Data, Float[Array, "m d"]], Float[Array, "m k"]],
    *,
    init: Callable[[Any], dict[str, Any]] = lambda key: {},
    stationarity: Callable[[Any, Head, Data], Any] | None = None,
) -> Method:
    """x = {"body": ..., and the variables that `init(key)` gives}; y = `formula(x, support)`.

    **Arguments:** `support` are the features of the support set with their targets; `inner_loss(x, y, support)` is
    what y minimises; `outputs(x, y, support, features)` are those of queries; `stationarity(x, y, support)` vanishes
    at y where that is not the gradient of `inner_loss`.
    """
    support = lambda z, task: Data(z["support"], task.support.targets)
    solve = lambda z, task: formula(z, support(z, task))

    def problem(training: bool) -> BilevelProblem:
        return BilevelProblem(
            init=lambda z, task, key: solve(z, task),
            inner_loss=lambda z, y, task, key: inner_loss(z, y, support(z, task)),
            outer_loss=lambda z, y, task, key: learner.judge(outputs(z, y, support(z, task), z["query"]), task.query),
            prepare=lambda x, task, key: featured(learner, x, task, key if training else None),
        )

    zero = None if stationarity is None else lambda z, y, task: stationarity(z, y, support(z, task))
    solver = ClosedForm(solve, zero)

    def start(key):
        k_body, k_rest = jax.random.split(key)
        return {"body": learner.init(k_body)["body"], **init(k_rest)}

    return Method(problem(False), start, Nested(problem(True), solver), solver)


def one_hot(learner: Learner, support: Data) -> Float[Array, "n k"]:
    """Labels as rows of the unit matrix; k is the largest number of classes that a task can have.

    **Raises:** `InputError`, before compilation, for targets that are no classes.
    """
    if not is_labelled(support):
        raise InputError(f"This head separates classes, and the targets of these tasks are {support.targets.dtype}.")
    return jax.nn.one_hot(support.targets, learner.network.outputs)


def is_labelled(support: Data) -> bool:
    """Whether the targets are classes, in place of numbers."""
    return jnp.issubdtype(support.targets.dtype, jnp.integer)


def among(classes: Float[Array, "n k"], scores: Float[Array, "m k"]) -> Float[Array, "m k"]:
    """`scores`, and minus infinity for a class that the task does not have: `classes` is `one_hot` of its support."""
    return jnp.where(classes.any(0), scores, -jnp.inf)


def with_bias(features: Float[Array, "n d"]) -> Float[Array, "n e"]:
    """A last column of ones."""
    return jnp.concatenate([features, jnp.ones((features.shape[0], 1), features.dtype)], 1)


def positive(name: str, value: float | int) -> float | int:
    """`value`, if it is above zero."""
    if not value > 0:
        raise InputError(f"{name} = {value}: a positive number is wanted.")
    return value
