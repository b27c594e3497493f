"""The coordinatewise LSTM optimizer of Andrychowicz et al. 2016 (arXiv:1606.04474)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import metabilevel as mb
from metabilevel import errors

from .cell import at_rest, initial, recur
from .training import method_of


class LSTM(mb.AbstractRule):
    """The LSTM optimizer: y <- y + scale m(g), where m is one recurrent net for every coordinate, with shared weights
    and a state of its own (Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1).

    Two layers of 20 units have 5,061 weights, and 5,141 with preprocessing. Coordinates of all arrays stand in the
    columns of one matrix [units, coordinates], so that a layer is one matrix product.

    **Arguments:**

    - `layers`: recurrent layers of the net.
    - `units`: units of a layer.
    - `preprocess`: the p by which a gradient becomes (log|g| / p, sign g) where |g| >= e^-p and (-1, e^p g) elsewhere
      (appendix A; 10 in the text, 5 in the authors' code); the raw gradient if none.
    - `scale`: the factor of the net's output.
    """

    layers: int = eqx.field(static=True, default=2)
    units: int = eqx.field(static=True, default=20)
    preprocess: float | None = eqx.field(static=True, default=10.0)
    scale: float = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        errors.count("layers", self.layers, 1)
        errors.count("units", self.units, 1)
        if self.preprocess is not None:
            errors.number("preprocess", self.preprocess, 0, above=True)
        errors.number("scale", self.scale, 0, above=True)

    def init(self, y: Any, key: Any) -> Any:
        *keys, k_out = jax.random.split(key, self.layers + 1)
        sizes = [1 if self.preprocess is None else 2] + [self.units] * self.layers
        layers = [initial(k, size, self.units) for k, size in zip(keys, sizes, strict=False)]
        out = jax.random.normal(k_out, (1, self.units)) / jnp.sqrt(self.units)
        return {"layers": layers, "out": {"weights": out, "bias": jnp.zeros(1)}}

    def start(self, x: Any, y: Any) -> Any:
        n = sum(a.size for a in jax.tree.leaves(y))
        return {"layers": at_rest(self.layers, self.units, n, x["out"]["bias"].dtype)}

    def update(self, x: Any, gradients: Any, state: Any, y: Any) -> Any:
        flat, unravel = ravel_pytree(gradients)
        signal, layers = recur(x["layers"], self._inputs(flat), state["layers"])
        step = self.scale * (x["out"]["weights"] @ signal + x["out"]["bias"][:, None])
        return unravel(step[0].astype(flat.dtype)), {"layers": layers}

    def _inputs(self, g: Any) -> Any:
        """[features, coordinates]."""
        if self.preprocess is None:
            return g[None]
        large = jnp.abs(g) >= jnp.exp(-self.preprocess)
        logarithm = jnp.log(jnp.where(large, jnp.abs(g), 1)) / self.preprocess
        return jnp.stack([jnp.where(large, logarithm, -1), jnp.where(large, jnp.sign(g), jnp.exp(self.preprocess) * g)])


lstm = method_of(LSTM)
