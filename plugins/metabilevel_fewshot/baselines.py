"""What meta-learning must beat, and what it cannot."""

import optax

from metabilevel import BilevelProblem, ClosedForm, GradientDescent, InputError, Learner, Method, Nested

from .maml import initialisation


def union(learner: Learner, *, learning_rate: float = 0.01, steps: int = 10) -> Method:
    """One network on the union of all tasks, then fine-tuned: MAML trained with k = 0 inner steps.

    The `pretrained` baseline of Finn et al. 2017 (section 5.1).

    **Arguments:**

    - `learning_rate`: step size of the fine-tuning on a new task's support set; any sign.
    - `steps`: number of fine-tuning steps on a new task.
    """
    problem = initialisation(learner)
    tuning = optax.sgd(learning_rate)
    return Method(
        problem, learner.init, Nested(problem, GradientDescent(tuning, steps=0)), GradientDescent(tuning, steps=steps)
    )


def scratch(learner: Learner, *, learning_rate: float = 0.01, steps: int = 10) -> Method:
    """No meta-learning: every task is fitted from a fresh random initialisation; there is nothing to train.

    **Arguments:**

    - `learning_rate`: step size on the support set; any sign.
    - `steps`: number of steps.
    """
    judged = initialisation(learner)
    problem = BilevelProblem(lambda x, task, key: learner.init(key), judged.inner_loss, judged.outer_loss)
    solver = GradientDescent(optax.sgd(learning_rate), steps=steps)
    return Method(problem, lambda key: {}, Nested(problem, solver), solver)


def oracle(learner: Learner) -> Method:
    """The prediction of one who knows the truth behind each task; there is nothing to train or to adapt."""
    truth = learner.oracle
    if truth is None:
        raise InputError("These tasks do not say what generated them, so nobody knows the best prediction.")
    problem = BilevelProblem(
        init=lambda x, task, key: {},
        inner_loss=lambda x, y, task, key: learner.judge(truth(task, task.support.inputs), task.support)[0],
        outer_loss=lambda x, y, task, key: learner.judge(truth(task, task.query.inputs), task.query),
    )
    solver = ClosedForm(lambda x, task: {})
    return Method(problem, lambda key: {}, Nested(problem, solver), solver)
