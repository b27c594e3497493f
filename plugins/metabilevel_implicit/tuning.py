"""What the methods of hyperparameter optimisation share: train on the support set, judge on the query set."""

from collections.abc import Callable
from typing import Any, Literal

import optax

from metabilevel import (
    GMRES,
    AbstractAdjoint,
    AbstractInnerSolver,
    AbstractInverse,
    BiCGSTAB,
    BilevelProblem,
    ConjugateGradient,
    Dense,
    GradientDescent,
    Identity,
    InputError,
    Learner,
    Method,
    Nested,
    Neumann,
    Nystrom,
    WarmStarted,
    errors,
)

Optimizer = Literal["sgd", "momentum", "adam"]
Inverse = Literal["neumann", "cg", "normal-cg", "identity", "dense", "nystrom", "gmres", "bicgstab"]


def tuning(
    learner: Learner,
    init: Callable[[Any], Any],
    inner_loss: Callable[[Any, Any, Any], Any],
    *,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint,
    test_solver: AbstractInnerSolver,
    warm_start: bool = True,
) -> Method:
    """minimise over x the loss of y(x) on the query set, where y(x) lowers `inner_loss(x, y, task)`.

    With `warm_start` the weights of one outer step are the start of the next; a test trains from a fresh start by
    `test_solver`.
    """
    problem = BilevelProblem(
        init=lambda x, task, key: learner.init(key),
        inner_loss=lambda x, y, task, key: inner_loss(x, y, task),
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )
    estimator = (WarmStarted if warm_start else Nested)(problem, solver, adjoint)
    return Method(problem, init, estimator, test_solver)


def descent(optimizer: Optimizer, learning_rate: float, steps: int) -> GradientDescent:
    """`steps` full-batch steps of gradient descent, with a momentum of .9, or of Adam."""
    momentum = lambda rate: optax.sgd(rate, momentum=0.9)
    # where a gradient is exactly zero, Adam's square root has no derivative without eps_root
    adam = lambda rate: optax.adam(rate, eps_root=1e-12)
    return GradientDescent({"sgd": optax.sgd, "momentum": momentum, "adam": adam}[optimizer](learning_rate), steps)


def inverse(name: Inverse, terms: int, scale: float | None, damping: float) -> AbstractInverse:
    """An inverse by its name; `terms` are those of the series, iterations, or the rank of the sketch.

    **Raises:** `InputError` for negative `terms`, or a scale or damping that this inverse has no use for.
    """
    errors.count("terms", terms, 0)
    if scale is not None and name != "neumann":
        raise InputError(f"scale = {scale}: only the inverse 'neumann' has a scale, not {name!r}.")
    if damping and name not in ("cg", "normal-cg", "nystrom"):
        raise InputError(f"damping = {damping}: only 'cg', 'normal-cg' and 'nystrom' are damped, not {name!r}.")
    match name:
        case "neumann":
            return Neumann(terms, scale)
        case "cg" | "normal-cg":
            return ConjugateGradient(terms, damping, normal=name == "normal-cg")
        case "identity":
            return Identity()
        case "dense":
            return Dense()
        case "nystrom":
            return Nystrom(terms, damping or 1e-2)
        case "gmres":
            return GMRES(terms)
        case "bicgstab":
            return BiCGSTAB(terms)
