"""From an update rule to a method: how the weights of a learned optimizer are trained, whatever the rule."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp

import metabilevel as mb
from metabilevel import errors

Weights: TypeAlias = Literal["all", "last"]
Objective: TypeAlias = Literal["loss", "log"]
Estimator: TypeAlias = Literal["truncated", "es", "pes"]


def trained(
    rule: mb.AbstractRule,
    subject: mb.AbstractOptimizee | mb.Learner,
    *,
    steps: int = 100,
    window: int = 20,
    weights: Weights = "all",
    objective: Objective = "loss",
    second_order: bool = False,
    estimator: Estimator = "truncated",
    deviation: float = 0.01,
    clip: float | None = None,
    batch: int | None = None,
) -> mb.Method:
    """x, the weights of `rule`, by the losses along the path of the optimizer that it is.

    On a learner's tasks, the network is trained on minibatches of the support set, and the query set judges it.

    **Arguments:**

    - `steps`: of the optimizer in a training, the horizon.
    - `window`: steps between two updates of the optimizer's weights; it divides the horizon.
    - `weights`: of the losses along the way: one each, or the last one's alone.
    - `objective`: what is lowered: the losses, or their logarithms.
    - `second_order`: keeps the derivatives of the optimizee's gradients, which are dropped otherwise.
    - `estimator`: truncated backpropagation, evolution strategies, or persistent ones.
    - `deviation`: of the noise on the weights in evolution strategies.
    - `clip`: the largest norm of the gradient of one run; any if none.
    - `batch`: examples of a step where a task is a data set, drawn with replacement; all of them if none.
    """
    if not isinstance(subject, mb.AbstractOptimizee | mb.Learner):
        kind = type(subject).__name__
        raise mb.InputError(f"A learned optimizer is built on an optimizee or a learner, and was given a {kind}.")
    if batch is not None:
        errors.count("batch", batch, 1)
    optimizee = subject if isinstance(subject, mb.AbstractOptimizee) else Supervised(subject, batch)
    training, test = Objectives(optimizee, objective == "log"), Objectives(optimizee, False)
    problem = mb.BilevelProblem(training.init, training.inner_loss, training.along)
    solver = mb.RuleDescent(rule, steps=steps)
    last = jnp.zeros(steps).at[-1:].set(1) if weights == "last" else None
    options: dict[str, Any] = {"window": window, "weights": last, "clip": clip}
    match estimator:
        case "truncated":
            adjoint = mb.Unroll(first_order=not second_order, checkpoint="step")
            estimate = mb.Truncated(problem, solver, adjoint, **options)
        case "es":
            estimate = mb.EvolutionStrategies(problem, solver, deviation, **options)
        case "pes":
            estimate = mb.PersistentES(problem, solver, deviation, **options)
    judged = mb.BilevelProblem(test.init, test.inner_loss, test.at_the_end)
    return mb.Method(judged, lambda key: rule.init(optimizee.shapes, key), estimate, solver)


def method_of(rule: Callable[..., mb.AbstractRule]) -> Callable[..., mb.Method]:
    """The plugin that trains a rule: its options are the fields of the class `rule` and those of `trained`."""
    own = dataclasses.fields(rule)  # pyright: ignore[reportArgumentType]

    def plugin(subject: Any, **given: Any) -> mb.Method:
        chosen = {field.name: given.pop(field.name) for field in own if field.name in given}
        return trained(rule(**chosen), subject, **given)

    _, subject, *common = inspect.signature(trained).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(f.name, keyword, default=f.default, annotation=f.type) for f in own]
    plugin.__signature__ = inspect.Signature([subject, *options, *common])  # pyright: ignore[reportFunctionMemberAccess]
    (about, own_help), (_, help) = (
        inspect.cleandoc(each.__doc__ or "").split("**Arguments:**") for each in (rule, trained)
    )
    plugin.__doc__ = f"{about}**Arguments:**\n\n{own_help.strip()}\n{help.strip()}"
    return plugin


class Supervised(mb.AbstractOptimizee):
    """The training of a learner's network on the support set of a task; the query set judges."""

    learner: mb.Learner
    batch: int | None = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return self.learner.protocol

    @property
    def shapes(self) -> Any:
        return jax.eval_shape(self.learner.init, jax.random.key(0))

    def init(self, task: mb.Episode, key: Any) -> Any:
        return self.learner.init(key)

    def loss(self, y: Any, task: mb.Episode, key: Any) -> Any:
        inputs, targets = task.support
        if self.batch is None or self.batch >= len(targets):
            return self.learner.fit(y, task.support)
        rows = jax.random.randint(key, (self.batch,), 0, len(targets))
        return self.learner.fit(y, jax.tree.map(lambda a: a[rows], mb.Data(inputs, targets)))

    def judge(self, y: Any, task: mb.Episode, key: Any) -> Any:
        return self.learner.test(y, task.query, task.support)


class Objectives(eqx.Module):
    """The functions of the bilevel problem of an optimizee. They are methods, so that its data sets are arguments of
    compiled code."""

    optimizee: mb.AbstractOptimizee
    log: bool = eqx.field(static=True)

    def init(self, x: Any, task: Any, key: Any) -> Any:
        return self.optimizee.init(task, key)

    def inner_loss(self, x: Any, y: Any, task: Any, key: Any) -> Any:
        return self.optimizee.loss(y, task, key)

    def along(self, x: Any, y: Any, task: Any, key: Any) -> Any:
        loss = self.optimizee.loss(y, task, key)
        return jnp.log(loss) if self.log else loss

    def at_the_end(self, x: Any, y: Any, task: Any, key: Any) -> Any:
        return self.optimizee.judge(y, task, key)
