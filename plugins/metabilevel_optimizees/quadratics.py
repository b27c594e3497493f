"""Random quadratic functions (Andrychowicz et al. 2016, arXiv:1606.04474, section 3.1)."""

from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import metabilevel as mb
from metabilevel import errors

Law: TypeAlias = Literal["gaussian", "uniform"]
_LAWS = {"gaussian": "W, t ~ N(0, 1); y0 = 0", "uniform": "W, t ~ U[0, 1); y0 ~ N(0, .01^2)"}


class Linear(NamedTuple):
    """The task: `matrix` W [d, d] and `target` t [d]."""

    matrix: Float[Array, "d d"]
    target: Float[Array, " d"]


class Quadratic(mb.AbstractOptimizee):
    """f(y) = |W y - t|^2, whose minimum is zero for almost every W."""

    dimension: int = eqx.field(static=True)
    law: Law = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return f"|W y - t|^2; {_LAWS[self.law]}"

    @property
    def shapes(self) -> Any:
        return jax.eval_shape(lambda: jnp.zeros(self.dimension))

    def init(self, task, key):
        return jnp.zeros(self.dimension) if self.law == "gaussian" else 0.01 * jax.random.normal(key, (self.dimension,))

    def loss(self, y, task, key):
        return jnp.sum((task.matrix @ y - task.target) ** 2)

    def judge(self, y, task, key):
        return self.loss(y, task, key), {}


class Quadratics(mb.TaskDistribution):
    """The same law of functions in every split."""

    subject: Quadratic

    def sample(self, key, split):
        draw = jax.random.normal if self.subject.law == "gaussian" else jax.random.uniform
        k_matrix, k_target = jax.random.split(key)
        d = self.subject.dimension
        return Linear(draw(k_matrix, (d, d)), draw(k_target, (d,)))


def quadratics(*, dimension: int = 10, law: Law = "gaussian") -> Quadratics:
    """Functions |W y - t|^2 of y, a sum of squares; W and t are drawn anew for each.

    **Arguments:**

    - `dimension`: of y.
    - `law`: gaussian, W and t standard normal and y0 = 0, is the text of Andrychowicz et al.; uniform, W and t in
      [0, 1) and y0 normal of standard deviation .01, is their code, whose functions are far worse conditioned.

    **Raises:** `InputError` for a dimension below 1 or another law.
    """
    errors.count("dimension", dimension, 1)
    if law not in _LAWS:
        raise mb.InputError(f"law = {law!r}: one of {', '.join(_LAWS)} is wanted.")
    return Quadratics(Quadratic(dimension, law))
