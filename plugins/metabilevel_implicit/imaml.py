"""Implicit MAML: adaptation that is pulled back to x, and a hypergradient that forgets the way."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from metabilevel import (
    AbstractIterativeSolver,
    BilevelProblem,
    ConjugateGradient,
    GradientDescent,
    Implicit,
    InputError,
    Learner,
    Method,
    Nested,
    Neumann,
)

from .hessian_free import HessianFree
from .imaml_code import CodeInverse, LatePull


def imaml(
    learner: Learner,
    *,
    strength: float = 2.0,
    inner: Literal["gd", "hessian-free"] = "gd",
    learning_rate: float = 0.01,
    steps: int = 16,
    cg_steps: int = 5,
    damping: float | None = None,
    variant: Literal["text", "code"] = "text",
    test_steps: int | None = None,
    test_strength: float | None = None,
) -> Method:
    """Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019, arXiv:1909.04630): x is where the networks of tasks start,
    and to where each is drawn back,

        minimise over x   query loss of y(x),    y(x) = argmin_y  support loss + strength |y - x|^2 / 2,

    whose hypergradient, by the implicit function theorem, is v with (I + H / strength) v = d(query loss)/dy for the
    Hessian H of the support loss at y(x): in memory that does not grow with the inner steps.

    **Arguments:**

    - `strength`: of the pull to x, lambda in the paper; positive.
    - `inner`: gradient descent, or conjugate gradients of 5 iterations for a direction and a line search along it.
    - `learning_rate`: of gradient descent; .1 suits Omniglot, and diverges on sinusoids.
    - `steps`: of the inner solver, from x.
    - `cg_steps`: conjugate gradients on the linear system; 0 takes H for 0, so that the hypergradient is the query
      gradient at y, as in first-order MAML (in the authors' code 1 does so, too).
    - `damping`: added to the diagonal of I + H / strength, with `cg_steps` above 0; 0 for the text and 1 for the code,
      if not given.
    - `variant`: what the paper says, or what the authors' code does: steps on the support loss alone and one step on
      the pull alone, and (1 + damping) v + H v / (strength + 10) = d(query loss)/dy.
    - `test_steps`: of the inner solver at test; as in training if none.
    - `test_strength`: of the pull at test; as in training if none, and 0 in the authors' evaluation.

    **Raises:** `InputError` for a `strength` that is not positive, a negative `damping` or `test_strength`, the code's
    Hessian-free solver, which was not released, or tasks that have other ways at test than in training.
    """
    if not strength > 0:
        raise InputError(f"strength = {strength}: a positive number is wanted, or nothing depends on x.")
    for name, value in {"damping": damping, "test_strength": test_strength}.items():
        if value is not None and not value >= 0:
            raise InputError(f"{name} = {value}: 0 or more is wanted.")
    if (inner, variant) == ("hessian-free", "code"):
        raise InputError("variant = 'code': the authors' code has gradient descent only; take inner = 'gd'.")
    if learner.ways is not None and learner.ways[0] != learner.ways[1]:
        raise InputError(f"train_ways = {learner.ways[0]} and ways = {learner.ways[1]}: one head serves all tasks.")

    def solver(steps: int, strength: float) -> AbstractIterativeSolver:
        if inner == "hessian-free":
            return HessianFree(steps=steps)
        if variant == "code" and strength > 0:
            return LatePull(learning_rate, strength, steps=steps + 1)
        return GradientDescent(optax.sgd(learning_rate), steps)

    if cg_steps == 0:
        inverse = Neumann(0, 1 / strength)
    elif variant == "text":
        inverse = ConjugateGradient(cg_steps, strength * (damping or 0.0))
    else:
        inverse = CodeInverse(cg_steps, strength, 1.0 if damping is None else damping)
    problem = pulled(learner, strength)
    at_test = strength if test_strength is None else test_strength
    return Method(
        pulled(learner, at_test),
        learner.init,
        Nested(problem, solver(steps, strength), Implicit(inverse)),
        solver(steps if test_steps is None else test_steps, at_test),
    )


def pulled(learner: Learner, strength: float) -> BilevelProblem:
    """y starts at x and fits the support set, at a price of strength |y - x|^2 / 2."""
    square = lambda a, b: jnp.sum((a - b) ** 2)
    price = lambda x, y: strength / 2 * sum(jax.tree.leaves(jax.tree.map(square, y, x)))
    return BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: learner.fit(y, task.support) + price(x, y),
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )
