"""A bound on the error of an implicit hypergradient, where the inner loss is strongly convex.

With A = dr/dy, C = dr/dx for the inner residual r, and L(x, y; v) = F(x, y) - v^T r(x, y), the hypergradient is
g(y, v) = dL/dx at the y and the v that were found, and the exact one is g(y*, v*) where r(x, y*) = 0 and dL/dy = 0.
By the mean value theorem, with mu below every eigenvalue of A,

    |y - y*| <= |r| / mu,     |v - v*| <= (|dL/dy| + |L_yy| |y - y*|) / mu,
    |g(y, v) - g(y*, v*)| <= |L_xy| |y - y*| + |C| |v - v*|,

the norms taken between the two points: the coarse bound. Norms of matrices and of vectors that point elsewhere make it
loose by orders of magnitude. So it is taken at a better point (y', v'), where it is small, and what lies between is
measured:

    |g(y, v) - g(y*, v*)| <= |g(y, v) - g(y', v')| + (the coarse bound at y', v').

Any y' and v' will do. Newton's method gives y', conjugate gradients its steps and v'.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .info import norm
from .linear import ConjugateGradient, LinearSystem, Product
from .problem import Inner, Key, Outer

NEWTON = 10  # steps to y' at most
LENGTHS = tuple(0.5**i for i in range(8))  # of a step, of which that of the least residual is taken
ENOUGH = 1e-4  # of a residual, where to be more exact would change the bound by little
BETTER = ConjugateGradient(100, tolerance=ENOUGH)


def error_bound(
    objective: Callable[[Outer, Inner], Array],
    residual: Callable[[Outer, Inner], PyTree],
    z: Outer,
    y: Inner,
    v: Array,
    convexity: Any,
    key: Key,
) -> tuple[Outer, Array]:
    """g(y', v'), shaped like z, and the coarse bound on the norm of its error; infinite where `convexity` is not above
    0.

    The norms of matrices are those at (y', v'), found by power iterations: exact up to how they change within
    |r(y')| / mu, and to the last percents of a norm.

    **Arguments:** `objective` is F and `residual` r; `v` is flat, `convexity` mu.
    """
    y = stationary(lambda y: residual(z, y), y, key)
    direct, slope = jax.grad(objective, (0, 1))(z, y)
    hessian, slope = _product(lambda y: residual(z, y), y), ravel_pytree(slope)[0]
    v = v + BETTER(LinearSystem(hessian, slope - hessian(v), True, key))[0]
    missing = slope - hessian(v)
    r, cross = jax.vjp(lambda z: residual(z, y), z)
    gradient = jax.tree.map(jnp.subtract, direct, cross(ravel_pytree(y)[1](v))[0])

    lagrangian = lambda z, y: objective(z, y) - v @ ravel_pytree(residual(z, y))[0]
    c = spectral_norm(lambda z: residual(z, y), z, key)
    mixed = spectral_norm(lambda y: jax.grad(lagrangian)(z, y), y, key)
    curved = spectral_norm(lambda y: jax.grad(lagrangian, 1)(z, y), y, key)
    away = norm(r) / convexity
    bound = mixed * away + c * (jnp.linalg.norm(missing) + curved * away) / convexity
    return gradient, jnp.where(convexity > 0, bound, jnp.inf)


def stationary(residual: Callable[[Inner], PyTree], y: Inner, key: Key, enough: float = ENOUGH) -> Inner:
    """y after some of Newton's steps, while the residual, a gradient, falls and is more than `enough` of the first."""
    first = norm(residual(y))
    lengths = jnp.asarray(LENGTHS, first.dtype)

    def go_on(state: Any) -> Array:
        i, _, size, before = state
        return (i < NEWTON) & (size < before) & (size > enough * first)

    def step(state: Any) -> Any:
        i, y, size, _ = state
        r, unravel = ravel_pytree(residual(y))
        change = unravel(BETTER(LinearSystem(_product(residual, y), r, True, key))[0])
        along = lambda length: jax.tree.map(lambda a, b: a - length * b, y, change)
        sizes = jax.lax.map(lambda length: norm(residual(along(length))), lengths)
        best = sizes.argmin()
        falls = sizes[best] < size
        y = jax.tree.map(lambda a, b: jnp.where(falls, a, b), along(lengths[best]), y)
        return i + 1, y, jnp.where(falls, sizes[best], size), size

    return jax.lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), y, first, jnp.full_like(first, jnp.inf)))[1]


def _product(residual: Callable[[Inner], PyTree], y: Inner) -> Product:
    """u -> (dr/dy) u, in flat vectors."""
    product, unravel = jax.linearize(residual, y)[1], ravel_pytree(y)[1]
    return lambda u: ravel_pytree(product(unravel(u)))[0]


def spectral_norm(fn: Callable[[PyTree], PyTree], at: PyTree, key: Key, iterations: int = 30) -> Array:
    """The largest singular value of the derivative of `fn`, by power iterations."""
    flat, unravel = ravel_pytree(at)
    _, forward = jax.linearize(lambda u: ravel_pytree(fn(unravel(u)))[0], flat)
    backward = jax.linear_transpose(forward, flat)

    def iterate(u, _):
        u = u / jnp.maximum(jnp.linalg.norm(u), jnp.finfo(u.dtype).tiny)
        u = backward(forward(u))[0]
        return u, jnp.linalg.norm(u)

    return jnp.sqrt(jax.lax.scan(iterate, jax.random.normal(key, flat.shape, flat.dtype), length=iterations)[1][-1])
