"""The implicit function theorem as an adjoint.

At a y with r(x, y) = 0 for the inner solver's residual r (dG/dy for a descent),

    dy/dx = - (dr/dy)^-1 dr/dx,     dF/dx in total = F_x - (dr/dx)^T v   with   (dr/dy)^T v = F_y,

whatever the path to y: in memory that does not depend on it.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, PyTree

from .adjoints import AbstractAdjoint
from .error_bound import error_bound, spectral_norm
from .errors import InputError, number
from .info import Certificate, Reached, Result, all_finite, norm
from .linear import AbstractInverse, LinearSystem, lowest_eigenvalue
from .problem import BilevelProblem, Inner, Key, Outer, Task
from .solvers import AbstractInnerSolver, AbstractIterativeSolver


class SecondMoments(eqx.Module):
    """sqrt(nu / (1 - b2^t)) + eps of Adam and its kin, from the optimizer's last state: a diagonal near a Hessian's
    (the adaptation of SAMA, Choe et al. 2023, arXiv:2310.05674, section 3.2)."""

    b2: float = 0.999
    eps: float = 1e-8

    def __call__(self, state: PyTree) -> PyTree:
        import optax

        moments, counted = (optax.tree_utils.tree_get(state, name) for name in ("nu", "count"))
        if moments is None or counted is None:
            raise InputError("SecondMoments: the inner optimizer keeps no second moments (nu), as optax.adam does.")
        bias = 1 - self.b2 ** jnp.maximum(counted, 1)
        return jax.tree.map(lambda a: jnp.sqrt(a / bias) + self.eps, moments)


class Implicit(AbstractAdjoint):
    """Implicit differentiation at the y that the solver reached, taken for a zero of its residual.

    The start y0, step sizes and numbers of steps have no part in it: their hypergradient is zero. Where y is not
    stationary the result is wrong, and says so: `Result.inner_not_stationary`; as it does where the inner loss curves
    downwards along v or along its gradient: `Result.negative_curvature`.

    A Hessian product is the derivative, linearised once, of the gradient (forward over reverse), where the residual's
    derivative is known to be symmetric; its transposed derivative elsewhere.

    **Arguments:**

    - `inverse`: solves the linear system.
    - `precondition(state) -> diagonal` of the solver's last state, a diagonal matrix near A, shaped like y, by which
      `inverse` is preconditioned; `SecondMoments()` for Adam.
    - `tolerance`: the largest `Certificate.distance` that counts as stationary.
    - `linear_tolerance`: a linear residual below it counts as solved. That of v = 0 is 1, and whoever truncates the
      linear solve on purpose wants no more; lower it to be told of every solve that is not exact.
    - `strong_convexity`: a number below every eigenvalue of the inner Hessian, or `"estimate"` for the smallest
      Ritz value of a few Lanczos steps; gives the certificate an `error_bound`, for some hundred products more. None
      leaves it out.

    **Raises:** `InputError` for numbers out of range; for strong convexity where the residual is not known to be a
    gradient; for a solver whose residual is not shaped like y.
    """

    inverse: AbstractInverse
    precondition: Callable[[PyTree], PyTree] | None = None
    tolerance: float | Array = 1e-3
    linear_tolerance: float | Array = 1.0
    strong_convexity: float | Array | str | None = None
    unseen: ClassVar[str] = (
        "Implicit sees what stands in the inner residual or in the outer loss itself, which the start of the inner "
        "solve, step sizes and numbers of steps do not: Unroll() sees them."
    )

    def __check_init__(self):
        if not isinstance(self.inverse, AbstractInverse):
            raise InputError(f"inverse = {self.inverse!r}: an inverse is wanted, such as ConjugateGradient(20).")
        number("tolerance", self.tolerance, 0)
        number("linear_tolerance", self.linear_tolerance, 0)
        if self.strong_convexity is not None and self.strong_convexity != "estimate":
            number("strong_convexity ('estimate', or a number)", self.strong_convexity, 0, above=True)

    def __call__(self, problem, solver, x, y0, task, key):
        reached = self._reach(problem, solver, *jax.lax.stop_gradient((x, y0, task)), key)
        y, precondition = jax.lax.stop_gradient(reached)
        residual = lambda x, y, task, key: solver.residual(problem, x, y, task, key)
        residual = eqx.filter_closure_convert(residual, x, y, task, key)
        return _implicit(x, y, residual, self.inverse, solver.symmetric, precondition, task, key)

    def hypergradient(self, problem, solver, x, task, key, begin=lambda y0: y0):
        def start(x):
            z, y0, k_solve = problem.begin(x, task, key)
            return z, (begin(y0), k_solve)

        z, pull, (y0, k_solve) = jax.vjp(start, x, has_aux=True)
        k_inner, k_outer = jax.random.split(k_solve)
        with jax.named_scope("inner_solve"):
            y, precondition = self._reach(problem, solver, z, y0, task, k_inner)
        loss = jax.value_and_grad(problem.objective, (0, 1), has_aux=True)
        (value, metrics), (direct, slope) = loss(z, y, task, k_outer)
        residual = lambda z, y: solver.residual(problem, z, y, task, k_inner)
        self._check(solver, jax.eval_shape(residual, z, y), y)
        system = _system(residual, z, y, slope, solver.symmetric, precondition, k_inner)
        with jax.named_scope("linear_solve"):
            v, iterations, result = self.inverse(system)
        r, cross = jax.vjp(lambda z: residual(z, y), z)
        unravel = ravel_pytree(y)[1]
        gradient = pull(jax.tree.map(jnp.subtract, direct, cross(unravel(v))[0]))[0]

        size = lambda a: jnp.linalg.norm(a)
        ratio = lambda a, b: jnp.where(b == 0, 0, a / b)
        away = ravel_pytree(r)[0]
        pushed, answer = system.matvec(away), system.matvec(v)
        missing = system.b - answer
        linear = ratio(size(missing), size(system.b))
        along = size(away) ** 2 / jnp.abs(away @ pushed)  # 1 / the curvature along r; that along v beside
        gap = size(away) * jnp.maximum(along, ratio(size(v), size(system.b)))
        gap = jnp.where(size(away) == 0, 0, gap)
        distance = jnp.where(gap == 0, 0, gap / jnp.maximum(norm(y), norm(y0)))
        if solver.symmetric:
            steepest = jnp.maximum(ratio(size(pushed), size(away)), ratio(size(answer), size(v)))
            noise = jnp.sqrt(jnp.finfo(v.dtype).eps) * steepest
            downwards = (away @ pushed < -noise * size(away) ** 2) | (v @ answer < -noise * size(v) ** 2)
            result = Result.where(downwards & (result == Result.success), Result.negative_curvature, result)
        stationary = (distance <= self.tolerance) | (gap <= jnp.finfo(gap.dtype).eps) | (result != Result.success)
        result = Result.where(stationary, result, Result.inner_not_stationary)
        solved = (linear < self.linear_tolerance) | (linear == 0) | (result != Result.success)
        result = Result.where(solved, result, Result.linear_breakdown)
        if not depends(lambda y: problem.objective(z, y, task, k_outer)[0], y):
            result = Result.success  # the direct term is all there is, whatever y
        finite = all_finite(value, gradient)
        broken = ~finite & ((result == Result.success) | (result == Result.inner_not_stationary))
        bound = None
        if self.strong_convexity is not None:
            convexity = self.strong_convexity
            convexity = lowest_eigenvalue(system) if isinstance(convexity, str) else convexity
            objective = lambda z, y: problem.objective(z, y, task, k_outer)[0]
            better, rest = error_bound(objective, residual, z, y, v, convexity, k_inner)
            bound = norm(jax.tree.map(jnp.subtract, gradient, pull(better)[0]))
            bound = bound + rest * spectral_norm(lambda x: start(x)[0], x, k_inner)
        certificate = Certificate(
            norm(r),
            Result.where(broken, Result.nonfinite, result),
            linear,
            iterations,
            distance,
            bound,
        )
        return Reached(value, metrics, y, certificate), gradient

    def _check(self, solver: AbstractInnerSolver, residual: PyTree, y: Inner) -> None:
        shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
        if shapes(residual) != shapes(y):
            raise InputError(
                f"Implicit: the residual of {type(solver).__name__} is not shaped like y, so that there is no square "
                "linear system. Differentiate the steps: Unroll()."
            )
        if self.strong_convexity is not None and not solver.symmetric:
            raise InputError(
                f"strong_convexity = {self.strong_convexity!r}: it bounds the error where the inner residual is a "
                f"gradient, which that of {type(solver).__name__} is not known to be."
            )

    def _reach(
        self, problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, y0: Inner, task: Task, key: Key
    ) -> tuple[Inner, PyTree]:
        """y, and the diagonal by which the inverse is preconditioned (None without)."""
        if self.precondition is None:
            return solver.solve(problem, x, y0, task, key), None
        if not isinstance(solver, AbstractIterativeSolver):
            raise InputError(f"precondition: the inner solver {type(solver).__name__} has no optimizer's state.")
        (y, state), _ = solver.path(problem, x, (y0, solver.init(x, y0)), task, key)
        return y, self.precondition(state)


def depends(fn: Callable[[PyTree], Array], at: PyTree) -> bool:
    """Whether `fn` uses its argument at all, by tracing."""
    used = dce_jaxpr(jax.make_jaxpr(fn)(at).jaxpr, [True])[1]
    return any(used)


def _system(
    residual: Callable[[Outer, Inner], PyTree],
    x: Outer,
    y: Inner,
    slope: Inner,
    symmetric: bool,
    precondition: PyTree,
    key: Key,
) -> LinearSystem:
    """(dr/dy)^T v = `slope`, in flat vectors."""
    flat = lambda tree: ravel_pytree(tree)[0]
    unravel = ravel_pytree(y)[1]
    if symmetric:
        product = jax.linearize(lambda y: residual(x, y), y)[1]
    else:
        pull = jax.vjp(lambda y: residual(x, y), y)[1]
        product = lambda u: pull(u)[0]
    diagonal = None if precondition is None else flat(precondition)
    divided = None if diagonal is None else lambda u: u / diagonal
    return LinearSystem(lambda u: flat(product(unravel(u))), flat(slope), symmetric, key, divided)


@eqx.filter_custom_jvp
def _implicit(x, y, residual, inverse, symmetric, precondition, task, key):
    """`y`, with the derivative of the theorem in x; differentiable again, for problems of more levels."""
    return y


@_implicit.def_jvp
def _(primals, tangents):
    x, y, residual, inverse, symmetric, precondition, task, key = primals
    y = _implicit(x, y, residual, inverse, symmetric, precondition, task, key)
    unravel = ravel_pytree(y)[1]
    # beside x, what the residual closes over and what comes with the task may be a variable of a problem above
    at, moved = (x, residual, task), (tangents[0], tangents[2], tangents[6])
    rises = eqx.filter_jvp(lambda x, residual, task: residual(x, y, task, key), at, moved)[1]
    rises = jax.tree.map(lambda r, a: jnp.zeros_like(a) if r is None else r, rises, y, is_leaf=lambda r: r is None)
    product = jax.linearize(lambda y: residual(x, y, task, key), y)[1]
    diagonal = None if precondition is None else ravel_pytree(precondition)[0]
    divided = None if diagonal is None else lambda u: u / diagonal

    def solve(matvec, b):
        return inverse(LinearSystem(matvec, b, symmetric, key, divided))[0]

    change = jax.lax.custom_linear_solve(
        lambda u: ravel_pytree(product(unravel(u)))[0], ravel_pytree(rises)[0], solve, solve, symmetric
    )
    return y, unravel(-change)
