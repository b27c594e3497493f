"""From an update rule to a method: how the weights of a learned optimizer are trained, whatever the rule."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

import metabilevel as mb
from metabilevel import optimizing

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

    - `steps`: steps of the optimizer in a training, the horizon.
    - `window`: steps between two updates of the optimizer's weights; it divides the horizon.
    - `weights`: which losses along the way count: all of them alike, or the last one alone.
    - `objective`: what is lowered: the losses, or their logarithms (of positive losses).
    - `second_order`: whether derivatives of the optimizee's gradients are kept; otherwise they are dropped.
    - `estimator`: truncated backpropagation, evolution strategies, or persistent evolution strategies.
    - `deviation`: standard deviation of the noise on the weights in evolution strategies.
    - `clip`: the norm above which the gradient of one run is scaled down to it; never if none.
    - `batch`: examples of a step where a task is a data set, drawn with replacement; all of them if none.
    """
    if second_order and estimator != "truncated":
        raise mb.InputError(f"second_order = True: the estimator {estimator!r} takes no derivative of the run.")
    if batch is not None and isinstance(subject, mb.AbstractOptimizee):
        raise mb.InputError(f"batch = {batch}: the functions of this family draw their minibatches themselves.")
    method = optimizing.unrolled(rule, subject, steps=steps, batch=batch)
    training = optimizing.Objectives(optimizing.optimizee_of(subject, batch), objective == "log")
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
    return dataclasses.replace(method, estimator=estimate)


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
