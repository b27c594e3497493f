"""Mixed linear regression (Bernacchia 2021, arXiv:2102.00940, section 3)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metabilevel import AbstractNetwork, Data, Episode, InputError, Learner, TaskDistribution


class Linear(AbstractNetwork):
    """output = inputs @ weights, from weights of zero; there is neither a body nor a bias."""

    in_size: int = eqx.field(static=True)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def batch_statistics(self) -> bool:
        return False

    def init(self, key):
        return {"body": {}, "head": {"weights": jnp.zeros((self.in_size, 1))}}

    def activations(self, params, inputs, key=None):
        return []

    def body(self, params, inputs, key=None):
        return inputs

    def head(self, params, features):
        return features @ params["weights"]


class Mixture(TaskDistribution):
    """y = w . x + noise, with x ~ N(0, I), w ~ N(0, spread^2 / p I) for p inputs, and noise of standard deviation
    `noise`. Training tasks have sizes of their own; all splits are one distribution."""

    subject: Learner
    inputs: int = eqx.field(static=True)
    sizes: tuple[int, int] = eqx.field(static=True)
    train_sizes: tuple[int, int] = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    spread: float = eqx.field(static=True)

    def sample(self, key, split):
        k_weights, k_inputs, k_noise = jax.random.split(key, 3)
        shots, queries = self.train_sizes if split == "train" else self.sizes
        weights = self.spread / self.inputs**0.5 * jax.random.normal(k_weights, (self.inputs, 1))
        x = jax.random.normal(k_inputs, (shots + queries, self.inputs))
        y = x @ weights + self.noise * jax.random.normal(k_noise, (shots + queries, 1))
        return Episode(Data(x[:shots], y[:shots]), Data(x[shots:], y[shots:]), {"weights": weights})


def half_squared_error(outputs: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, ""]:
    """Half the mean over all entries of (outputs - targets)^2."""
    return jnp.mean((outputs - targets) ** 2) / 2


def mixture(
    *,
    inputs: int = 60,
    shots: int = 20,
    queries: int = 50,
    train_shots: int = 30,
    train_queries: int = 2,
    noise: float = 1.0,
    spread: float = 0.5,
) -> Mixture:
    """Linear regressions whose weights are drawn about zero; half the mean squared error. The default is Figure 2.

    **Arguments:**

    - `inputs`: of a linear model without bias, p.
    - `shots`, `queries`: support and query points of a task for validation or test.
    - `train_shots`, `train_queries`: those of a training task.
    - `noise`: standard deviation of the targets about the truth.
    - `spread`: standard deviation of w . x over tasks and inputs; that of one weight is spread / sqrt(p).

    **Raises:** `InputError` for a count below 1 or a negative standard deviation.
    """
    counts = {"inputs": inputs, "shots": shots, "queries": queries, "train_shots": train_shots}
    for name, count in (counts | {"train_queries": train_queries}).items():
        if count < 1:
            raise InputError(f"{name} = {count}: at least 1 is wanted.")
    for name, deviation in {"noise": noise, "spread": spread}.items():
        if deviation < 0:
            raise InputError(f"{name} = {deviation}: a standard deviation of 0 or more is wanted.")
    learner = Learner(Linear(inputs), half_squared_error, oracle=lambda task, x: x @ task.truth["weights"])
    return Mixture(learner, inputs, (shots, queries), (train_shots, train_queries), noise, spread)
