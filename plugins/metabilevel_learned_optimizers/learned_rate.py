"""The smallest learned optimizer: a step size for each array."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import metabilevel as mb
from metabilevel import errors

from .training import method_of


class LearnedRate(mb.AbstractRule):
    """y_a <- y_a - exp(x_a) g_a, with one weight x_a, the logarithm of a step size, for each array a of y.

    **Arguments:**

    - `learning_rate`: the step size of every array that training starts from.
    """

    learning_rate: float = eqx.field(static=True, default=0.01)

    def __check_init__(self):
        errors.number("learning_rate", self.learning_rate, 0, above=True)

    def init(self, y: Any, key: Any) -> Any:
        return {"log_rates": jax.tree.map(lambda a: jnp.asarray(math.log(self.learning_rate), float), y)}

    def start(self, x: Any, y: Any) -> Any:
        return None

    def update(self, x: Any, gradients: Any, state: Any, y: Any) -> Any:
        return jax.tree.map(lambda rate, g: -jnp.exp(rate) * g, x["log_rates"], gradients), state


learned_rate = method_of(LearnedRate)
