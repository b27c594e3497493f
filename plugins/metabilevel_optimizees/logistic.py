"""Regularised logistic regression on random data: convex functions, each with a minimum of its own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import metabilevel as mb
from metabilevel import errors


class Logistic(mb.AbstractOptimizee):
    """f(y) = mean_i log(1 + exp(-s_i x_i . y)) + penalty / 2 |y|^2. A task holds the rows s_i x_i [n, d]."""

    dimension: int = eqx.field(static=True)
    penalty: float = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return f"logistic loss on the data of the task + {self.penalty / 2:g} |y|^2, from y0 = 0"

    @property
    def shapes(self) -> Any:
        return jax.eval_shape(lambda: jnp.zeros(self.dimension))

    def init(self, task: Float[Array, "n d"], key):
        return jnp.zeros(self.dimension)

    def loss(self, y, task, key):
        return jax.nn.softplus(-task @ y).mean() + self.penalty / 2 * jnp.sum(y**2)

    def judge(self, y, task, key):
        right = (1 + jnp.sign(task @ y)) / 2  # a half where y cannot decide, as y0
        return self.loss(y, task, key), {"accuracy": right.mean()}


class Regressions(mb.TaskDistribution):
    """x = A z and P(s = 1 | x) = 1 / (1 + exp(-w . z)), with A_ij ~ N(0, 1 / d), z ~ N(0, I), w ~ N(0, I): features
    are correlated, differently in every task, and the classes overlap. All splits are one distribution."""

    subject: Logistic
    examples: int = eqx.field(static=True)

    def sample(self, key, split):
        k_mixing, k_inputs, k_truth, k_labels = jax.random.split(key, 4)
        n, d = self.examples, self.subject.dimension
        z = jax.random.normal(k_inputs, (n, d))
        positive = jax.random.bernoulli(k_labels, jax.nn.sigmoid(z @ jax.random.normal(k_truth, (d,))))
        mixed = z @ jax.random.normal(k_mixing, (d, d)) / d**0.5
        return jnp.where(positive[:, None], mixed, -mixed)


def logistic(*, dimension: int = 10, examples: int = 100, penalty: float = 0.01) -> Regressions:
    """Logistic regressions with L2 penalty on data drawn anew for each: strongly convex, from log 2 downwards.

    **Arguments:**

    - `dimension`: of an example, and of y.
    - `examples`: of a task; all of them are in every gradient.
    - `penalty`: the factor of |y|^2 / 2.

    **Raises:** `InputError` for a size below 1 or a negative penalty.
    """
    errors.count("dimension", dimension, 1)
    errors.count("examples", examples, 1)
    errors.number("penalty", penalty, 0)
    return Regressions(Logistic(dimension, penalty), examples)
