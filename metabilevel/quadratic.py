"""Quadratic programs over a product of simplices: the dual of the multi-class support vector machine."""

from collections.abc import Callable
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
    solver: str = "admm",
    iterations: int | None = None,
) -> Float[Array, "n k"]:
    """minimise over b   tr(b^T K b) / 2 + tr(c^T b)   with every row of b in the simplex {b >= 0, sum b = radius}.

    - `"admm"`: the alternating direction method of multipliers with over-relaxation (Boyd et al. 2011, section 3.4.3),
      one inverse of K + rho I for all iterations.
    - `"interior-point"`: the predictor-corrector method of Mehrotra (1992), k + 1 inverses of n unknowns an iteration,
      of which far fewer suffice: the reference for what the other one gives.

    Either takes a fixed number of `iterations`, so that a batch of programs is one program under `jax.vmap`; then comes
    one Newton step on the entries that are not zero, where that helps.

    The derivative in K and c is that of the optimality conditions on the entries which are not zero (Amos & Kolter
    2017, arXiv:1703.00443), a dense system of n k unknowns; it is exact where b is, and the fewer entries change
    between zero and not, the better it describes a neighbourhood.

    **Arguments:** `kernel` K is symmetric and positive semidefinite, `linear` is c; `allowed` columns may be other
    than zero (all, if None); `iterations` are 100 of ADMM and 15 of the interior point, if None.

    **Returns:** b, with exact zeros. `simplex_residual` says how far it is from optimal.

    **Raises:** `InputError` for a radius that is not positive, an unknown solver, or no iterations.
    """
    if solver not in _SOLVERS:
        raise InputError(f"solver = {solver!r}: one of {', '.join(_SOLVERS)} is wanted.")
    if not radius > 0:
        raise InputError(f"radius = {radius}: a positive number is wanted.")
    method, usual = _SOLVERS[solver]
    iterations = usual if iterations is None else count("iterations", iterations, 1)
    if allowed is None:
        allowed = jnp.ones(linear.shape[1], bool)
    return _solve(radius, method, iterations, kernel, linear, allowed)


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _solve(radius, method, iterations, kernel, linear, allowed):
    b = method(radius, iterations, kernel, linear, allowed)
    polished = b - _on_free_entries(kernel, b, kernel @ b + linear)
    distance = lambda b: jnp.abs(simplex_residual(kernel, linear, radius, allowed, b)).max()
    return jnp.where(distance(polished) < distance(b), polished, b)


def _admm(radius, iterations, kernel, linear, allowed):
    n, k = linear.shape
    rho = 0.1 * _size(kernel)
    inverse = jnp.linalg.inv(kernel + rho * jnp.eye(n))
    relax = 1.6

    def iterate(_, state):
        z, u = state
        b = inverse @ (rho * (z - u) - linear)
        b = relax * b + (1 - relax) * z
        z = _project(b + u, radius, allowed)
        return z, u + b - z

    start = _centre(linear, radius, allowed), jnp.zeros((n, k))
    return jax.lax.fori_loop(0, iterations, iterate, start)[0]


def _interior_point(radius, iterations, kernel, linear, allowed):
    """Newton's method on   K b + c + nu 1^T = s,   b 1 = radius,   b s = mu -> 0,   with b > 0 and s > 0.

    With ds eliminated, column a of db has the matrix K + diag(s_a / b_a), and the multipliers nu of the rows alone tie
    the columns together. The columns that are not allowed have b = 0, s = 1, and stay so.
    """
    n = len(kernel)
    eps = jnp.finfo(kernel.dtype).eps
    safe = lambda b: jnp.where(allowed, b, 1)
    gap = lambda b, s: jnp.sum(b * s) / (n * jnp.sum(allowed))
    b = _centre(linear, radius, allowed)
    slope = jnp.where(allowed, kernel @ b + linear, jnp.inf)
    low = slope.min(1, keepdims=True)
    high = jnp.where(allowed, slope, -jnp.inf).max(1, keepdims=True)
    lift = jnp.max(high - low) + radius * _size(kernel)
    s, nu = jnp.where(allowed, slope - low + lift, 1), lift - low
    floor = eps**2 * gap(b, s)  # so that s / b stays finite

    def iterate(_, state):
        b, s, nu = state
        inverse = jnp.linalg.inv(kernel + jax.vmap(jnp.diag)((s / safe(b)).T) + n * eps * _size(kernel) * jnp.eye(n))
        inverse = jnp.where(allowed[:, None, None], inverse, 0)
        through = lambda v: jnp.einsum("aij,ja->ia", inverse, v)
        tie = jnp.linalg.inv(inverse.sum(0))

        def newton(wanted):
            """The step to b s = `wanted`."""
            pull = jnp.where(allowed, wanted / safe(b), 0) - (kernel @ b + linear + nu)
            free = through(pull)
            dnu = tie @ (free.sum(1, keepdims=True) + b.sum(1, keepdims=True) - radius)
            db = free - through(jnp.broadcast_to(dnu, b.shape))
            return db, jnp.where(allowed, (wanted - s * db) / safe(b) - s, 0), dnu

        def longest(db, ds):
            """The step, at most 1, that keeps b and s from falling below zero."""
            reach = lambda a, da: jnp.min(jnp.where(da < 0, -a / jnp.where(da < 0, da, -1), jnp.inf))
            return jnp.minimum(1, jnp.minimum(reach(b, db), reach(s, ds)))

        mu = gap(b, s)
        db, ds, _ = newton(0.0)
        step = longest(db, ds)
        centring = (gap(b + step * db, s + step * ds) / mu) ** 3
        db, ds, dnu = newton(jnp.maximum(centring * mu, floor) - db * ds)
        step = jnp.minimum(1, 0.99 * longest(db, ds))
        return b + step * db, s + step * ds, nu + step * dnu

    b, s, _ = jax.lax.fori_loop(0, iterations, iterate, (b, s, nu))
    return _project(b - s / _size(kernel), radius, allowed)  # of each pair, the smaller becomes an exact zero


_SOLVERS: dict[str, tuple[Callable[..., Array], int]] = {"admm": (_admm, 100), "interior-point": (_interior_point, 15)}


def _centre(linear: Float[Array, "n k"], radius: float, allowed: Bool[Array, " k"]) -> Float[Array, "n k"]:
    return jnp.where(allowed, radius / jnp.sum(allowed), jnp.zeros_like(linear))


def _size(kernel: Float[Array, "n n"]) -> Float[Array, ""]:
    """The mean of the eigenvalues; 1 where all are zero."""
    mean = jnp.trace(kernel) / len(kernel)
    return jnp.where(mean > 0, mean, 1)


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


def _forward(radius, method, iterations, kernel, linear, allowed):
    b = _solve(radius, method, iterations, kernel, linear, allowed)
    return b, (kernel, b)


def _backward(radius, method, iterations, residuals, cotangent):
    """P (K db + dK b + dc) = 0 for the db that keep the zeros and row sums of b."""
    kernel, b = residuals
    v = _on_free_entries(kernel, b, cotangent)
    half = v @ b.T
    return -(half + half.T) / 2, -v, None


_solve.defvjp(_forward, _backward)
