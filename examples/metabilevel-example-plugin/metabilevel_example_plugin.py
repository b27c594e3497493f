"""An outside plugin: one method, written against the public names of metabilevel alone."""

import optax

import metabilevel as mb


def sign_maml(learner: mb.Learner, *, learning_rate: float = 0.01, steps: int = 1) -> mb.Method:
    """MAML whose inner steps follow the sign of the gradient (Fan, Ram & Liu 2021, arXiv:2109.07497).

        y <- y - learning_rate * sign(grad G(y)),   `steps` times, from y = x

    The sign has derivative zero almost everywhere, so that dy/dx is the identity: the full hypergradient costs what a
    first-order one does.

    **Arguments:**

    - `learning_rate`: how far one inner step moves each weight.
    - `steps`: number of inner steps.
    """
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: learner.fit(y, task.support),
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )
    solver = mb.GradientDescent(optax.sign_sgd(learning_rate), steps)
    return mb.Method(problem, learner.init, mb.Nested(problem, solver, mb.Unroll()), solver)
