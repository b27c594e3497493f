"""ANIL (Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157): MAML whose inner variable is the head alone."""

import optax

from metabilevel import BilevelProblem, GradientDescent, Learner, Method, Nested, Unroll


def anil(learner: Learner, *, learning_rate: float = 0.1, steps: int = 5, first_order: bool = False) -> Method:
    """Almost no inner loop: x = (body, head); y starts at the head and descends on the features of the fixed body.

    The body's support features do not change along the inner path and are computed once.

    **Arguments:**

    - `learning_rate`: inner step size, on the mean support loss; any sign.
    - `steps`: number of inner steps, 0 or more.
    - `first_order`: drops the inner Hessians.
    """
    problem = BilevelProblem(
        init=lambda x, task, key: x["head"],
        inner_loss=lambda x, y, task, key: learner.fit({"body": x["body"], "head": y}, task.support),
        outer_loss=lambda x, y, task, key: learner.test({"body": x["body"], "head": y}, task.query, task.support),
    )
    solver = GradientDescent(optax.sgd(learning_rate), steps=steps)
    return Method(problem, learner.init, Nested(problem, solver, Unroll(first_order)), solver)
