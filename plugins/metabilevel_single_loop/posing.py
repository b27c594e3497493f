"""What the single-loop methods share: the problem that a subject poses, and the schedules of their steps."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array
from metabilevel_implicit.hyperparameters import decays, penalty
from metabilevel_implicit.imaml import pulled

import metabilevel as mb
from metabilevel import errors

Objective = Literal["decay", "proximal"]
Schedule: TypeAlias = Callable[[Array], Array]


class Decaying(eqx.Module):
    """rate (t + 1)^-exponent for t = 0, 1, ... Both are arrays, so that other values need no other program."""

    rate: Array
    exponent: Array

    def __call__(self, t: Array) -> Array:
        return self.rate * (t + 1) ** -self.exponent


def real(value: float | Array) -> Array:
    """As an array, so that another value needs no other program."""
    return jnp.asarray(value, float)


def scheduled(rate: float | Schedule) -> Schedule:
    """A schedule, any of optax for instance, as it is; a number as one that stays."""
    return rate if callable(rate) else decaying(rate)


def decaying(rate: float, exponent: float = 0.0, name: str = "exponent") -> Decaying:
    """A step size that falls as (t + 1)^-exponent, or stays.

    **Raises:** `InputError` for a rate that is not positive, or an exponent outside [0, 1].
    """
    errors.number("learning_rate", rate, 0, above=True)
    if not 0 <= exponent <= 1:
        raise mb.InputError(f"{name} = {exponent}: a step size falls as (t + 1)^-{name}, with one from 0 to 1.")
    return Decaying(real(rate), real(exponent))


def posed(subject: Any, loop: mb.AbstractSingleLoop, objective: Objective, batch: int | None) -> mb.Method:
    """`loop` on the problem of a `Posed` subject, or on one that a learner's tasks pose.

    **Raises:** `InputError` for a subject of another kind, or a network whose loss is no mean over examples.
    """
    minibatches = None if batch is None else mb.Minibatches(batch)
    if isinstance(subject, mb.Posed):
        p = subject
        return mb.Method(p.problem, p.init, mb.SingleLoop(p.problem, loop, minibatches), p.solver)
    if not isinstance(subject, mb.Learner):
        raise mb.InputError(f"the subject is {errors.kind(subject)}: a Learner or a Posed problem is wanted.")
    if minibatches is not None and subject.network.batch_statistics:
        raise mb.InputError(
            f"batch = {batch}: the network normalises over its batch, so that its loss is no mean over examples and "
            "needs all of them. Take a network without batch statistics, or no batch (none)."
        )
    if objective == "decay":
        problem = mb.BilevelProblem(
            init=lambda x, task, key: subject.init(key),
            inner_loss=lambda x, y, task, key: subject.fit(y, task.support) + penalty(x, y),
            outer_loss=lambda x, y, task, key: subject.test(y, task.query, task.support),
        )
        init = lambda key: decays(subject, "leaf", 1e-3, key)
    else:
        problem, init = pulled(subject, 2.0), subject.init
    slots = {"slots": subject.pool, "slot": lambda task: task.id} if subject.pool else {}
    solver = mb.GradientDescent(optax.adam(0.01), 500)  # whatever the curvature, it stays finite
    return mb.Method(problem, init, mb.SingleLoop(problem, loop, minibatches, **slots), solver)
