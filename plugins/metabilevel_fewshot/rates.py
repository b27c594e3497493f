"""Learned inner rates: Meta-SGD, and a rate of every leaf and step with the multi-step loss of MAML++."""

from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp

from metabilevel import (
    AbstractAdjoint,
    AbstractEstimator,
    AbstractIterativeSolver,
    BilevelProblem,
    Descent,
    InputError,
    Learner,
    Method,
    Nested,
    Trajectory,
    Unroll,
)

from .descent import PARTS, descent, sgd
from .policy import Policy, policies


@policies(learning_rate=0.1, steps=1, adapts="all", head="meta")
def meta_sgd(learner: Learner, train: Policy, test: Policy, *, first_order: bool = False) -> Method:
    """Meta-SGD: one rate for every weight, learned with the initialisation; it may turn negative.

    Li, Zhou, Chen & Li 2017, arXiv:1707.09835. The rates start at `learning_rate`; a `test_learning_rate` takes their
    place at test.

    **Arguments:**

    - `first_order`: drops the inner Hessians.
    """
    start = lambda y: jax.tree.map(lambda a: jnp.full_like(a, train.learning_rate), y)
    return _learned(learner, train, test, start, lambda rates, i: rates, Unroll(first_order))


@policies(learning_rate=0.1, steps=5, adapts="all", head="meta")
def lslr(learner: Learner, train: Policy, test: Policy, *, first_order: bool = False, multi_step: int = 0) -> Method:
    """LSLR: one rate for every layer's array and every inner step, learned with the initialisation (MAML++).

    Antoniou, Edwards & Storkey 2019, arXiv:1810.09502. The rates start at `learning_rate`; steps beyond those of
    training have the last one's; a `test_learning_rate` takes their place at test.

    **Arguments:**

    - `first_order`: drops the inner Hessians.
    - `multi_step`: outer steps over which the outer loss goes from the mean over all inner steps to the last one
      (MAML++: 7,500); 0 for the last one from the start.
    """
    start = lambda y: jax.tree.map(lambda a: jnp.full(max(train.steps, 1), train.learning_rate, float), y)
    at = lambda rates, i: jax.tree.map(lambda a: a[jnp.minimum(i, len(a) - 1)], rates)
    method = _learned(learner, train, test, start, at, Unroll(first_order))
    if not multi_step:
        return method
    if multi_step < 0 or train.steps < 1 or train.head == "stored":
        raise InputError(
            f"multi_step = {multi_step}: a positive number, at least one inner step and no stored heads are wanted."
        )
    nested = cast(Nested, method.estimator)
    solver = cast(AbstractIterativeSolver, nested.solver)
    return replace(method, estimator=MultiStep(nested.problem, solver, nested.adjoint, multi_step))


def _learned(learner: Learner, train: Policy, test: Policy, start, at, adjoint: AbstractAdjoint):
    """`descent` at x["rates"], which begin as `start(initialisation)` and are `at(rates, i)` in step i."""

    def init(key):
        y = learner.init(key)
        return {**y, "rates": start(y)}

    def solver(policy: Policy) -> AbstractIterativeSolver:
        if policy.learning_rate != train.learning_rate:
            return sgd(policy)
        parts = PARTS["all" if policy.head == "random" and policy.adapts == "body" else policy.adapts]
        return Descent(lambda x, i: at({part: x["rates"][part] for part in parts}, i), steps=policy.steps)

    return descent(learner, train, test, adjoint, init=init, solver=solver)


class MultiStep(AbstractEstimator):
    """`Nested` whose outer loss is a weighted mean over the points y_1 ... y_k of the inner path (MAML++, section 4).

    Weights go, within `annealed` outer steps, from 1/k each to .03/k each and the rest on y_k, along a line. Metrics
    are those of y_k.
    """

    problem: BilevelProblem
    solver: AbstractIterativeSolver
    adjoint: AbstractAdjoint
    annealed: int

    def init(self, x, tasks, key):
        return jnp.zeros((), jnp.int32)

    def __call__(self, x, tasks, carry, key):
        k = self.solver.steps
        early = jnp.maximum(1 - carry / self.annealed, 0.03) / k
        weights = jnp.full(k, early).at[-1].set(1 - (k - 1) * early)

        def outer_loss(x, path, task, key):
            points = jax.tree.map(lambda a: a[1:], path)
            losses, metrics = jax.vmap(lambda y: self.problem.objective(x, y, task, key))(points)
            return weights @ losses, jax.tree.map(lambda a: a[-1], metrics)

        problem = replace(self.problem, outer_loss=outer_loss)
        nested = Nested(problem, Trajectory(self.solver), self.adjoint, task_chunk=self.task_chunk)
        direction, _, info = nested(x, tasks, None, key)
        return direction, carry + 1, info
