"""MAML and first-order MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400)."""

from typing import Literal

import optax

from metabilevel import BilevelProblem, GradientDescent, Learner, Method, Nested, Unroll


def initialisation(learner: Learner) -> BilevelProblem:
    """x is an initialisation: y starts at x, fits the support set, and is judged on the queries."""
    return BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: learner.fit(y, task.support),
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )


def maml(
    learner: Learner,
    *,
    learning_rate: float = 0.4,
    steps: int = 1,
    first_order: bool = False,
    mixed_mode: bool = False,
    checkpoint: Literal["step", "sqrt"] | None = None,
) -> Method:
    """MAML: minimise over x the query loss of y_k, where y_0 = x and y_{i+1} = y_i - learning_rate dG/dy(y_i).

    **Arguments:**

    - `learning_rate`: inner step size, on the mean support loss; any sign.
    - `steps`: number of inner steps, 0 or more.
    - `first_order`: drops the inner Hessians.
    - `mixed_mode`: Hessian products by forward-over-reverse: the same gradient in less memory.
    - `checkpoint`: `step` or `sqrt` stores less of a long inner path, at the price of time.
    """
    problem = initialisation(learner)
    solver = GradientDescent(optax.sgd(learning_rate), steps=steps)
    adjoint = Unroll(first_order, checkpoint, mixed_mode)
    return Method(problem, learner.init, Nested(problem, solver, adjoint), solver)


def fomaml(learner: Learner, *, learning_rate: float = 0.4, steps: int = 1) -> Method:
    """First-order MAML: MAML whose inner gradients count as constants (Finn et al. 2017, section 5.2).

    **Arguments:**

    - `learning_rate`: inner step size, on the mean support loss; any sign.
    - `steps`: number of inner steps, 0 or more.
    """
    return maml(learner, learning_rate=learning_rate, steps=steps, first_order=True)
