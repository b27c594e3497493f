"""Inverses: the linear system of an implicit hypergradient, A v = b, of which only products with A are known.

Vectors are flat, of n entries: an `Implicit` adjoint flattens the inner variable. Every inverse is one program
under `jax.vmap`.
"""

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import InputError, count, number
from .info import Result
from .problem import Key

Vector: TypeAlias = Float[Array, " n"]
Product: TypeAlias = Callable[[Vector], Vector]


NEARLY = 0.999  # a largest eigenvalue is seen from below, as the directions of a series turn towards its own


class LinearSystem(eqx.Module):
    """A v = b.

    **Arguments:**

    - `matvec`: u -> A u.
    - `b`: the right-hand side.
    - `symmetric`: whether A is known to be, as the Hessian of an inner loss is.
    - `key`: for inverses that draw (a sketch, the start of power iterations).
    - `precondition`: u -> M u with a positive definite M near A^-1; None is the identity.
    """

    matvec: Product
    b: Vector
    symmetric: bool = eqx.field(static=True)
    key: Key
    precondition: Product | None = None

    @property
    def preconditioned(self) -> Product:
        return self.precondition or (lambda u: u)


class AbstractInverse(eqx.Module):
    """Gives v with A v = b, or near it."""

    @abc.abstractmethod
    def __call__(self, system: LinearSystem) -> tuple[Vector, Array, Result]:
        """v, the number of iterations, and `Result.success` or what went wrong.

        How near v is need not be measured: the adjoint does.
        """


class ConjugateGradient(AbstractInverse):
    """At most `steps` conjugate gradients (Hestenes & Stiefel 1952), from v = 0, on (A + damping I) v = b.

    They stop where |b - (A + damping I) v| <= tolerance |b|, or at rounding error; and at a direction p with
    p^T A p <= 0, of which a positive definite A has none: `Result.negative_curvature`.

    **Arguments:** `normal` solves A^T A v = A^T b in place of it, for which A need be neither symmetric nor
    definite, with two products an iteration and the square of the condition number.

    **Raises:** `InputError` for a system not known to be symmetric, without `normal`.
    """

    steps: int = eqx.field(static=True)
    damping: float | Array = 0.0
    tolerance: float | Array = 0.0
    normal: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        count("steps", self.steps, 0)
        number("damping", self.damping, 0)
        number("tolerance", self.tolerance, 0)

    def __call__(self, system):
        matvec, b = lambda u: system.matvec(u) + self.damping * u, system.b
        if self.normal:
            transposed = jax.linear_transpose(matvec, b)
            forward, matvec, b = matvec, lambda u: transposed(forward(u))[0], transposed(b)[0]
        elif not system.symmetric:
            raise InputError(
                "ConjugateGradient: this inner solver's residual is not known to have a symmetric derivative. Take "
                "GMRES, BiCGSTAB, Neumann, Dense or ConjugateGradient(..., normal=True)."
            )
        enough = jnp.maximum(self.tolerance, jnp.finfo(b.dtype).eps) * jnp.linalg.norm(b)
        precondition = system.preconditioned

        def go_on(state):
            i, _, r, _, _, positive = state
            return (i < self.steps) & positive & ~(jnp.linalg.norm(r) <= enough)  # a NaN goes on, and comes out

        def step(state):
            i, v, r, p, rz, _ = state
            q = matvec(p)
            curvature = p @ q
            positive = ~(curvature <= 0)
            alpha = jnp.where(positive, rz / curvature, 0)
            v, r = v + alpha * p, r - alpha * q
            z = precondition(r)
            rz, last = r @ z, rz
            return i + 1, v, r, z + rz / last * p, rz, positive

        z = precondition(b)
        start = (jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, z, b @ z, jnp.array(True))
        i, v, _, _, _, positive = jax.lax.while_loop(go_on, step, start)
        failure = Result.linear_breakdown if self.normal else Result.negative_curvature
        return v, i, Result.where(positive, Result.success, failure)


class Neumann(AbstractInverse):
    """v = scale sum_{i=0}^{terms} (I - scale A)^i b (Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590, section 3).

    With `terms` = 0 and `scale` = 1 it is `Identity`; at a stationary point of the inner loss, `terms` = k - 1 is
    what k unrolled gradient steps of that size give. It converges where every eigenvalue of scale A lies between 0
    and 2. Growing terms and an eigenvalue of 2 or more end as `Result.series_diverged`, a direction p of the series
    with p^T A p < 0 as `Result.negative_curvature`.

    With a preconditioner M, A is M A and b is M b.

    **Arguments:** `scale` is 1 / (the largest eigenvalue, estimated by `power_iterations`) if None.
    """

    terms: int = eqx.field(static=True)
    scale: float | Array | None = None
    power_iterations: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        count("terms", self.terms, 0)
        count("power_iterations", self.power_iterations, 1)
        if self.scale is not None:
            number("scale", self.scale, 0, above=True)

    def __call__(self, system):
        precondition = system.preconditioned
        scale = self._estimated(system) if self.scale is None else self.scale
        certain = system.symmetric and system.precondition is None
        above = 1 + 100 * jnp.finfo(system.b.dtype).eps

        def add(state, _):
            v, p, _, largest, least = state
            q = system.matvec(p)
            after = p - scale * precondition(q)
            size, curvature = jnp.linalg.norm(p), p @ q
            growth = jnp.where(size > 0, jnp.linalg.norm(after) / size, 0)
            largest = jnp.maximum(largest, jnp.where(curvature > 0, q @ q / curvature, 0))
            return (v + after, after, growth, largest, jnp.minimum(least, curvature)), None

        p = precondition(system.b)
        zero = jnp.zeros((), p.dtype)
        state, _ = jax.lax.scan(add, (p, p, zero, zero, zero), length=self.terms)
        v = state[0]
        _, _, growth, largest, least = add(state, None)[0]  # the next term, which tells what v leaves out
        diverged = ~(growth <= above) | (certain & ~(scale * largest < 2 * NEARLY)) | ~jnp.isfinite(v).all()
        diverged &= jnp.isfinite(system.b).all()
        result = Result.where(diverged, Result.series_diverged, Result.success)
        if system.symmetric:
            result = Result.where(least < 0, Result.negative_curvature, result)
        return scale * v, jnp.array(self.terms, jnp.int32), result

    def _estimated(self, system: LinearSystem) -> Array:
        """1 / |M A|, by power iterations."""

        def iterate(u, _):
            u = system.preconditioned(system.matvec(u / jnp.linalg.norm(u)))
            return u, jnp.linalg.norm(u)

        start = jax.random.normal(system.key, system.b.shape, system.b.dtype)
        return 1 / jax.lax.scan(iterate, start, length=self.power_iterations)[1][-1]


class Identity(AbstractInverse):
    """v = b: A taken for I (T1-T2, Luketina et al. 2016, arXiv:1511.06727); M b with a preconditioner M (SAMA)."""

    def __call__(self, system):
        return system.preconditioned(system.b), jnp.zeros((), jnp.int32), Result.success


class Dense(AbstractInverse):
    """A written out, n products and n^2 numbers, and factorised: exact up to rounding, for small n.

    A symmetric A with a negative eigenvalue is `Result.negative_curvature`: y is then no minimum.
    """

    def __call__(self, system):
        _plain(self, system)
        _factorised(self, system)
        n = len(system.b)
        a = _rows(system, jnp.arange(n)).T
        v = jnp.linalg.solve(a, system.b)
        result = _unless_broken(v, system.b)
        if system.symmetric:
            spectrum = jnp.linalg.eigvalsh((a + a.T) / 2)
            negative = spectrum[0] < -n * jnp.finfo(v.dtype).eps * jnp.abs(spectrum).max()
            result = Result.where(negative, Result.negative_curvature, result)
        return v, jnp.array(n, jnp.int32), result


class Nystrom(AbstractInverse):
    """v = (A_k + damping I)^-1 b with the Nystrom approximation A_k of `rank` random columns of a symmetric A
    (Hataya & Yamada 2023, arXiv:2302.09726), in the eigenvectors of A_k (Frangella, Tropp & Udell 2023, algorithm
    2.1), which keeps a small damping from cancelling digits.

    The columns' own block must be positive semidefinite: else `Result.negative_curvature`.

    **Raises:** `InputError` for a system not known to be symmetric.
    """

    rank: int = eqx.field(static=True)
    damping: float | Array = 1e-2

    def __check_init__(self):
        count("rank", self.rank, 1)
        number("damping", self.damping, 0, above=True)

    def __call__(self, system):
        _plain(self, system)
        _factorised(self, system)
        if not system.symmetric:
            raise InputError("Nystrom: this inner solver's residual is not known to have a symmetric derivative.")
        n = len(system.b)
        chosen = jax.random.permutation(system.key, n)[: self.rank]
        rows = _rows(system, chosen)
        block = rows[:, chosen]
        w, basis = jnp.linalg.eigh((block + block.T) / 2)
        floor = n * jnp.finfo(w.dtype).eps * jnp.abs(w).max()
        root = jnp.where(w > floor, jax.lax.rsqrt(jnp.maximum(w, floor)), 0)
        u, s, _ = jnp.linalg.svd((rows.T @ basis) * root, full_matrices=False)
        along = u.T @ system.b
        rest = system.b - u @ along
        rest = rest - u @ (u.T @ rest)  # once more: rounding is about to be divided by the damping
        v = u @ (along / (s**2 + self.damping)) + rest / self.damping
        result = Result.where(w.min() < -floor, Result.negative_curvature, _unless_broken(v, system.b))
        return v, jnp.array(min(self.rank, n), jnp.int32), result


class Lineax(AbstractInverse):
    """Any solver of lineax, which is imported when it is used. A solver that stops at its last step has not failed.

    A symmetric A is tagged positive semidefinite, which lineax's own conjugate gradients ask for and do not test.
    """

    solver: Any

    def __call__(self, system):
        import lineax

        _plain(self, system)
        like = jax.eval_shape(lambda: system.b)
        tags = (lineax.symmetric_tag, lineax.positive_semidefinite_tag) if system.symmetric else ()
        operator = lineax.FunctionLinearOperator(system.matvec, like, tags)
        found = lineax.linear_solve(operator, system.b, self.solver, throw=False)
        done = (found.result == lineax.RESULTS.successful) | (found.result == lineax.RESULTS.max_steps_reached)
        steps = found.stats.get("num_steps")
        return (
            found.value,
            jnp.asarray(len(system.b) if steps is None else steps, jnp.int32),
            Result.where(done, _unless_broken(found.value, system.b), Result.linear_breakdown),
        )


class GMRES(AbstractInverse):
    """`steps` iterations of GMRES (Saad & Schultz 1986), not restarted, for any A: the v of least |b - A v| among the
    combinations of b, A b, ..., A^(steps-1) b, in memory of steps + 1 vectors."""

    steps: int = eqx.field(static=True)

    def __check_init__(self):
        count("steps", self.steps, 1)

    def __call__(self, system):
        _plain(self, system)
        _factorised(self, system)
        b, steps = system.b, min(self.steps, len(system.b))
        size = jnp.linalg.norm(b)
        floor = jnp.finfo(b.dtype).eps

        def arnoldi(basis, i):
            w = system.matvec(basis[i])
            before = jnp.linalg.norm(w)
            h = basis @ w
            w = w - basis.T @ h
            again = basis @ w  # once more, against rounding
            w = w - basis.T @ again
            after = jnp.linalg.norm(w)
            grows = after > floor * before  # else the space is complete, and what is left is noise
            basis = basis.at[i + 1].set(jnp.where(grows, w / jnp.where(grows, after, 1), 0))
            return basis, (h + again).at[i + 1].add(jnp.where(grows, after, 0))

        basis = jnp.zeros((steps + 1, len(b)), b.dtype).at[0].set(b / jnp.where(size == 0, 1, size))
        basis, columns = jax.lax.scan(arnoldi, basis, jnp.arange(steps))
        wanted = jnp.zeros(steps + 1, b.dtype).at[0].set(size)
        v = basis[:steps].T @ jnp.linalg.lstsq(columns.T, wanted)[0]
        return v, jnp.array(steps, jnp.int32), _unless_broken(v, b)


class BiCGSTAB(AbstractInverse):
    """At most `steps` stabilised bi-conjugate gradients (van der Vorst 1992), for any nonsingular A.

    They stop where |b - A v| <= tolerance |b|, or at rounding error; a vanishing denominator before that is
    `Result.linear_breakdown`.
    """

    steps: int = eqx.field(static=True)
    tolerance: float | Array = 0.0

    def __check_init__(self):
        count("steps", self.steps, 1)
        number("tolerance", self.tolerance, 0)

    def __call__(self, system):
        _plain(self, system)
        b, tiny = system.b, jnp.finfo(system.b.dtype).tiny
        enough = jnp.maximum(self.tolerance, jnp.finfo(b.dtype).eps) * jnp.linalg.norm(b)
        safe = lambda a: jnp.where(a == 0, 1, a)

        def go_on(state):
            i, _, r, _, _, whole = state
            return (i < self.steps) & whole & ~(jnp.linalg.norm(r) <= enough)  # a NaN goes on, and comes out

        def step(state):
            i, v, r, p, rho, _ = state
            q = system.matvec(p)
            alpha = rho / safe(b @ q)
            s = r - alpha * q
            t = system.matvec(s)
            omega = (t @ s) / safe(t @ t)
            v, r = v + alpha * p + omega * s, s - omega * t
            last, rho = rho, b @ r
            p = r + rho / safe(last) * alpha / safe(omega) * (p - omega * q)
            whole = ~(jnp.abs(b @ q) <= tiny) & ~(jnp.abs(last) <= tiny)
            return i + 1, v, r, p, rho, whole

        start = (jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, b, b @ b, jnp.array(True))
        i, v, r, _, _, whole = jax.lax.while_loop(go_on, step, start)
        solved = whole | (jnp.linalg.norm(r) <= enough)
        return v, i, Result.where(solved, _unless_broken(v, b), Result.linear_breakdown)


def lowest_eigenvalue(system: LinearSystem, iterations: int = 30) -> Array:
    """The smallest Ritz value of a symmetric A after `iterations` Lanczos steps (with every vector orthogonalised
    against all before it): from above, and near where the spectrum's lower end is not crowded."""
    n = len(system.b)
    steps = min(iterations, n)
    tiny = jnp.sqrt(jnp.finfo(system.b.dtype).tiny)

    def step(state, i):
        basis, u = state
        basis = basis.at[i].set(u)
        w = system.matvec(u)
        w = w - basis.T @ (basis @ w)
        w = w - basis.T @ (basis @ w)
        size = jnp.linalg.norm(w)
        return (basis, jnp.where(size > tiny, w / jnp.maximum(size, tiny), 0)), None

    start = jax.random.normal(system.key, (n,), system.b.dtype)
    state = (jnp.zeros((steps, n), start.dtype), start / jnp.linalg.norm(start))
    (basis, _), _ = jax.lax.scan(step, state, jnp.arange(steps))
    projected = basis @ jax.vmap(system.matvec)(basis).T
    kept = jnp.linalg.norm(basis, axis=1) > 0.5
    large = jnp.abs(projected).sum() + 1
    projected = jnp.where(kept[:, None] & kept[None, :], projected, large * jnp.eye(steps))
    return jnp.linalg.eigvalsh((projected + projected.T) / 2)[0]


def _rows(system: LinearSystem, which: Array) -> Float[Array, "k n"]:
    """A e_i of every i of `which`."""
    return jax.vmap(lambda i: system.matvec(jnp.zeros_like(system.b).at[i].set(1)))(which)


def _unless_broken(v: Vector, b: Vector) -> Result:
    broken = jnp.isfinite(b).all() & ~jnp.isfinite(v).all()
    return Result.where(broken, Result.linear_breakdown, Result.success)


def _factorised(inverse: AbstractInverse, system: LinearSystem) -> None:
    if system.b.dtype.itemsize < 4:
        raise InputError(
            f"{type(inverse).__name__}: y holds {system.b.dtype}, of which there is no factorisation. Let y be of "
            "float32, or take ConjugateGradient, Neumann, BiCGSTAB or Identity."
        )


def _plain(inverse: AbstractInverse, system: LinearSystem) -> None:
    if system.precondition is not None:
        name = type(inverse).__name__
        raise InputError(f"{name} takes no preconditioner: ConjugateGradient, Neumann and Identity do.")
