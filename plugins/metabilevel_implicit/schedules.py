"""Learning rates, one for every array and step, as outer variables."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from metabilevel import AbstractIterativeSolver, BilevelProblem, InputError, Learner, Method, Nested, Unroll, errors

from .examples import minibatch


def learned_schedules(
    learner: Learner,
    *,
    learn: Literal["rates", "all"] = "rates",
    learning_rate: float = 0.3,
    momentum: float = 0.5,
    init_scale: float = 0.05,
    steps: int = 100,
    batch: int | None = 200,
) -> Method:
    """Learning-rate schedules by gradient descent (Maclaurin et al. 2015, arXiv:1502.03492):

        minimise over x   loss on the support set of y_K,   y_0 = s n,   n normal,
        v <- m_i v - (1 - m_i) g_i,     y_{i+1} = y_i + r_i v,     g_i on a minibatch

    where every array of the parameters has its own r_i = exp(x["log_rate"][i]) for each of the K steps; so it has its
    own momenta m_i, as logits x["logit_momentum"][i], and its own scale s, as x["log_scale"], where they are learned.
    Every outer step has a fresh start and fresh minibatches. Steps are computed again on the way back, in segments of
    about sqrt(K), where the paper runs them backwards. The query set judges a test, and x is learned without it.

    **Arguments:**

    - `learn`: the rates, or all: rates, momenta and scales.
    - `learning_rate`: of all arrays and steps at the start, positive.
    - `momentum`: of all arrays and steps at the start, above 0 and below 1.
    - `init_scale`: standard deviation of all weights and biases at the start, positive.
    - `steps`: of a training, K.
    - `batch`: examples of a step, drawn with replacement; all of them if none.

    **Raises:** `InputError` for numbers outside these bounds.
    """
    if not 0 < momentum < 1:
        raise InputError(f"momentum = {momentum}: a number above 0 and below 1 is wanted.")
    for name, value in {"learning_rate": learning_rate, "init_scale": init_scale}.items():
        if value <= 0:
            raise InputError(f"{name} = {value}: a positive number is wanted.")
    if batch is not None:
        errors.count("batch", batch, 1)

    def init(key: Any) -> Any:
        fill = lambda value, shape: jax.tree.map(
            lambda a: jnp.full(shape, value, float), jax.eval_shape(learner.init, key)
        )
        x = {"log_rate": fill(jnp.log(learning_rate), steps)}
        if learn == "all":
            x |= {"logit_momentum": fill(jnp.log(momentum / (1 - momentum)), steps)}
            x |= {"log_scale": fill(jnp.log(init_scale), ())}
        return x

    def start(x: Any, task: Any, key: Any) -> Any:
        leaves, structure = jax.tree.flatten(jax.eval_shape(learner.init, key))
        keys = jax.random.split(key, len(leaves))
        noise = structure.unflatten([jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)])
        if learn == "all":
            return jax.tree.map(lambda log, a: jnp.exp(log) * a, x["log_scale"], noise)
        return jax.tree.map(lambda a: init_scale * a, noise)

    def problem(part: str) -> BilevelProblem:
        inner_loss = lambda x, y, task, key: learner.fit(y, task.support)
        outer_loss = lambda x, y, task, key: learner.test(y, getattr(task, part), task.support)
        return BilevelProblem(start, inner_loss, outer_loss)

    drawn = lambda task, key, i: task._replace(support=minibatch(task.support, batch, jax.random.fold_in(key, i)))
    solver = ScheduledMomentum(momentum, steps=steps, minibatch=drawn)
    return Method(problem("query"), init, Nested(problem("support"), solver, Unroll(checkpoint="sqrt")), solver)


class ScheduledMomentum(AbstractIterativeSolver):
    """v <- m_i v - (1 - m_i) dG/dy,  y <- y + exp(x["log_rate"][i]) v, for every array; m_i = `momentum` where x has
    no "logit_momentum"."""

    momentum: float

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x, y):
        return jax.tree.map(jnp.zeros_like, y), jnp.zeros((), jnp.int32)

    def step(self, x, gradient_fn, y, state):
        velocity, i = state
        fixed = jax.tree.map(lambda _: self.momentum, y)
        logits = x.get("logit_momentum")
        m = fixed if logits is None else jax.tree.map(lambda a: jax.nn.sigmoid(a[i]), logits)
        velocity = jax.tree.map(lambda m, v, g: m * v - (1 - m) * g, m, velocity, gradient_fn(y))
        return jax.tree.map(lambda a, log, v: a + jnp.exp(log[i]) * v, y, x["log_rate"], velocity), (velocity, i + 1)

    def residual(self, problem, x, y, task, key):
        return jax.grad(problem.inner_loss, 1)(x, y, task, key)
