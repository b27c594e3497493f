"""Mathematics that several single-loop methods share."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .descent import descended
from .posing import Schedule, scheduled


def directions(oracles: mb.Oracles, point: Any, inner: mb.Sample, outer: mb.Sample) -> tuple[Any, Any]:
    """F with its metrics, and SOBA's directions of y, v and x at the point (x, y, v):

    dG/dy,    (d2G/dy2) v + dF/dy,    (d2G/dx dy) v + dF/dx
    """
    x, y, v = point
    gradient, product, cross = oracles.inner_products(x, y, v, inner)
    seen, (f_x, f_y) = oracles.outer_gradients(x, y, outer)
    return seen, (gradient, optax.tree.add(product, f_y), optax.tree.add(cross, f_x))


def implicit(oracles: mb.Oracles, x: Any, y: Any, solve: Callable[..., Any], key: Array) -> tuple[Any, Any, Any]:
    """F with its metrics, v and the direction of x, each oracle on a block of its own:

        v near -(d2G/dy2)^-1 dF/dy,    dF/dx + (d2G/dx dy) v

    **Arguments:** `solve(hessian, f_y, key) -> v`, where `hessian(r, key)` is (d2G/dy2) r on a block at random.
    """
    k_outer, k_solve, k_cross = jax.random.split(key, 3)
    products = lambda r, key: oracles.inner_products(x, y, r, oracles.sample("inner", key))
    seen, (f_x, f_y) = oracles.outer_gradients(x, y, oracles.sample("outer", k_outer))
    v = solve(lambda r, key: products(r, key)[1], f_y, k_solve)
    return seen, v, optax.tree.add(f_x, products(v, k_cross)[2])


def neumann(hessian: Callable[[Any, Array], Any], f_y: Any, scale: Array, terms: int, key: Array) -> Any:
    """-scale sum_{i=0}^{terms} (I - scale H_i) ... (I - scale H_1) f_y, with a fresh block for each Hessian H_i: near
    -H^-1 f_y where every eigenvalue of scale H lies between 0 and 2 (Ji, Yang & Liang 2021, algorithm 2).
    """

    def factor(state: Any, key: Array) -> Any:
        r, total = state
        r = optax.tree.add_scale(r, -scale, hessian(r, key))
        return (r, optax.tree.add(total, r)), None

    (_, total), _ = jax.lax.scan(factor, (f_y, f_y), jax.random.split(key, terms))
    return optax.tree.scale(-scale, total)


def series_scale(scale: float | None, learning_rate: float) -> Array:
    """The learning rate if None.

    **Raises:** `InputError` for one that is not positive.
    """
    if scale is not None:
        errors.number("scale", scale, 0, above=True)
    return jnp.asarray(learning_rate if scale is None else scale, float)


class Memory(NamedTuple):
    """y, and the last solution v of the linear system."""

    y: Any
    v: Any


class AbstractDoubleLoop(mb.AbstractSingleLoop):
    """`inner_steps` steps y <- y - rate dG/dy from the kept y, each on a block of its own; then, at that y, the linear
    system and the direction of x, as `implicit` says.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction.

    **Raises:** `InputError` for no inner steps.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    inner_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("inner_steps", self.inner_steps, 1)

    @abc.abstractmethod
    def system(self, hessian: Callable[[Any, Array], Any], f_y: Any, v: Any, t: Array, key: Array) -> Any:
        """The next v from the kept one; `hessian(r, key)` is (d2G/dy2) r on a block at random."""

    def begin(self, oracles, x, y, key):
        return Memory(y, jax.tree.map(jnp.zeros_like, y))

    def step(self, oracles, x, memory, t, key):
        k_inner, k_outer = jax.random.split(key)
        gradient = lambda y, i, key: oracles.inner_gradient(x, y, oracles.sample("inner", key))
        y = descended(gradient, memory.y, self.rate(t), self.inner_steps, k_inner)
        solve = lambda hessian, f_y, key: self.system(hessian, f_y, memory.v, t, key)
        seen, v, direction = implicit(oracles, x, y, solve, k_outer)
        return mb.Stride(optax.tree.scale(self.outer(t), direction), seen, Memory(y, v))
