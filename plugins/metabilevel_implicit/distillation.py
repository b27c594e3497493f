"""Training images as outer variables."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from metabilevel import (
    BilevelProblem,
    Data,
    Descent,
    Implicit,
    InputError,
    Learner,
    Method,
    Nested,
    Unroll,
    WarmStarted,
    errors,
)

from .examples import minibatch
from .tuning import Inverse, Optimizer, descent
from .tuning import inverse as by_name


def distillation(
    learner: Learner,
    *,
    per_class: int = 1,
    noise: float = 0.01,
    soft_labels: bool = False,
    learn_rate: bool = False,
    decay: float = 0.0,
    adjoint: Literal["unroll", "implicit"] = "unroll",
    inverse: Inverse = "neumann",
    terms: int = 20,
    scale: float | None = None,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.1,
    steps: int = 20,
    test_steps: int | None = None,
    batch: int | None = None,
    warm_start: bool = False,
) -> Method:
    """A few images from which a net learns what it learns from all (Maclaurin et al. 2015, arXiv:1502.03492; by the
    implicit function theorem Lorraine et al. 2020, arXiv:1911.02590):

        minimise over x   loss of y(x) on the support set,   y(x) lowers   loss on the images x + decay |y|^2 / 2

    with x = {"inputs": [classes per_class, ...]}, soft labels as logits {"targets": [classes per_class, classes]} and
    the logarithm of the inner rate {"log_rate": scalar} where wanted. The real images of the support set are what is
    distilled; the query set judges a test, and x is learned without it.

    **Arguments:**

    - `per_class`: images of a class.
    - `noise`: standard deviation of the pixels at the start.
    - `soft_labels`: whether the labels are learned too; from e times as likely as any other class.
    - `learn_rate`: whether the inner learning rate is learned too.
    - `decay`: of the weights in the inner loss, without which the theorem's Hessian is singular.
    - `adjoint`: unroll differentiates the inner steps, implicit the condition of a minimum.
    - `inverse`: of the inner Hessian, for implicit.
    - `terms`: of that inverse: of the series, iterations, or the rank of the sketch.
    - `scale`: of the Neumann series; 1 / the largest eigenvalue if not given.
    - `optimizer`: of the inner problem, on all images of x.
    - `learning_rate`: of that optimizer.
    - `steps`: of that optimizer.
    - `test_steps`: of that optimizer at test; as `steps` if not given.
    - `batch`: real images that judge an outer step, drawn with replacement; all of them if not given.
    - `warm_start`: whether the weights are kept from one outer step to the next.

    **Raises:** `InputError` for a learned rate with implicit, with another optimizer than sgd, or not positive.
    """
    errors.count("per_class", per_class, 1)
    errors.number("noise", noise, 0)
    errors.number("decay", decay, 0)
    if batch is not None:
        errors.count("batch", batch, 1)
    if learn_rate and adjoint == "implicit":
        raise InputError("learn_rate: a minimum does not depend on the rate of the steps to it; take adjoint=unroll.")
    if learn_rate and optimizer != "sgd":
        raise InputError(f"learn_rate: only the rate of the optimizer 'sgd' is learned, not that of {optimizer!r}.")
    if learn_rate and learning_rate <= 0:
        raise InputError(f"learning_rate = {learning_rate}: its logarithm is learned, and it must be positive.")
    labels = jnp.repeat(jnp.arange(learner.network.outputs), per_class)

    def init(key: Any) -> Any:
        x = {"inputs": noise * jax.random.normal(key, (len(labels), *_shape(learner)))}
        soft = {"targets": jax.nn.one_hot(labels, learner.network.outputs)} if soft_labels else {}
        return x | soft | ({"log_rate": jnp.log(jnp.asarray(learning_rate, float))} if learn_rate else {})

    def inner_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
        outputs, shrink = learner.predict(y, x["inputs"]), decay / 2 * optax.tree_utils.tree_norm(y, squared=True)
        if soft_labels:
            return optax.softmax_cross_entropy(outputs, jax.nn.softmax(x["targets"])).mean() + shrink
        return learner.loss(outputs, labels) + shrink

    def solver(steps: int) -> Any:
        rate = lambda x, i: jnp.exp(x["log_rate"])
        return Descent(rate, steps=steps) if learn_rate else descent(optimizer, learning_rate, steps)

    judged = lambda x, y, data: learner.test(y, data, Data(x["inputs"], labels))
    tested = BilevelProblem(
        init=lambda x, task, key: learner.init(key),
        inner_loss=inner_loss,
        outer_loss=lambda x, y, task, key: judged(x, y, task.query),
    )
    outer_loss = lambda x, y, task, key: judged(x, y, minibatch(task.support, batch, key))
    trained = dataclasses.replace(tested, outer_loss=outer_loss)
    implicit = Implicit(by_name(inverse, terms, scale, 0.0))
    derivative = Unroll() if adjoint == "unroll" else implicit
    estimator = (WarmStarted if warm_start else Nested)(trained, solver(steps), derivative)
    return Method(tested, init, estimator, solver(steps if test_steps is None else test_steps))


def _shape(learner: Learner) -> tuple[int, ...]:
    """Of one input: an image's, or a vector's for a net that flattens its inputs."""
    network = learner.network
    if (shape := getattr(network, "in_shape", None)) is not None:
        return shape
    if (size := getattr(network, "in_size", None)) is not None:
        return (size,)
    raise InputError(f"The network {type(network).__name__} has neither in_shape nor in_size: of which shape is x?")
