"""The optimizers that a learned one is compared with, as update rules whose only weight is the learning rate."""

import math
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel import errors

from .training import method_of

Optimizer: TypeAlias = Literal["sgd", "momentum", "nag", "rmsprop", "adam"]

# Under Adam's root, 1e-16 keeps its derivative finite at a zero gradient, and is no more than the 1e-8 outside of it.
_AT_RATE_1 = {
    "sgd": optax.sgd(1.0),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "nag": optax.sgd(1.0, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(1.0, decay=0.99),
    "adam": optax.adam(1.0, eps_root=1e-16),
}


class HandMade(mb.AbstractRule):
    """y <- y + exp(x["log_rate"]) u, where u is the step of an optimizer of optax at the learning rate 1.

    The rate is a weight, so that a grid of rates needs one compilation, and training tunes it by its hypergradient.
    Momentum is .9, RMSprop's decay .99 and Adam's are .9 and .999.

    **Arguments:**

    - `optimizer`: gradient descent, that with momentum, with Nesterov's, RMSprop, or Adam.
    - `learning_rate`: the rate that training starts from.
    """

    optimizer: Optimizer = eqx.field(static=True, default="adam")
    learning_rate: float = eqx.field(static=True, default=0.01)

    def __check_init__(self):
        if self.optimizer not in get_args(Optimizer):
            raise mb.InputError(f"optimizer = {self.optimizer!r}: one of {', '.join(get_args(Optimizer))} is wanted.")
        errors.number("learning_rate", self.learning_rate, 0, above=True)

    def init(self, y: Any, key: Any) -> Any:
        return {"log_rate": jnp.asarray(math.log(self.learning_rate), float)}

    def start(self, x: Any, y: Any) -> Any:
        return _AT_RATE_1[self.optimizer].init(y)

    def update(self, x: Any, gradients: Any, state: Any, y: Any) -> Any:
        updates, state = _AT_RATE_1[self.optimizer].update(gradients, state, y)
        return jax.tree.map(lambda u: jnp.exp(x["log_rate"]) * u, updates), state


hand_made = method_of(HandMade)
