"""Learned optimizers that are one small net per coordinate, fed with the averages that hand-made ones keep."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jax.flatten_util import ravel_pytree

import metabilevel as mb
from metabilevel import errors

from .training import method_of

TIMESCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


class AbstractMLP(mb.AbstractRule):
    """A net of so many `features` of a coordinate, among which are averages of its array with `decays` at the start.

    A decay has the weight w in sigmoid(logit(decay) + 10 w): a step of .001 on w is one of about 1% on 1 - decay.
    """

    layers: AbstractVar[int]
    units: AbstractVar[int]
    scale: AbstractVar[float]
    decays: ClassVar[dict[str, tuple[float, ...]]]
    features: ClassVar[int]

    def __check_init__(self):
        errors.count("layers", self.layers, 1)
        errors.count("units", self.units, 1)
        errors.number("scale", self.scale, 0, above=True)

    @abc.abstractmethod
    def averages(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of what is kept of an array of that shape."""

    @abc.abstractmethod
    def observe(self, rates: Any, g: Any, y: Any, kept: Any) -> tuple[list[Any], Any]:
        """The features of an array y, arrays [number, ...] that broadcast to its shape, and what is now kept of it;
        `rates` are 1 - decay."""

    def init(self, y: Any, key: Any) -> Any:
        sizes = [self.features + len(TIMESCALES), *[self.units] * self.layers, 2]
        normal = lambda key, out, inputs: jax.random.normal(key, (out, inputs)) / jnp.sqrt(inputs)
        layers = [
            {"weights": normal(k, out, inputs), "bias": jnp.zeros(out)}
            for k, inputs, out in zip(jax.random.split(key, self.layers + 1), sizes, sizes[1:], strict=False)
        ]
        return {"layers": layers, "decays": {name: jnp.zeros(len(each)) for name, each in self.decays.items()}}

    def start(self, x: Any, y: Any) -> Any:
        zeros = lambda a: {name: jnp.zeros(shape, a.dtype) for name, shape in self.averages(a.shape).items()}
        return {"averages": [zeros(a) for a in jax.tree.leaves(y)], "steps": jnp.int32(0)}

    def update(self, x: Any, gradients: Any, state: Any, y: Any) -> Any:
        flat, unravel = ravel_pytree(gradients)
        logit = lambda each, w: jnp.asarray(np.log(1 / np.array(each) - 1), w.dtype)  # of 1 - decay, which is small
        rates = {name: jax.nn.sigmoid(logit(self.decays[name], w) - 10 * w) for name, w in x["decays"].items()}
        columns, averages = [], []
        for g, a, kept in zip(jax.tree.leaves(gradients), jax.tree.leaves(y), state["averages"], strict=True):
            features, kept = self.observe(rates, g, a, kept)
            rows = jnp.concatenate([jnp.broadcast_to(f, (len(f), *g.shape)).reshape(len(f), g.size) for f in features])
            columns.append(rows * jax.lax.rsqrt(jnp.mean(rows**2, 1, keepdims=True) + 1e-5))
            averages.append(kept)
        first, *others = x["layers"]
        own, common = jnp.split(first["weights"], [self.features], 1)
        time = jnp.tanh(state["steps"] / jnp.asarray(TIMESCALES, flat.dtype) - 1)  # of all coordinates: but a bias
        signal = own @ jnp.concatenate(columns, 1) + (common @ time + first["bias"])[:, None]
        for layer in others:
            signal = layer["weights"] @ jax.nn.relu(signal) + layer["bias"][:, None]
        direction, magnitude = signal
        step = -self.scale * direction * jnp.exp(0.001 * magnitude)
        return unravel(step), {"averages": averages, "steps": state["steps"] + 1}


def averaged(rates: Any, old: Any, new: Any) -> Any:
    """The next of the exponential averages `old` [rates, ...] of what is `new` [...] now."""
    return old + rates.reshape(-1, *[1] * new.ndim) * (new - old)


def moments(rates: Any, g: Any, y: Any, kept: Any) -> tuple[list[Any], Any]:
    """g, y, averages m of g and v of g^2, 1 / sqrt(v), m / sqrt(v); and the averages."""
    m, v = averaged(rates["momentum"], kept["momentum"], g), averaged(rates["square"], kept["square"], g**2)
    inverse = jax.lax.rsqrt(v + 1e-6)
    return [g[None], y[None], m, v, inverse, m * inverse], {"momentum": m, "square": v}


class MLPOptimizer(AbstractMLP):
    """y <- y - scale d exp(.001 a), where (d, a) is what a net of ReLUs, shared by all coordinates, says of one's
    features (Metz et al. 2019, arXiv:1810.10180; Metz et al. 2022, arXiv:2203.11860, has these features).

    They are g, y, three averages m of g, one v of g^2, 1 / sqrt(v) and m / sqrt(v), each divided by its root mean
    square over the array that the coordinate stands in, and tanh(t / s - 1) of the number t of steps, for eleven
    timescales s. The decays of the averages are weights too. Two layers of 32 units have 1,830 weights.

    **Arguments:**

    - `layers`: hidden layers of the net.
    - `units`: units of a layer.
    - `scale`: the factor of the net's output.
    """

    layers: int = eqx.field(static=True, default=2)
    units: int = eqx.field(static=True, default=32)
    scale: float = eqx.field(static=True, default=0.001)
    decays: ClassVar = {"momentum": (0.9, 0.99, 0.999), "square": (0.999,)}
    features: ClassVar = 10

    def averages(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"momentum": (3, *shape), "square": (1, *shape)}

    def observe(self, rates: Any, g: Any, y: Any, kept: Any) -> tuple[list[Any], Any]:
        return moments(rates, g, y, kept)


mlp_optimizer = method_of(MLPOptimizer)
