"""What the estimators are held against: the derivative of the path, and that of the solved problem."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..adjoints import StopGradient, Unroll, optimizer_remedy, solved
from ..differences import central_differences, random_directions
from ..error_bound import stationary
from ..errors import ComputationError
from ..implicit import Implicit
from ..info import Result
from ..linear import GMRES, ConjugateGradient, Dense
from ..precision import double_precision, doubled
from ..problem import BilevelProblem, Inner, Key, Outer, Scalar, Task
from ..solvers import AbstractInnerSolver, inner_gradient
from .candidates import ROWS, steps_of

Target = Literal["path", "solution"]
RANDOM = 3  # directions of central differences, beside the gradient's own
AGAIN = 20  # solves, one from where the other stopped, where Newton's method does not apply
SAME = 1e-3  # relative, of F: what tells one problem in two precisions from two problems
EXACT = 1e-4  # of the distance to a solution, and of its linear system: what counts as solved


class Reference(NamedTuple):
    """Gradients in flat vectors.

    - `path`: of x -> F(x, y_K(x)), what the inner solver computes, by the derivative of its steps.
    - `solution`: of x -> F(x, y*(x)) at the solution y* near the y reached, by the implicit function theorem; None
      where none was found, and then `unsolved` says why.
    - `disagreement`: of the one that is the target, with central differences of its function, relative; NaN where
      these settle at no step size.
    - `dtype`: in which all this was computed.
    """

    path: np.ndarray
    solution: np.ndarray | None
    unsolved: str
    disagreement: float
    dtype: str

    @property
    def apart(self) -> float:
        """The distance of the two gradients, relative to that of the path."""
        if self.solution is None:
            return np.nan
        return float(np.linalg.norm(self.path - self.solution) / np.linalg.norm(self.path))

    @property
    def doubtful(self) -> bool:
        """Whether central differences disagree by more than their own digits explain."""
        return not self.disagreement <= (1e-3 if self.dtype == "float64" else 0.1)


class Converged(AbstractInnerSolver):
    """`solver`, and from where it stops to the solution: by Newton's method where the residual is a gradient, by more
    of the same elsewhere."""

    solver: AbstractInnerSolver

    @property
    def symmetric(self) -> bool:
        return self.solver.symmetric

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        solve = lambda y: self.solver.solve(problem, x, y, task, key)
        y = solve(y0)
        if self.symmetric:
            enough = float(jnp.finfo(ravel_pytree(y)[0].dtype).eps)
            return stationary(lambda y: self.residual(problem, x, y, task, key), y, key, enough)
        return jax.lax.fori_loop(0, AGAIN, lambda _, y: solve(y), y)

    def residual(self, problem, x, y, task, key):
        return self.solver.residual(problem, x, y, task, key)


def refer(
    problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, task: Task, key: Key, target: Target
) -> Reference:
    """In double precision, unless the problem is another there: for the random numbers that it draws, or for arrays of
    a type that it states.

    **Raises:** `ComputationError` where the derivative of the path is not finite, or zero.
    """
    if not jax.config.read("jax_enable_x64"):
        value = _value(problem, solver)
        single = float(jax.jit(value)(x, task, key))
        with double_precision(value, x, task, key):
            start = lambda *given: doubled(problem.init(*given))
            wide, by, at, on = doubled((replace(problem, init=start), solver, x, task))
            found = _in_double(wide, by, at, on, key)
            if found is not None and abs(found[1] - single) <= SAME * max(abs(found[1]), abs(single)):
                return _refer(found[0], wide, by, at, on, key, target)
    path, _ = _path(problem, solver, x, task, key)
    return _refer(path, problem, solver, x, task, key, target)


def _path(
    problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, task: Task, key: Key
) -> tuple[np.ndarray, float]:
    """The derivative of the solver's own steps, and F."""
    through = Unroll(checkpoint=None if steps_of(solver) is None else "sqrt")
    reached, gradient = eqx.filter_jit(through.hypergradient)(problem, solver, x, task, key)
    return _flat(gradient), float(reached.value)


def _refer(
    path: np.ndarray,
    problem: BilevelProblem,
    solver: AbstractInnerSolver,
    x: Outer,
    task: Task,
    key: Key,
    target: Target,
) -> Reference:
    if not np.isfinite(path).all():
        bad = int((~np.isfinite(path)).sum())
        raise ComputationError(
            f"{bad} of the {path.size} entries of the derivative through the inner solve are not finite: there is "
            "nothing to compare estimators with. Lower the inner learning rate, and look at the losses."
            + optimizer_remedy(problem, solver, Unroll(), x, task, key)
        )
    if not path.any():
        raise ComputationError("The derivative through the inner solve is zero at this x: look from another x.")
    converged = Converged(solver)
    solution, unsolved = _solution(problem, converged, x, task, key)
    function, gradient = _value(problem, solver), path
    if target == "solution":
        if solution is None:
            raise ComputationError(f"There is no solved problem to take the derivative of: {unsolved}.")
        function, gradient = _value(problem, converged), solution
    flat = ravel_pytree(x)[0]
    own = jnp.asarray(gradient / (np.linalg.norm(gradient) or 1), flat.dtype)
    directions = jnp.concatenate([own[None], random_directions(x, RANDOM, key)])
    found = central_differences(lambda x, *given: function(x, *given), x, directions, task, key)
    slopes = np.asarray(directions, np.float64) @ gradient
    size = np.linalg.norm(slopes)
    disagreement = float(np.linalg.norm(found.value - slopes) / size) if size else float(np.abs(found.value).max())
    return Reference(path, solution, unsolved, disagreement, str(flat.dtype))


def _solution(
    problem: BilevelProblem, solver: Converged, x: Outer, task: Task, key: Key
) -> tuple[np.ndarray | None, str]:
    """The implicit hypergradient at the solution, and why there is none."""
    y, residual = eqx.filter_eval_shape(_ends, problem, solver.solver, x, task, key)
    if jax.tree.map(jnp.shape, residual) != jax.tree.map(jnp.shape, y):
        return None, f"the residual of {type(solver.solver).__name__} is not shaped like y"
    size = sum(a.size for a in jax.tree.leaves(y))
    inverse = Dense() if size <= ROWS else ConjugateGradient(ROWS) if solver.symmetric else GMRES(100)
    adjoint = Implicit(inverse, tolerance=EXACT, linear_tolerance=EXACT)
    reached, gradient = eqx.filter_jit(adjoint.hypergradient)(problem, solver, x, task, key)
    if reached.certificate.result == Result.success:
        return _flat(gradient), ""
    return None, f"near the y reached, {Result[reached.certificate.result]}"


def _ends(problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, task: Task, key: Key) -> tuple[Inner, PyTree]:
    """y, and the residual there."""
    z, y0, k_solve = problem.begin(x, task, key)
    y = solver.solve(problem, z, y0, task, k_solve)
    return y, solver.residual(problem, z, y, task, k_solve)


def _value(problem: BilevelProblem, solver: AbstractInnerSolver) -> Callable[..., Scalar]:
    return lambda x, task, key: solved(problem, solver, StopGradient(), x, task, key)[0]


def _flat(gradient: Outer) -> np.ndarray:
    return np.asarray(ravel_pytree(gradient)[0], np.float64)


def _in_double(
    problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, task: Task, key: Key
) -> tuple[np.ndarray, float] | None:
    """As `_path`, where F and y are of double precision: arrays of a stated type are not, and loops, or constants that
    jax met in single precision before, may refuse a mixture, which then is to be tried in single."""
    try:
        value, (_, _, y) = eqx.filter_eval_shape(solved, problem, solver, StopGradient(), x, task, key)
        double = all(a.dtype == np.float64 for a in jax.tree.leaves((value, y)))
        return _path(problem, solver, x, task, key) if double else None
    except (TypeError, ValueError):
        return None
