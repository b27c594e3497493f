"""An update rule at work on the functions of a family: the bilevel problem of a learned optimizer, whose x are the
weights of the rule and whose y is what the rule updates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .errors import InputError, count
from .estimators import Nested
from .learner import Learner
from .method import Method
from .optimizees import AbstractOptimizee
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Scalar
from .rules import AbstractRule, RuleDescent
from .tasks import Data, Episode


class Supervised(AbstractOptimizee):
    """The training of a learner's network on the support set of a task; the query set judges.

    `batch` examples of a step are drawn with replacement; all of them serve where it is None or no smaller.
    """

    learner: Learner
    batch: int | None = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return self.learner.protocol

    @property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.eval_shape(self.learner.init, jax.random.key(0))

    def init(self, task: Episode, key: Key) -> Inner:
        return self.learner.init(key)

    def loss(self, y: Inner, task: Episode, key: Key) -> Scalar:
        inputs, targets = task.support
        if self.batch is None or self.batch >= len(targets):
            return self.learner.fit(y, task.support)
        rows = jax.random.randint(key, (self.batch,), 0, len(targets))
        return self.learner.fit(y, jax.tree.map(lambda a: a[rows], Data(inputs, targets)))

    def judge(self, y: Inner, task: Episode, key: Key) -> tuple[Scalar, Metrics]:
        return self.learner.test(y, task.query, task.support)


class Objectives(eqx.Module):
    """The functions of the bilevel problem of an optimizee. They are methods, so that its data sets are arguments of
    compiled code. `log`: along the way the logarithm of a loss takes its place."""

    optimizee: AbstractOptimizee
    log: bool = eqx.field(static=True, default=False)

    def init(self, x: Outer, task: Any, key: Key) -> Inner:
        return self.optimizee.init(task, key)

    def inner_loss(self, x: Outer, y: Inner, task: Any, key: Key) -> Scalar:
        return self.optimizee.loss(y, task, key)

    def along(self, x: Outer, y: Inner, task: Any, key: Key) -> Scalar:
        loss = self.optimizee.loss(y, task, key)
        return jnp.log(loss) if self.log else loss

    def at_the_end(self, x: Outer, y: Inner, task: Any, key: Key) -> tuple[Scalar, Metrics]:
        return self.optimizee.judge(y, task, key)


def optimizee_of(subject: AbstractOptimizee | Learner, batch: int | None = None) -> AbstractOptimizee:
    """What is minimised where a family's subject is `subject`; `batch` as in `Supervised`.

    **Raises:** `InputError` for a subject of another kind, and a batch below one.
    """
    if not isinstance(subject, AbstractOptimizee | Learner):
        kind = type(subject).__name__
        raise InputError(f"A learned optimizer is built on an optimizee or a learner, and was given a {kind}.")
    if batch is not None:
        count("batch", batch, 1)
    return subject if isinstance(subject, AbstractOptimizee) else Supervised(subject, batch)


def unrolled(
    rule: AbstractRule, subject: AbstractOptimizee | Learner, *, steps: int, batch: int | None = None
) -> Method:
    """`rule` as an optimizer of `steps` steps, judged at their end; x is trained through all of them at once.

    **Raises:** `InputError` as `optimizee_of`.
    """
    optimizee = optimizee_of(subject, batch)
    objectives = Objectives(optimizee)
    problem = BilevelProblem(objectives.init, objectives.inner_loss, objectives.at_the_end)
    solver = RuleDescent(rule, steps=steps)
    return Method(problem, lambda key: rule.init(optimizee.shapes, key), Nested(problem, solver), solver)
