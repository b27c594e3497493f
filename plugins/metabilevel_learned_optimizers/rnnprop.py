"""RNNprop (Lv, Jiang & Li 2017, arXiv:1703.03441): an LSTM whose inputs no scale of the loss can change."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metabilevel as mb
from metabilevel import errors

from .cell import at_rest, initial, recur
from .training import method_of

# As in Adam, but under the root, where it keeps the derivative finite at a zero gradient.
_TINY = 1e-16


class RNNprop(mb.AbstractRule):
    """y <- y + scale tanh(m(mean / sqrt(square), g / sqrt(square))), where `mean` and `square` are Adam's averages of
    g and g^2, corrected for their start at zero, and m is one recurrent net for every coordinate.

    Its inputs pass a layer of ELUs, which is as wide as the recurrent ones. Two of these, of 20 units, have 6,641
    weights with it.

    **Arguments:**

    - `layers`: recurrent layers of the net.
    - `units`: units of a layer.
    - `decay`: the decay of both averages.
    - `scale`: the largest step of a coordinate.
    """

    layers: int = eqx.field(static=True, default=2)
    units: int = eqx.field(static=True, default=20)
    decay: float = eqx.field(static=True, default=0.95)
    scale: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        errors.count("layers", self.layers, 1)
        errors.count("units", self.units, 1)
        errors.number("decay", self.decay, 0)
        if self.decay >= 1:
            raise mb.InputError(f"decay = {self.decay!r}: a number of 0 or more and below 1 is wanted.")
        errors.number("scale", self.scale, 0, above=True)

    def init(self, y: Any, key: Any) -> Any:
        k_in, k_out, *keys = jax.random.split(key, self.layers + 2)
        normal = lambda key, out, inputs: jax.random.normal(key, (out, inputs)) / jnp.sqrt(inputs)
        return {
            "in": {"weights": normal(k_in, self.units, 2), "bias": jnp.zeros(self.units)},
            "layers": [initial(k, self.units, self.units) for k in keys],
            "out": {"weights": normal(k_out, 1, self.units), "bias": jnp.zeros(1)},
        }

    def start(self, x: Any, y: Any) -> Any:
        average = jnp.zeros_like(ravel_pytree(y)[0])
        layers = at_rest(self.layers, self.units, average.size, average.dtype)
        return {"layers": layers, "mean": average, "square": average, "steps": jnp.int32(0)}

    def update(self, x: Any, gradients: Any, state: Any, y: Any) -> Any:
        g, unravel = ravel_pytree(gradients)
        averaged = lambda old, new: self.decay * old + (1 - self.decay) * new
        mean, square, steps = averaged(state["mean"], g), averaged(state["square"], g**2), state["steps"] + 1
        known = 1 - self.decay ** steps.astype(mean.dtype)
        inputs = jnp.stack([mean / known, g]) * jax.lax.rsqrt(square / known + _TINY)
        signal, layers = recur(x["layers"], jax.nn.elu(_affine(x["in"], inputs)), state["layers"])
        step = self.scale * jnp.tanh(_affine(x["out"], signal))[0]
        state = {"layers": layers, "mean": mean, "square": square, "steps": steps}
        return unravel(step), state


def _affine(layer: Any, signal: Any) -> Any:
    return layer["weights"] @ signal + layer["bias"][:, None]


rnnprop = method_of(RNNprop)
