"""A weight for every training example, learned on clean ones."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metabilevel import (
    BilevelProblem,
    Implicit,
    InputError,
    Learner,
    Method,
    Nested,
    Unroll,
    WarmStarted,
    errors,
)

from .examples import losses
from .tuning import Inverse, Optimizer, descent
from .tuning import inverse as by_name
from .weights import capped, detection


def hypercleaning(
    learner: Learner,
    *,
    examples: int = 1000,
    constraint: Literal["sigmoid", "l1-ball"] = "sigmoid",
    radius: float | None = None,
    threshold: float = 0.5,
    decay: float = 0.1,
    adjoint: Literal["unroll", "implicit"] = "implicit",
    inverse: Inverse = "cg",
    terms: int = 10,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.1,
    steps: int = 10,
    test_steps: int = 500,
    warm_start: bool = True,
) -> Method:
    """Data hyper-cleaning (Franceschi et al. 2017, arXiv:1703.01785): which labels are wrong?

        minimise over x   loss of y(x) on the query set,
        y(x) = argmin_y   mean over i of w_i loss(y, example i of the support set) + decay |y|^2 / 2

    with w = sigmoid(x), or the projection of x onto {0 <= w <= 1, sum w <= radius}, whose own derivative is in the
    hypergradient: a weight at 0 or 1 has none. Where the family knows which labels are wrong
    (`Episode.truth["corrupted"]`), the metrics say how well they are found, a small weight taken for a finding:
    `precision` of the found are wrong, `recall` of the wrong are found, `f1` is their harmonic mean; 0 for 0 / 0.

    **Arguments:**

    - `examples`: of the support set; x has a number for each.
    - `constraint`: sigmoid, or l1-ball, the weights in [0, 1] whose sum is bounded.
    - `radius`: that bound; half the examples if not given.
    - `threshold`: an example of a weight below it is found wrong.
    - `decay`: of the net's weights.
    - `adjoint`: unroll differentiates the inner steps, implicit the condition of a minimum.
    - `inverse`: of the inner Hessian, for implicit.
    - `terms`: of that inverse: iterations, of the series, or the rank of the sketch.
    - `optimizer`: of the inner problem, on the full batch.
    - `learning_rate`: of that optimizer.
    - `steps`: of that optimizer between two outer steps.
    - `test_steps`: from a fresh start, to judge x.
    - `warm_start`: whether the net's weights are kept from one outer step to the next.

    **Raises:** `InputError` for a radius that is not positive or has no use, or another number of examples.
    """
    errors.count("examples", examples, 1)
    errors.number("decay", decay, 0)
    errors.number("threshold", threshold, 0, above=True)
    if radius is not None and (constraint == "sigmoid" or radius <= 0):
        raise InputError(f"radius = {radius}: a positive number is wanted, with the constraint 'l1-ball' only.")
    bound = examples / 2 if radius is None else radius
    weights = jax.nn.sigmoid if constraint == "sigmoid" else lambda x: capped(x, bound)

    def inner_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
        found = losses(learner, y, task.support)
        if len(found) != examples:
            raise InputError(f"examples = {examples}: the support set has {len(found)}; --examples says how many.")
        return jnp.mean(weights(x) * found) + decay / 2 * optax.tree_utils.tree_norm(y, squared=True)

    def outer_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
        loss, metrics = learner.test(y, task.query, task.support)
        known = isinstance(task.truth, dict) and "corrupted" in task.truth
        return loss, metrics | (detection(weights(x) < threshold, task.truth["corrupted"]) if known else {})

    problem = BilevelProblem(lambda x, task, key: learner.init(key), inner_loss, outer_loss)
    implicit = Implicit(by_name(inverse, terms, None, 0.0))
    derivative = Unroll() if adjoint == "unroll" else implicit
    solver = lambda steps: descent(optimizer, learning_rate, steps)
    estimator = (WarmStarted if warm_start else Nested)(problem, solver(steps), derivative)
    start = 0.0 if constraint == "sigmoid" else min(1.0, bound / examples)
    return Method(problem, lambda key: jnp.full(examples, start, float), estimator, solver(test_steps))
