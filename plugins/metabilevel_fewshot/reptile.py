"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999).

Its step x - y_k is the gradient in x of F(x, y) = |x - y|^2 / 2 with y held constant.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from metabilevel import Data, Episode, GradientDescent, InputError, Learner, Method, Nested, StopGradient

from .maml import initialisation


def reptile(
    learner: Learner,
    *,
    learning_rate: float = 0.02,
    steps: int = 5,
    batch: int = 10,
    optimizer: Literal["sgd", "adam"] = "sgd",
    test_batch: int | None = None,
) -> Method:
    """Reptile: y runs `steps` of minibatch descent on a task's training set, and x moves towards y_k.

    A task's training set is its support and query sets together; at test y sees the support set alone. Adam has
    beta_1 = 0 and starts anew at every task (the authors' code carries its moments from task to task).

    **Arguments:**

    - `learning_rate`: inner step size, on the mean loss of a minibatch.
    - `steps`: number of inner steps.
    - `batch`: examples in an inner minibatch; consecutive ones come from one shuffle, as epochs do.
    - `optimizer`: of the inner steps.
    - `test_batch`: examples in a minibatch at test; the whole support set if none.
    """
    for name, value in [("batch", batch), ("test_batch", test_batch)]:
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: at least one example is wanted.")
    judged = initialisation(learner)
    inner = {"sgd": optax.sgd, "adam": lambda rate: optax.adam(rate, b1=0.0)}[optimizer]
    solver = GradientDescent(inner(learning_rate), steps=steps)

    def minibatch_loss(x, y, task, key):
        return learner.fit(y, minibatch(everything(task), key, batch))

    def test_loss(x, y, task, key):
        return learner.fit(y, minibatch(task.support, key, test_batch) if test_batch else task.support)

    def distance(x, y, task, key):
        squares = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2) / 2, x, y)
        loss, metrics = judged.objective(x, y, task, key)
        return jax.tree.reduce(jnp.add, squares), {"query_loss": loss, **metrics}

    trained = eqx.tree_at(lambda p: (p.inner_loss, p.outer_loss), judged, (minibatch_loss, distance))
    judged = eqx.tree_at(lambda p: p.inner_loss, judged, test_loss)
    return Method(judged, learner.init, Nested(trained, solver, StopGradient()), solver)


def everything(task: Episode) -> Data:
    """Support and query examples as one set."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)


def minibatch(data: Data, key, size: int) -> Data:
    """`size` distinct examples drawn by `key` (all of them, where there are no more)."""
    n = data.inputs.shape[0]
    chosen = jax.random.permutation(key, n)[: min(size, n)]
    return jax.tree.map(lambda a: a[chosen], data)
