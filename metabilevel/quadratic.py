"""Quadratic programs over a product of simplices: the dual of the multi-class support vector machine."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .errors import InputError, count


def simplex_qp(
    kernel: Float[Array, "n n"],
    linear: Float[Array, "n k"],
    radius: float,
    allowed: Bool[Array, " k"] | None = None,
    *,
    iterations: int = 100,
) -> Float[Array, "n k"]:
    """minimise over b   tr(b^T K b) / 2 + tr(c^T b)   with every row of b in the simplex {b >= 0, sum b = radius}.

    The alternating direction method of multipliers with over-relaxation (Boyd et al. 2011, section 3.4.3): one
    factorisation of K + rho I for a fixed number of `iterations`, so that a batch of programs is one program under
    `jax.vmap`; then one Newton step on the entries that are not zero, where that helps.

    The derivative in K and c is that of the optimality conditions on the entries which are not zero (Amos & Kolter
    2017, arXiv:1703.00443), a dense system of n k unknowns; it is exact where b is, and the fewer entries change
    between zero and not, the better it describes a neighbourhood.

    **Arguments:** `kernel` K is symmetric and positive semidefinite, `linear` is c; `allowed` columns may be other
    than zero (all, if None).

    **Returns:** b, with exact zeros. `simplex_residual` says how far it is from optimal.

    **Raises:** `InputError` for a radius that is not positive, or no iterations.
    """
    if not radius > 0:
        raise InputError(f"radius = {radius}: a positive number is wanted.")
    count("iterations", iterations, 1)
    if allowed is None:
        allowed = jnp.ones(linear.shape[1], bool)
    return _solve(radius, iterations, kernel, linear, allowed)


def simplex_residual(
    kernel: Float[Array, "n n"],
    linear: Float[Array, "n k"],
    radius: float,
    allowed: Bool[Array, " k"],
    b: Float[Array, "n k"],
) -> Float[Array, "n k"]:
    """b less the projection of b - (K b + c) onto the simplices: zero at the solution of `simplex_qp` alone."""
    return b - _project(b - kernel @ b - linear, radius, allowed)


def _project(v: Float[Array, "n k"], radius: float, allowed: Bool[Array, " k"]) -> Float[Array, "n k"]:
    """The nearest point of the simplex to each row: max(v - t, 0), with t from the active sets of Michelot (1986)."""

    def shrink(_, active):
        t = (jnp.sum(jnp.where(active, v, 0), 1) - radius) / jnp.sum(active, 1)
        return active & (v > t[:, None])

    active = jax.lax.fori_loop(0, v.shape[1], shrink, jnp.broadcast_to(allowed, v.shape), unroll=True)
    t = (jnp.sum(jnp.where(active, v, 0), 1) - radius) / jnp.sum(active, 1)
    return jnp.where(active, v - t[:, None], 0)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(radius, iterations, kernel, linear, allowed):
    n, k = linear.shape
    scale = jnp.trace(kernel) / n
    rho = 0.1 * jnp.where(scale > 0, scale, 1.0)
    inverse = jnp.linalg.inv(kernel + rho * jnp.eye(n))
    relax = 1.6

    def iterate(_, state):
        z, u = state
        b = inverse @ (rho * (z - u) - linear)
        b = relax * b + (1 - relax) * z
        z = _project(b + u, radius, allowed)
        return z, u + b - z

    start = jnp.where(allowed, radius / jnp.sum(allowed), 0) * jnp.ones((n, 1))
    b = jax.lax.fori_loop(0, iterations, iterate, (start, jnp.zeros((n, k))))[0]
    polished = b - _on_free_entries(kernel, b, kernel @ b + linear)
    distance = lambda b: jnp.abs(simplex_residual(kernel, linear, radius, allowed, b)).max()
    return jnp.where(distance(polished) < distance(b), polished, b)


def _on_free_entries(kernel: Float[Array, "n n"], b: Float[Array, "n k"], right: Float[Array, "n k"]):
    """The v that keeps the zeros and row sums of b and solves P K v = P right, with P the projection onto such v."""
    n, k = b.shape
    free = (b > 0).astype(b.dtype)
    p = jax.vmap(lambda m: jnp.diag(m) - jnp.outer(m, m) / jnp.sum(m))(free)
    scale = jnp.trace(kernel) / n
    rest = jax.scipy.linalg.block_diag(*(jnp.eye(k) - p)) * scale
    system = jnp.einsum("iab,ij,jbc->iajc", p, kernel, p).reshape(n * k, n * k)
    ridge = 8 * jnp.finfo(b.dtype).eps * scale * n * jnp.eye(n * k)  # where K is singular
    factor = jax.scipy.linalg.cho_factor(system + rest + ridge, lower=True)
    v = jax.scipy.linalg.cho_solve(factor, jnp.einsum("iab,ib->ia", p, right).reshape(-1)).reshape(n, k)
    return jnp.where(b > 0, v, 0)


def _forward(radius, iterations, kernel, linear, allowed):
    b = _solve(radius, iterations, kernel, linear, allowed)
    return b, (kernel, b)


def _backward(radius, iterations, residuals, cotangent):
    """P (K db + dK b + dc) = 0 for the db that keep the zeros and row sums of b."""
    kernel, b = residuals
    v = _on_free_entries(kernel, b, cotangent)
    half = v @ b.T
    return -(half + half.T) / 2, -v, None


_solve.defvjp(_forward, _backward)
