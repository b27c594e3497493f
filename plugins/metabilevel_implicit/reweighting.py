"""A net that weighs training examples by their loss."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metabilevel import MLP, BilevelProblem, GradientDescent, Learner, Method, Unroll, WarmStarted, errors

from .examples import losses, minibatch


def reweighting(
    learner: Learner,
    *,
    hidden: int = 100,
    batch: int | None = 100,
    learning_rate: float = 0.1,
    test_steps: int = 500,
) -> Method:
    """Meta-Weight-Net (Shu et al. 2019, arXiv:1902.07379, section 2): the weight of an example is a function of its
    loss, an MLP V with one hidden layer of ReLUs and a sigmoid, whose parameters are x:

        y <- y - learning_rate d/dy sum over i of w_i l_i(y),   w_i = V(l_i; x) / sum over j of V(l_j; x),
        x <- x - rate d/dx loss of y on the query set

    where l_i is example i's loss, a constant in V. The derivative goes through this one step; the net's weights y go
    on from step to step. The paper takes the step a second time with the new x, where here the next step has it, and
    reports the y that was trained along with x, where a test here trains anew with the last x.

    **Arguments:**

    - `hidden`: width of the MLP.
    - `batch`: examples of an inner step, and of an outer loss in training, drawn with replacement; all if none.
    - `learning_rate`: of the step.
    - `test_steps`: from a fresh start, to judge x.
    """
    if batch is not None:
        errors.count("batch", batch, 1)
    network = MLP(1, (hidden,), 1)

    def inner_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
        found = losses(learner, y, task.support)
        features = network.body(x["body"], jax.lax.stop_gradient(found)[:, None])
        weights = jax.nn.softmax(jax.nn.log_sigmoid(network.head(x["head"], features)[:, 0]))
        return jnp.sum(weights * found)

    def problem(batch: int | None) -> BilevelProblem:
        return BilevelProblem(
            init=lambda x, task, key: learner.init(key),
            inner_loss=inner_loss,
            outer_loss=lambda x, y, task, key: learner.test(y, minibatch(task.query, batch, key), task.support),
        )

    def solver(steps: int) -> GradientDescent:
        drawn = lambda task, key, i: task._replace(support=minibatch(task.support, batch, jax.random.fold_in(key, i)))
        return GradientDescent(optax.sgd(learning_rate), steps, drawn)

    estimator = WarmStarted(problem(batch), solver(1), Unroll())
    return Method(problem(None), network.init, estimator, solver(test_steps))
