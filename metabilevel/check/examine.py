"""The check itself: in double precision for the mathematics, then in the precision of x for its digits."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..adjoints import AbstractAdjoint, Unroll, check_parts
from ..errors import InputError, count, number
from ..estimators import Nested
from ..method import Method
from ..precision import double_precision, doubled
from ..problem import BilevelProblem, Key, Outer, Task, canonical, check_problem
from ..single_loop import SingleLoop
from ..solvers import AbstractInnerSolver
from ..tasks import Split, TaskDistribution, sample_batch
from .causes import causes, disagreeing, unjudged
from .claims import Claim, Evidence, batch_of_one, gather, gradient_of
from .report import Check, Finding, Verdict

FEW_DIGITS = 10  # times the tolerance: what single precision may lose


def check_hypergradient(
    problem: BilevelProblem,
    x: PyTree,
    task: Task,
    *,
    key: Key,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
    tolerance: float = 1e-3,
) -> Check:
    """Holds the hypergradient g of one task against central differences of the solved problem,

        <g, d>   against   (F(x + h d, y(x + h d)) - F(x - h d, y(x - h d))) / 2h,

    where y is solved anew at every point, with the same key, in random directions d, in one of every leaf of x and
    along coordinates. h is swept over many decades; what counts is the plateau, where the difference changes least.
    Both are computed in double precision, and g once more in the precision of x. Where they disagree the causes are
    tried one by one: more inner steps, an exact linear solve, gradients that leave something out, other keys, a factor.

    **Arguments:** as of `hypergradient`; `tolerance`: the relative distance that still counts for agreement.

    **Returns:** a `Check`: `verdict` with its `reason`, numbers, and the sweep to be drawn.

    **Raises:** as `hypergradient`; `InputError` for losses that are not deterministic given the key, and for an x
    without an entry.
    """
    number("tolerance", tolerance, 0, above=True)
    check_parts(problem, solver, adjoint)
    if any(isinstance(a, Tracer) for a in jax.tree.leaves((x, task, key))):
        raise InputError("check_hypergradient looks at numbers: call it outside jax.jit.")
    x = canonical(x, "x")
    check_problem(problem, x, task, key)
    require_deterministic(problem, x, task, key)
    posed, tasks = batch_of_one(problem, task)
    return _examine(Claim(Nested(posed, solver, adjoint), tasks), x, key, tolerance)


def check_method(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    *,
    key: Key,
    meta_batch: int = 2,
    split: Split = "train",
    tolerance: float = 1e-3,
) -> Check:
    """As `check_hypergradient`, of the direction that a method is trained along, on a batch of its tasks.

    It is held against the loss that the estimator reports, at its first call. The direction of a single-loop method is
    held, after many steps at the same x and with all examples, against the loss of the problem that is solved by the
    method's own solver.
    """
    number("tolerance", tolerance, 0, above=True)
    k_tasks, k_check = jax.random.split(key)
    x = canonical(x, "x")
    batch = sample_batch(tasks, k_tasks, split, 1 if tasks.single else count("meta_batch", meta_batch, 1))
    check_problem(method.problem, x, jax.tree.map(lambda a: a[0], batch), k_check)
    estimator = method.estimator
    if isinstance(estimator, SingleLoop):
        first = jax.tree.map(lambda a: a[:1], batch)
        return _examine(Claim(_on_all_examples(estimator, x, first, k_check), first, method), x, k_check, tolerance)
    return _examine(Claim(estimator, batch), x, k_check, tolerance)


def _on_all_examples(estimator: SingleLoop, x: Outer, tasks: Task, key: Key) -> SingleLoop:
    """Without minibatches, unless the method must have them."""
    whole = dataclasses.replace(estimator, minibatches=None)
    try:
        eqx.filter_eval_shape(whole.init, x, tasks, key)
    except InputError:
        return estimator
    return whole


def _examine(claim: Claim, x: Outer, key: Key, tolerance: float) -> Check:
    flat = ravel_pytree(x)[0]
    if not flat.size:
        raise InputError("x holds no entry: there is no hypergradient to check.")
    try:
        with double_precision(claim.both, x, key):
            wide, at = doubled((claim, x))
            found = gather(wide, at, key)
            finding = _judge(wide, at, key, found, tolerance)
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # types that are written out, as of the carry of a scan
        found = gather(claim, x, key)
        finding = _judge(claim, x, key, found, tolerance)
        refused = f" All in {flat.dtype}: in float64 it does not compute ({type(error).__name__})."
        return _check(dataclasses.replace(finding, reason=finding.reason + refused), found)
    if finding.verdict is Verdict.RIGHT and flat.dtype != np.float64 and not _vanishes(found):
        finding = _digits(claim, x, key, found, tolerance) or finding
    return _check(finding, found)


def _vanishes(found: Evidence) -> bool:
    """Whether the gradient is zero, but for rounding."""
    return float(np.linalg.norm(found.gradient)) <= 1e-9 * max(1.0, abs(found.value))


def _judge(claim: Claim, x: Outer, key: Key, found: Evidence, tolerance: float) -> Finding:
    if not np.isfinite(found.value):
        return Finding(Verdict.NONFINITE, f"the outer loss at x is {found.value}.")
    if not np.isfinite(found.gradient).all():
        bad = int((~np.isfinite(found.gradient)).sum())
        advice = claim.estimator.remedy(x, jax.tree.map(lambda a: a[0], claim.tasks), key)
        return Finding(
            Verdict.NONFINITE,
            f"{bad} of {found.gradient.size} entries of the hypergradient are not finite, and the outer loss is "
            f"({found.value:.4g}): a derivative on its way is not, as that of a root at zero.{advice}",
        )
    size = np.abs(found.differences.value).max()
    if not np.isfinite(found.differences.error).all():
        return Finding(Verdict.UNDECIDED, "the outer loss is not finite beside x: there are no differences.")
    bad = disagreeing(found, tolerance)
    if not bad.any():
        rough = found.differences.error > np.maximum(0.1 * np.abs(found.differences.value), 1e-6 * size)
        if _vanishes(found) and rough.all():
            return Finding(Verdict.RIGHT, "slopes and differences are zero, but for rounding.")
        if rough.all():
            text = "the differences settle at no step size: the outer loss is rough, or does not depend on x to see."
            return Finding(Verdict.UNDECIDED, text)
        reason = f"slopes and differences agree to {found.error:.1g}."
        if unseen := unjudged(found, tolerance):
            reason += f" Too small beside the others to be judged: {', '.join(unseen)}."
        return Finding(Verdict.RIGHT, reason)
    for cause in causes(claim, x, key, found, tolerance):
        if (finding := cause()) is not None:
            return finding
    worst = [name for name, b in zip(found.names, bad, strict=True) if b]
    return Finding(
        Verdict.WRONG,
        f"slopes and differences lie {found.error:.2g} apart, relative to the differences, and no known cause "
        f"explains it. They disagree along {', '.join(worst)}.",
    )


def _digits(claim: Claim, x: Outer, key: Key, found: Evidence, tolerance: float) -> Finding | None:
    """Whether the hypergradient in the precision of x is still the one of double precision."""
    dtype = ravel_pytree(x)[0].dtype
    own = gradient_of(claim, x, key)
    if not np.isfinite(own).all():
        return Finding(Verdict.NONFINITE, f"in {dtype} the hypergradient is not finite, and in float64 it is.")
    size = float(np.linalg.norm(found.gradient))
    away = float(np.linalg.norm(own - found.gradient)) / size if size else float(np.linalg.norm(own))
    if found.draws:  # of another sample than in double precision
        narrow = gather(claim, x, key)
        if not disagreeing(narrow, 0.1).any():
            return None
        away = narrow.error
    if away <= tolerance:
        return None
    if away <= FEW_DIGITS * tolerance:
        reason = f"slopes and differences agree to {found.error:.1g}, in float64; in {dtype} it is {away:.1g} away."
        return Finding(Verdict.RIGHT, reason)
    return Finding(
        Verdict.COARSE,
        f"in float64 it is right, and in {dtype} {away:.2g} away from that: JAX_ENABLE_X64=1 mends it, or losses and "
        "an inner problem of better scale.",
    )


def _check(finding: Finding, found: Evidence) -> Check:
    differences, rows = found.differences, []
    bad = zip(found.names, found.slopes, differences.value, differences.error, strict=True)
    for name, slope, difference, uncertainty in bad:
        scale = abs(difference) or abs(slope)
        error = abs(slope - difference) / scale if scale else 0.0
        row = {"slope": slope, "difference": difference, "uncertainty": uncertainty, "error": error}
        rows.append({"direction": name, **{name: float(value) for name, value in row.items()}})
    return Check(
        finding.verdict,
        finding.reason,
        found.error,
        tuple(rows),
        differences.steps.tolist(),
        differences.table.tolist(),
        finding.series,
    )


def require_deterministic(problem: BilevelProblem, x: Outer, task: Task, key: Key) -> None:
    """Raises an `InputError` that names a function which gives two results for the same arguments."""
    seen = []
    for _ in range(2):  # numbers that are drawn while tracing differ from one trace to the next
        each = _traced_anew(problem)
        seen += [jax.device_get(each(x, task, key)) for _ in range(2)]
    for i, name in enumerate(("prepare", "init", "inner_loss", "outer_loss")):
        if not all(_same(seen[0][i], other[i]) for other in seen[1:]):
            raise InputError(
                f"{name} gives two results for the same x, y, task and key: it draws elsewhere than from the key, or "
                "keeps a state. Draw by jax.random from the key that it is given."
            )


def _traced_anew(problem: BilevelProblem) -> Any:
    @eqx.filter_jit
    def each(x: Outer, task: Task, key: Key) -> Any:
        z, y, k = problem.begin(x, task, key)
        return z, y, problem.inner_loss(z, y, task, k), problem.objective(z, y, task, k)

    return each


def _same(a: PyTree, b: PyTree) -> bool:
    equal = jax.tree.map(lambda u, v: bool(np.array_equal(u, v, equal_nan=True)), a, b)
    return all(jax.tree.leaves(equal))
