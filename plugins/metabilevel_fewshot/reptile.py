"""Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999).

Its step x - y_k is the gradient in x of F(x, y) = |x - y|^2 / 2 with y held constant.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from metabilevel import (
    Data,
    Episode,
    GradientDescent,
    InputError,
    Learner,
    Method,
    Nested,
    StopGradient,
    Trajectory,
)

from .descent import PARTS, adaptation, estimator
from .policy import Policy, policies


@policies(learning_rate=0.02, steps=5, adapts="all", head="meta")
def reptile(
    learner: Learner,
    train: Policy,
    test: Policy,
    *,
    batch: int = 10,
    optimizer: Literal["sgd", "adam"] = "sgd",
    test_batch: int | None = None,
    combine: Literal["sum", "mean", "last"] = "sum",
) -> Method:
    """Reptile: y runs `steps` of minibatch descent on a task's training set, and x moves towards y_k.

    A task's training set is its support and query sets together, gone through in shuffled epochs; at test y sees the
    support set alone. Adam has beta_1 = 0 and starts anew at every task (the authors' code carries its moments).

    **Arguments:**

    - `batch`: examples in an inner minibatch; all, where there are no more.
    - `optimizer`: of the inner steps.
    - `test_batch`: examples in a minibatch at test; the whole support set if none.
    - `combine`: which inner steps make the outer one (section 6.2): their sum, their mean, or the last one alone.
    """
    for name, value in [("batch", batch), ("test_batch", test_batch)]:
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: at least one example is wanted.")
    if combine != "sum" and train.steps < 1:
        raise InputError(f"combine = {combine!r} needs at least one inner step; steps = {train.steps}.")
    inner = {"sgd": optax.sgd, "adam": lambda rate: optax.adam(rate, b1=0.0)}[optimizer]
    whole = lambda task: task._replace(support=everything(task))
    solver = GradientDescent(inner(train.learning_rate), train.steps, minibatches(batch, whole))
    tester = GradientDescent(inner(test.learning_rate), test.steps, minibatches(test_batch) if test_batch else None)
    judged, start = (adaptation(learner, policy, features=False) for policy in (test, train))
    parts = [part for part in PARTS[train.adapts] if part != "head" or train.head == "meta"]
    if not parts:
        raise InputError(f"adapts = 'head' with head = {train.head!r} leaves nothing that Reptile would learn.")

    def outer_loss(x, y, task, key):
        last = y if combine != "last" else jax.tree.map(lambda a: a[-1], y)
        move = {
            "sum": lambda part: jax.tree.map(jnp.subtract, last[part], x[part]),
            "mean": lambda part: jax.tree.map(lambda a, b: (a - b) / train.steps, last[part], x[part]),
            "last": lambda part: jax.tree.map(lambda a: a[-1] - a[-2], y[part]),
        }[combine]
        moves = jax.lax.stop_gradient({part: move(part) for part in parts})
        distances = {part: jax.tree.map(_half_square, x[part], moves[part]) for part in parts}
        loss, metrics = start.objective(x, last, task, key)
        return jax.tree.reduce(jnp.add, distances), {"query_loss": loss, **metrics}

    trained = replace(start, outer_loss=outer_loss)
    if combine == "last":
        if train.head == "stored":
            raise InputError("combine = 'last' keeps whole paths, and so no stored heads.")
        return Method(judged, learner.init, Nested(trained, Trajectory(solver), StopGradient()), tester)
    return Method(judged, learner.init, estimator(learner, train, trained, solver, StopGradient()), tester)


def _half_square(a, move):
    """|a - (a + move)|^2 / 2, whose derivative in the first a is -move."""
    return jnp.sum((a - jax.lax.stop_gradient(a + move)) ** 2) / 2


def everything(task: Episode) -> Data:
    """Support and query examples as one set."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), task.support, task.query)


def minibatches(size: int, of: Callable[[Episode], Episode] = lambda task: task) -> Callable:
    """What step i sees: `size` examples of the support set of `of(task)` (all, where there are no more).

    They are cut out of one shuffle after another, each an epoch; what is left over of a shuffle is passed by.
    """

    def minibatch(task, key, i):
        task = of(task)
        n = task.support.inputs.shape[0]
        k = min(size, n)
        epoch, at = i // (n // k), i % (n // k)
        shuffled = jax.random.permutation(jax.random.fold_in(key, epoch), n)
        chosen = jax.lax.dynamic_slice(shuffled, (at * k,), (k,))
        return task._replace(support=jax.tree.map(lambda a: a[chosen], task.support))

    return minibatch
