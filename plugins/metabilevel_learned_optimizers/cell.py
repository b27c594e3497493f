"""LSTM layers for every coordinate at once, with a derivative by hand."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def initial(key: Any, inputs: int, units: int) -> Any:
    """Weights of a layer: normal with variance 1 / (inputs + units), forget gates that begin open."""
    weights = jax.random.normal(key, (4 * units, inputs + units)) / jnp.sqrt(inputs + units)
    return {"weights": weights, "bias": jnp.zeros(4 * units).at[units : 2 * units].set(1)}


def at_rest(layers: int, units: int, n: int, dtype: Any) -> Any:
    """The state of `layers` layers before the first step."""
    return [{"hidden": jnp.zeros((units, n), dtype), "cell": jnp.zeros((units, n), dtype)} for _ in range(layers)]


def recur(layers: Sequence[Any], signal: Any, state: Sequence[Any]) -> tuple[Any, Any]:
    """A step of layers one upon the other: `signal` [features, n] -> ([units, n], state), n coordinates in columns."""
    after = []
    for layer, before in zip(layers, state, strict=True):
        weights = jnp.concatenate([layer["weights"], layer["bias"][:, None]], 1)
        signal, cell = _layer(weights, signal, before["hidden"], before["cell"])
        after.append({"hidden": signal, "cell": cell})
    return signal, after


@jax.custom_vjp
def _layer(weights: Any, signal: Any, hidden: Any, cell: Any) -> tuple[Any, Any]:
    """(h', c') of i, f, o = sigmoid, g = tanh of the quarters of W [signal; h; 1],  c' = f c + i g,  h' = o tanh c'.

    The row of ones makes one matrix product of weights and bias, forwards and backwards. The rule keeps the gates,
    from which every derivative is a polynomial; without it XLA makes more passes over arrays of [4 units, n].
    """
    return _forward(weights, signal, hidden, cell)[0]


def _forward(weights: Any, signal: Any, hidden: Any, cell: Any) -> tuple[tuple[Any, Any], Any]:
    seen = jnp.concatenate([signal, hidden, jnp.ones_like(hidden[:1])])
    i, f, o, g = jnp.split(weights @ seen, 4)
    i, f, o, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(g)
    after = f * cell + i * g
    shown = jnp.tanh(after)
    return (o * shown, after), (weights, seen, i, f, o, g, cell, shown)


def _backward(kept: Any, cotangents: tuple[Any, Any]) -> tuple[Any, ...]:
    (weights, seen, i, f, o, g, cell, shown), (dh, dc) = kept, cotangents
    dc = dc + dh * o * (1 - shown * shown)
    sums = [dc * g * i * (1 - i), dc * cell * f * (1 - f), dh * shown * o * (1 - o), dc * i * (1 - g * g)]
    sums = jnp.concatenate(sums)
    units, inputs = len(cell), len(seen) - len(cell) - 1
    d_seen = weights[:, :-1].T @ sums
    return sums @ seen.T, d_seen[:inputs], d_seen[inputs : inputs + units], dc * f


_layer.defvjp(_forward, _backward)
