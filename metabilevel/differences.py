"""Central differences over a sweep of step sizes: what a derivative is held against."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .batching import map_tasks
from .problem import Key, Outer

SIZES = 7  # step sizes of a sweep


class Differences(NamedTuple):
    """Along D directions, at S step sizes.

    - `steps` [D, S]: h, from large to small; `table` [D, S]: (f(x + h d) - f(x - h d)) / 2h.
    - `value` [D]: that of the step size around which it changes least, the plateau; `error` [D]: the change from
      there to its neighbours, or what rounding makes of it if that is more; NaN where no three neighbours are finite.
    """

    steps: np.ndarray
    table: np.ndarray
    value: np.ndarray
    error: np.ndarray


def central_differences(
    fn: Callable[..., Array], x: Outer, directions: Float[Array, "directions n"], *args: Any
) -> Differences:
    """Derivatives of the scalar `fn(x, *args)` in x, along vectors of the raveled x.

    A step moves no entry of x by more than a tenth of its `scales` at first, and at last by as little as leaves a digit
    or two beside the rounding of the type of x.
    """
    flat = ravel_pytree(x)[0]
    moves = np.geomspace(0.1, float(jnp.finfo(flat.dtype).eps) ** 0.6, SIZES)
    steps = moves / np.abs(np.asarray(directions) / np.asarray(scales(x))).max(1, keepdims=True)
    values = _values(fn, x, directions, jnp.asarray(steps, flat.dtype), args)
    ahead, behind = np.asarray(values, np.float64)
    table = (ahead - behind) / (2 * steps)
    # a difference of zero among others is one that rounding has eaten
    seen = np.where((table == 0) & (table != 0).any(1, keepdims=True), np.nan, table)
    change = np.abs(np.diff(seen, axis=1))
    around = np.maximum(change[:, :-1], change[:, 1:])  # of every step size but the first and the last
    around = np.where(np.isfinite(around), around, np.inf)
    rows, best = np.arange(len(table)), around.argmin(1)
    rounding = np.finfo(flat.dtype).eps * np.abs([ahead, behind]).max((0, 2)) / steps[rows, best + 1]
    error = np.maximum(around[rows, best], rounding)
    return Differences(steps, table, table[rows, best + 1], np.where(np.isfinite(error), error, np.nan))


def scales(x: Outer) -> Float[Array, " n"]:
    """For each entry of the raveled x, the root mean square of its leaf; 1 where that is 0."""
    sizes = jax.tree.map(lambda a: jnp.sqrt(jnp.mean(a**2)) if a.size else jnp.ones(()), x)
    return ravel_pytree(jax.tree.map(lambda a, s: jnp.full(a.shape, jnp.where(s == 0, 1, s), a.dtype), x, sizes))[0]


@eqx.filter_jit
def _values(fn: Callable[..., Array], x: Outer, directions: Array, steps: Array, args: Any) -> Array:
    """fn at x + h d and at x - h d, [2, D, S]."""
    flat, unravel = ravel_pytree(x)
    shape = (2, *steps.shape)
    signed = jnp.stack([steps, -steps]).reshape(-1)
    which = jnp.broadcast_to(jnp.arange(len(directions))[:, None], shape).reshape(-1)
    at = lambda flat, i, h: fn(unravel(flat + h * directions[i]), *args)
    return map_tasks(at, flat, which, signed).reshape(shape)


def random_directions(x: Outer, number: int, key: Key) -> Float[Array, "directions n"]:
    """Of length 1, and uniform on the sphere but for the leaves' `scales`, by which each moves."""
    size = scales(x)
    drawn = size * jax.random.normal(key, (number, len(size)), size.dtype)
    return drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)


def coordinate_directions(flat: Float[Array, " n"], which: Any) -> Float[Array, "directions n"]:
    """Unit vectors of the entries `which`."""
    return jnp.zeros((len(which), len(flat)), flat.dtype).at[jnp.arange(len(which)), jnp.asarray(which)].set(1)
