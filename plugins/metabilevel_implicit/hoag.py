"""HOAG: hyperparameters by approximate gradients, whose errors fall on a schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import metabilevel as mb
from metabilevel import errors

from .hyperparameters import Per, decays, penalty
from .inexact import HOAG
from .tuning import tuning

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "quadratic": lambda k: 0.1 * k**-2.0,
    "cubic": lambda k: 0.1 * k**-3.0,
    "exponential": lambda k: 0.1 * 0.9**k,
}


def hoag(
    learner: mb.Learner,
    *,
    per: Per = "leaf",
    decay: float = 1e-3,
    schedule: Literal["quadratic", "cubic", "exponential"] = "exponential",
    steps: int = 1000,
    iterations: int = 100,
) -> mb.Method:
    """HOAG (Pedregosa 2016, arXiv:1602.02355): weight decays by inexact hypergradients, with steps of its own.

        minimise over x   loss of y(x) on the query set,   y(x) = argmin_y  loss on the support set + sum exp(x) y^2 / 2

    L-BFGS, from where it stood, and conjugate gradients stop at a tolerance that falls with the outer step k. To be
    run with `--meta-batch 1 --outer-optimizer sgd --outer-learning-rate 1`: the step sizes are the method's own.

    **Arguments:**

    - `per`: what has a decay of its own, the net, each of its arrays, or every weight.
    - `decay`: at the start; positive.
    - `schedule`: of the tolerance: quadratic is .1 / k^2, cubic .1 / k^3, exponential .1 * .9^k.
    - `steps`: of L-BFGS, at most; at test it stops at a gradient of 1e-6.
    - `iterations`: of conjugate gradients, at most.

    **Raises:** `InputError` for a decay without a logarithm, or no steps or iterations.
    """
    errors.count("steps", steps, 1)
    errors.count("iterations", iterations, 1)
    if not decay > 0:
        raise mb.InputError(f"decay = {decay}: a positive number is wanted, of which x is the logarithm.")
    inner_loss = lambda x, y, task: learner.fit(y, task.support) + penalty(x, y)
    solve = lambda tolerance: mb.JaxoptSolver("LBFGS", maxiter=steps, tol=tolerance)
    method = tuning(
        learner, lambda key: decays(learner, per, decay, key), inner_loss,
        solver=solve(1e-6), adjoint=mb.Unroll(), test_solver=solve(1e-6),
    )  # fmt: skip
    adjoint = lambda tolerance: mb.Implicit(mb.ConjugateGradient(iterations, tolerance=tolerance))
    estimate = lambda solver, tolerance: mb.WarmStarted(method.problem, solver, adjoint(tolerance))
    return dataclasses.replace(method, estimator=HOAG(method.problem, solve, estimate, SCHEDULES[schedule]))
