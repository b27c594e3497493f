"""LSTM layers for every coordinate at once, with a derivative by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


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
        # The row of ones makes one matrix product of weights and bias, forwards and backwards.
        weights = jnp.concatenate([layer["weights"], layer["bias"][:, None]], 1)
        seen = jnp.concatenate([signal, before["hidden"], jnp.ones_like(before["hidden"][:1])])
        signal, cell = _gates(weights @ seen, before["cell"])
        after.append({"hidden": signal, "cell": cell})
    return signal, after


def _columns(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` of matrices [., n], of which each column is computed by itself: under vmap the matrices of a batch stand side
    by side, [., batch * n], where XLA's loops over a few columns of one after the other would be short."""

    @custom_vmap
    def together(*matrices: Any) -> Any:
        return f(*matrices)

    @together.def_vmap
    def _(size: int, batched: Sequence[bool], *matrices: Any) -> Any:
        whole = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(matrices, batched, strict=True)]
        found = together(*[jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1) for a in whole])
        apart = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(len(a), size, -1), 1, 0), found)
        return apart, jax.tree.map(lambda _: True, apart)

    # `custom_vmap` has no reverse mode of its own.
    differentiable = jax.custom_jvp(lambda *matrices: together(*matrices))
    differentiable.defjvp(lambda matrices, tangents: jax.jvp(f, matrices, tangents))
    return differentiable


@jax.custom_vjp
def _gates(sums: Any, cell: Any) -> tuple[Any, Any]:
    """(h', c') of i, f, o = sigmoid, g = tanh of the quarters of `sums`,  c' = f c + i g,  h' = o tanh c'.

    The rule keeps the gates, from which every derivative is a polynomial; without it XLA makes more passes over arrays
    of [4 units, n].
    """
    return _forward(sums, cell)[0]


@_columns
def _forward(sums: Any, cell: Any) -> tuple[tuple[Any, Any], Any]:
    i, f, o, g = jnp.split(sums, 4)
    i, f, o, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(g)
    after = f * cell + i * g
    shown = jnp.tanh(after)
    return (o * shown, after), (i, f, o, g, cell, shown)


@_columns
def _backward(i: Any, f: Any, o: Any, g: Any, cell: Any, shown: Any, dh: Any, dc: Any) -> tuple[Any, Any]:
    dc = dc + dh * o * (1 - shown * shown)
    sums = [dc * g * i * (1 - i), dc * cell * f * (1 - f), dh * shown * o * (1 - o), dc * i * (1 - g * g)]
    return jnp.concatenate(sums), dc * f


_gates.defvjp(_forward, lambda kept, cotangents: _backward(*kept, *cotangents))
