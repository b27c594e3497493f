"""Why a direction is not the derivative that it claims to be: each cause is tried, and believed where the numbers
bear it out."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..adjoints import AbstractAdjoint, ForwardMode, StopGradient, Unroll
from ..estimators import Nested, WarmStarted
from ..hypergradients import idle_leaves
from ..implicit import Implicit
from ..info import Result
from ..linear import GMRES, AbstractInverse, BiCGSTAB, ConjugateGradient, Dense, Identity, Neumann, Nystrom
from ..problem import Key, Outer
from ..solvers import AbstractIterativeSolver
from ..windows import Truncated
from .claims import Claim, Evidence, certificate_of, differences_of, gradient_of
from .report import Finding, Series, Verdict

KEYS = 16  # other keys that are tried where numbers are drawn
SMALL = 1000  # entries of y of which the Hessian is written out
MOST_WORK = 2 * 10**7  # inner steps times entries of y, beyond which no longer solves are tried
MOST_TERMS = 20_000
_SAID = (
    (Result.negative_curvature, Verdict.NO_MINIMUM),
    (Result.inner_not_stationary, Verdict.NOT_CONVERGED),
    (Result.series_diverged, Verdict.TRUNCATED),
    (Result.linear_breakdown, Verdict.TRUNCATED),
)
OTHERS = 0.03  # of what is allowed for others of its leaf, which one entry may miss by
ALIKE = 1e-3  # relative distance of two gradients that count for the same


def causes(claim: Claim, x: Outer, key: Key, found: Evidence, tolerance: float) -> Iterator[Callable[[], Any]]:
    """Functions that give a `Finding` or None, the surest first."""
    adjoint = _adjoint(claim)
    lookalikes = lambda: _lookalikes(claim, adjoint, x, key, found)
    declared = isinstance(adjoint, StopGradient) or (
        isinstance(adjoint, Unroll) and (adjoint.first_order or adjoint.window is not None)
    )
    if declared:
        yield lookalikes
    yield lambda: _dead_leaves(claim, adjoint, x, key, found, tolerance)
    if isinstance(adjoint, Implicit):
        yield lambda: _of_implicit(claim, adjoint, x, key, found, tolerance)
    if not declared:
        yield lookalikes
    factor = lambda: _factor(found)
    if len(found.gradient) > 1:
        yield factor
    if not isinstance(adjoint, Unroll | ForwardMode | StopGradient | Implicit):  # which have one key for all they do
        yield lambda: _noise(claim, x, key, found, tolerance)
    yield factor


def _adjoint(claim: Claim) -> AbstractAdjoint | None:
    estimator = claim.estimator
    return estimator.adjoint if isinstance(estimator, Nested | WarmStarted | Truncated) else None


def _with(claim: Claim, **fields: Any) -> Claim:
    return dataclasses.replace(claim, estimator=dataclasses.replace(claim.estimator, **fields))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Relative distance of a from b."""
    away, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return away / size if size else (math.inf if away else 0.0)


def _dead_leaves(
    claim: Claim, adjoint: AbstractAdjoint | None, x: Outer, key: Key, found: Evidence, tolerance: float
) -> Finding | None:
    """Leaves of a gradient that is zero, whatever they are, where the differences are not, if all else agrees."""
    paths = jax.tree_util.tree_leaves_with_path(x)
    parts = np.split(found.gradient, np.cumsum([leaf.size for _, leaf in paths])[:-1])
    only = 0 if len(paths) == 1 else None
    leaf_of = [only if leaf is None else leaf for leaf in found.leaves]
    bad = disagreeing(found, tolerance)
    wrong = {leaf for leaf, b in zip(leaf_of, bad, strict=True) if b and leaf is not None}
    if not wrong or any(parts[leaf].any() for leaf in wrong):
        return None
    if adjoint is not None:
        estimator: Any = claim.estimator
        task = jax.tree.map(lambda a: a[0], claim.tasks)
        if not wrong <= set(idle_leaves(estimator.problem, estimator.solver, adjoint, x, task, key)):
            return None
    names = ", ".join(f"x{jax.tree_util.keystr(paths[leaf][0])}" for leaf in sorted(wrong))
    seen = "" if adjoint is None else f" {adjoint.unseen}"
    reason = f"the hypergradient of {names} is zero, and the outer loss does change with it.{seen}"
    return Finding(Verdict.DEAD_LEAF, reason)


def disagreeing(found: Evidence, tolerance: float) -> np.ndarray:
    """For each direction, whether slope and difference lie further apart than is `allowed`."""
    return np.abs(found.slopes - found.differences.value) > allowed(found, tolerance)


def unjudged(found: Evidence, tolerance: float) -> list[str]:
    """The directions along which as much is allowed as slope and difference amount to, unless both are zero."""
    size = np.maximum(np.abs(found.slopes), np.abs(found.differences.value))
    unseen = (size > 0) & (size <= allowed(found, tolerance))
    return [name for name, u in zip(found.names, unseen, strict=True) if u]


def allowed(found: Evidence, tolerance: float) -> np.ndarray:
    """How far slope and difference may lie apart: `tolerance` times their size, a little of the size of others, and
    what the differences are uncertain by."""
    size = np.maximum(np.abs(found.slopes), np.abs(found.differences.value))
    each = np.array([-1 if leaf is None else leaf for leaf in found.leaves])
    around = np.array([size[each == leaf].max() for leaf in each])
    # a direction may happen to be nearly orthogonal to the gradient: what counts is the gradient's size beside it, but
    # along a coordinate
    own = np.where(found.coordinates, size, around)
    rounding = np.sqrt(np.finfo(np.asarray(found.directions).dtype).eps)
    return tolerance * (own + OTHERS * around) + 3 * found.differences.error + rounding * size.max()


def _of_implicit(
    claim: Claim, adjoint: Implicit, x: Outer, key: Key, found: Evidence, tolerance: float
) -> Finding | None:
    """A truncated linear solve where an exact one agrees; an inner solve that stopped early where a longer one does."""
    exact = _exact(claim, adjoint, x, key)
    better = _with(claim, adjoint=dataclasses.replace(adjoint, inverse=exact, precondition=None))
    gradient = gradient_of(better, x, key)
    if _agrees(found, gradient, 10 * tolerance):
        away = _apart(found.gradient, gradient)
        series, enough = _terms(claim, adjoint, gradient, x, key, found, tolerance)
        reason = f"{adjoint.inverse} leaves a relative error of {away:.2g}; an exact linear solve agrees."
        if series is not None:
            last = series.errors[-1]
            reason += f" {enough} {series.of} would do." if enough else f" {series.numbers[-1]} leave {last:.2g}."
            if not last <= series.errors[0]:
                reason += " More of them make it worse: the series diverges. Lower its scale, or leave it out."
        return Finding(Verdict.TRUNCATED, reason, series)
    solver = claim.estimator.solver  # pyright: ignore[reportAttributeAccessIssue]
    longer = _longer(better, solver, x, key, found, tolerance) if isinstance(solver, AbstractIterativeSolver) else None
    return longer or _certified(claim, x, key, found)


def _agrees(found: Evidence, gradient: np.ndarray, tolerance: float) -> bool:
    """Whether another gradient meets the differences."""
    return not disagreeing(dataclasses.replace(found, gradient=gradient), tolerance).any()


def _exact(claim: Claim, adjoint: Implicit, x: Outer, key: Key) -> AbstractInverse:
    if (n := _size_of_y(claim, x, key)) <= SMALL:
        return Dense()
    estimator: Any = claim.estimator
    return ConjugateGradient(min(n, 300)) if estimator.solver.symmetric else GMRES(100)


def _size_of_y(claim: Claim, x: Outer, key: Key) -> int:
    estimator: Any = claim.estimator
    task = jax.tree.map(lambda a: a[0], claim.tasks)
    y = eqx.filter_eval_shape(estimator.problem.begin, x, task, key)[1]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(y))


def _longer(
    claim: Claim,
    solver: AbstractIterativeSolver,
    x: Outer,
    key: Key,
    found: Evidence,
    tolerance: float,
) -> Finding | None:
    """More inner steps, four times as many at each trial, until the hypergradient meets the derivative of the path."""
    path = Unroll(checkpoint="sqrt")
    if not _agrees(found, gradient_of(_with(claim, adjoint=path), x, key), tolerance):
        return None
    numbers, errors, steps = [solver.steps], [found.error], max(1, solver.steps)
    while math.isfinite(errors[-1]) and errors[-1] > 0.1 * tolerance:
        if len(errors) > 1 and 4 * steps * _size_of_y(claim, x, key) > MOST_WORK:
            break
        steps *= 4
        longer = _with(claim, solver=dataclasses.replace(solver, steps=steps))
        numbers.append(steps)
        errors.append(_apart(gradient_of(longer, x, key), gradient_of(_with(longer, adjoint=path), x, key)))
    series = Series("inner steps", numbers, errors)
    where = f"after {solver.steps} inner steps y is not where the implicit function theorem holds"
    unrolled = "or differentiate the steps (Unroll)."
    if errors[-1] <= 0.1 * tolerance:
        remedy = f"the error of {errors[0]:.2g} is gone after {steps}. Take about that many, {unrolled}"
        return Finding(Verdict.NOT_CONVERGED, f"{where}: {remedy}", series)
    if errors[-1] < 0.5 * errors[0]:
        remedy = f"an error of {errors[0]:.2g}, and still {errors[-1]:.2g} after {steps}. Take a faster inner solver"
        return Finding(Verdict.NOT_CONVERGED, f"{where}: {remedy}, {unrolled}", series)
    return None


def _certified(claim: Claim, x: Outer, key: Key, found: Evidence) -> Finding | None:
    """What the certificate of an implicit hypergradient says itself."""
    certificate = certificate_of(claim, x, key)
    for result, verdict in _SAID:
        if (certificate.result == result).any():
            return Finding(verdict, f"{Result[result]}; a relative error of {found.error:.2g}.")
    return None


def _terms(
    claim: Claim, adjoint: Implicit, exact: np.ndarray, x: Outer, key: Key, found: Evidence, tolerance: float
) -> tuple[Series | None, int | None]:
    """The error by the number of terms, and the first number that is enough."""
    make: Callable[[int], AbstractInverse]
    match adjoint.inverse:
        case Neumann(terms=given, scale=scale):
            of, make = "terms", lambda n: Neumann(n, scale)
        case Identity():
            of, given, make = "terms of Neumann", 0, lambda n: Neumann(n)
        case ConjugateGradient(steps=given):
            inverse = adjoint.inverse
            of, make = "conjugate gradients", lambda n: dataclasses.replace(inverse, steps=n)
        case GMRES(steps=given):
            of, make = "iterations of GMRES", GMRES
        case BiCGSTAB(steps=given):
            of, make = "iterations of BiCGSTAB", BiCGSTAB
        case Nystrom(rank=given, damping=damping):
            of, make = "ranks", lambda n: Nystrom(n, damping)
        case _:
            return None, None
    numbers, errors, n, enough = [], [], max(1, given), False
    while n <= MOST_TERMS and len(numbers) < 6 and not enough:
        changed = gradient_of(_with(claim, adjoint=dataclasses.replace(adjoint, inverse=make(n))), x, key)
        numbers.append(n)
        errors.append(_apart(changed, exact))
        enough = _agrees(found, changed, tolerance)
        if not math.isfinite(errors[-1]) or (len(errors) > 1 and errors[-1] > 0.99 * errors[-2]):
            break  # more of them do not help, as where the system is damped
        n *= 4
    return Series(of, numbers, errors), numbers[-1] if enough else None


def _lookalikes(claim: Claim, adjoint: AbstractAdjoint | None, x: Outer, key: Key, found: Evidence) -> Finding | None:
    """The gradients that are known to leave something out, where this one is the same."""
    estimator: Any = claim.estimator
    if isinstance(estimator, Nested | WarmStarted | Truncated):
        with_adjoint = lambda other: _with(claim, adjoint=other)
    elif claim.solved is not None:
        problem, solver = claim.solved.problem, claim.solved.solver
        with_adjoint = lambda other: dataclasses.replace(claim, estimator=Nested(problem, solver, other), solved=None)
    else:
        return None
    same = lambda other: _apart(found.gradient, gradient_of(with_adjoint(other), x, key)) <= ALIKE
    size = f"a relative error of {found.error:.2g}"
    if isinstance(adjoint, StopGradient):
        return Finding(Verdict.STOPPED, f"StopGradient() leaves dy/dx out, {size}.")
    if isinstance(adjoint, Unroll) and adjoint.first_order:
        return Finding(Verdict.FIRST_ORDER, f"first_order=True leaves the inner Hessians out, {size}.")
    if isinstance(adjoint, Unroll) and adjoint.window is not None:
        left = f"window={adjoint.window} leaves out what the steps before have to do with x, {size}."
        return Finding(Verdict.WINDOWED, left)
    if same(Unroll(first_order=True)):
        why = "it is that of Unroll(first_order=True): a gradient within the inner solve is taken for a constant"
        return Finding(Verdict.FIRST_ORDER, f"{why}, {size}.")
    if not isinstance(estimator, Truncated) and same(StopGradient()):
        why = "it is the direct term dF/dx alone: y is taken for a constant"
        return Finding(Verdict.STOPPED, f"{why}, {size}.")
    return None


def _noise(claim: Claim, x: Outer, key: Key, found: Evidence, tolerance: float) -> Finding | None:
    """Slopes that scatter from key to key about the differences' mean over the same keys."""
    if not found.draws:
        return None
    directions = jnp.asarray(found.whole)
    slopes, differences = [], []
    for k in jax.random.split(key, KEYS):
        slopes.append(found.whole @ gradient_of(claim, x, k))
        differences.append(differences_of(claim, x, directions, k).value)
    apart = np.asarray(slopes) - np.asarray(differences)
    scatter = apart.std(0, ddof=1)
    size = np.sqrt(np.mean(np.square(differences)))
    if not np.isfinite(apart).all() or np.sqrt(np.mean(scatter**2)) < tolerance * size:
        return None
    if (np.abs(apart.mean(0)) > 4 * scatter / np.sqrt(KEYS)).any():
        return None
    relative = np.sqrt(np.mean(scatter**2)) / size
    return Finding(
        Verdict.NOISE,
        f"from key to key it scatters by {relative:.2g} of its size about the differences, whose mean over {KEYS} keys "
        "it meets: another key is drawn from than for the loss, or it is a random estimate.",
    )


def _factor(found: Evidence) -> Finding | None:
    """The same direction with another length, or turned round."""
    slopes, differences = found.slopes, found.differences.value
    c = float(slopes @ differences / (differences @ differences))
    misfit = np.linalg.norm(slopes - c * differences) / np.linalg.norm(slopes)
    if not misfit <= min(0.02, 0.1 * abs(c - 1)) or c == 0:
        return None
    if c < 0:
        return Finding(Verdict.SIGN, f"it is {c:.4g} times what the differences say: it points uphill.")
    return Finding(Verdict.SCALE, f"it is {c:.4g} times what the differences say.")
