"""The comparison itself."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..adjoints import Unroll, check_parts
from ..check.examine import require_deterministic
from ..errors import ComputationError, InputError, count, number
from ..info import Result
from ..planning import readable
from ..problem import BilevelProblem, Key, Outer, Task, canonical, check_problem
from ..progress import bar
from ..solvers import AbstractInnerSolver
from .advice import Advice, Row, front, recommend
from .candidates import candidates, steps_of
from .measure import Program, Run, compiling, timed
from .reference import RANDOM, Reference, Target, refer

NAMES = (
    "success",
    "inner_not_stationary",
    "linear_breakdown",
    "negative_curvature",
    "series_diverged",
    "nonfinite",
)


def advise(
    problem: BilevelProblem,
    x: PyTree,
    task: Task,
    *,
    key: Key,
    solver: AbstractInnerSolver,
    tolerance: float = 0.01,
    target: Target = "path",
    budget_bytes: int | None = None,
    progress: bool | None = False,
) -> Advice:
    """Runs every estimator that applies on the problem itself, and recommends one.

    Errors are relative to a reference g, |g' - g| / |g|, which is computed in double precision where the problem lets
    it be, and held against central differences along a few directions.

    The recommended one is the fastest of those whose error is below `tolerance`, whose certificate has nothing against
    them and that fit into the budget; among those about as fast, the one of least memory.

    **Arguments:**

    - `x`, `task`, `key`, `solver`: as of `hypergradient`.
    - `tolerance`: the relative error that does no harm.
    - `target`: of `"path"`, g is the derivative of x -> F(x, y_K(x)), of what the solver computes; of `"solution"`,
      that of x -> F(x, y*(x)) at the solution near the y reached, which is what implicit estimators aim at and to what
      warm-started solves come.
    - `budget_bytes`: estimators that need more temporary memory are compiled and not run. It does not bind the
      reference.
    - `progress`: whether to show a bar on standard error; None: where that is a terminal.

    **Returns:** an `Advice`: a row for every estimator, the Pareto front, and the line of Python to paste.

    **Raises:** `InputError` for losses that are not deterministic given the key, a tolerance or budget out of range, a
    budget below every estimator, and as `hypergradient`; `ComputationError` where the reference is not finite or zero,
    or where there is no solution.
    """
    check_parts(problem, solver, Unroll())
    number("tolerance", tolerance, 0, above=True)
    if budget_bytes is not None:
        count("budget_bytes", budget_bytes, 1)
    if target not in get_args(Target):
        raise InputError(f"target = {target!r}: 'path' or 'solution' is wanted.")
    x = canonical(x, "x")
    if not jax.tree.leaves(x):
        raise InputError("x holds no entry: there is no hypergradient to estimate.")
    check_problem(problem, x, task, key)
    require_deterministic(problem, x, task, key)
    y = eqx.filter_eval_shape(problem.begin, x, task, key)[1]
    n, m = (sum(a.size for a in jax.tree.leaves(tree)) for tree in (x, y))
    ways = {each.name: each for each in candidates(solver, n, m)}
    fit = {name: way for name, way in ways.items() if not way.unfit}
    rows = {name: Row(name, way.family, way.line, note=way.unfit) for name, way in ways.items()}
    programs: dict[str, Program] = {}
    with bar(progress) as shown:
        shown_id = shown.add_task("the reference", total=len(fit) + 2)
        reference = refer(problem, solver, x, task, key, target)
        shown.advance(shown_id)
        for name, made in compiling(fit, problem, solver, x, task, key):
            shown.update(shown_id, description=f"compiling {name}")
            if note := _refused(made, budget_bytes):
                size = made.temporaries if isinstance(made, Program) else None
                rows[name] = replace(rows[name], note=note, bytes=size)
            elif isinstance(made, Program):
                programs[name] = made
            shown.advance(shown_id)
        if not programs:
            raise _none_ran(rows.values(), budget_bytes)
        shown.update(shown_id, description="running")
        for name, run in timed(programs):
            rows[name] = _measured(rows[name], programs[name], run, reference, target, x)
        shown.advance(shown_id)
    found = tuple(rows.values())
    best, reason = recommend(found, tolerance)
    return Advice(
        found,
        front(found, tolerance),
        None if best is None else best.estimator,
        reason,
        "" if best is None else best.line,
        _in_words(reference, target, solver),
        tuple(_remarks(reference, target, tolerance)),
        tolerance,
    )


def _refused(made: Program | str, budget: int | None) -> str:
    """Why a candidate that applies is not run, empty where it is."""
    if isinstance(made, str):
        return made
    if budget is not None and made.temporaries is not None and made.temporaries > budget:
        return f"takes {readable(made.temporaries)}, above the budget"
    return ""


def _none_ran(rows: Iterable[Row], budget: int | None) -> Exception:
    taken = {row.bytes: row.estimator for row in rows if row.bytes is not None}
    if not taken:
        notes = "; ".join(f"{row.estimator}: {row.note}" for row in rows)
        return ComputationError(f"No estimator compiles on this problem. {notes}")
    least = min(taken)
    return InputError(
        f"a budget of {budget} bytes: every estimator takes more. The least is {least} bytes, of {taken[least]}."
    )


def _measured(row: Row, program: Program, run: Run, reference: Reference, target: Target, x: Outer) -> Row:
    own, other = reference.path, reference.solution
    wanted = own if target == "path" or other is None else other
    return replace(
        row,
        error=_error(run.gradient, wanted),
        cosine=_cosine(run.gradient, wanted),
        path_error=_error(run.gradient, own),
        solution_error=None if other is None else _error(run.gradient, other),
        seconds=run.seconds,
        compile_seconds=program.compiling,
        bytes=program.temporaries,
        certificate=next(name for name in NAMES if run.result == getattr(Result, name)),
        note=_unseen(x, run.gradient, wanted),
    )


def _error(gradient: np.ndarray, reference: np.ndarray) -> float:
    """Relative to the reference; infinite where the gradient is not finite, as it is where a zero is missed."""
    if not np.isfinite(gradient).all():
        return math.inf
    away, size = np.linalg.norm(gradient - reference), np.linalg.norm(reference)
    return float(away / size) if size else (math.inf if away else 0.0)


def _cosine(gradient: np.ndarray, reference: np.ndarray) -> float:
    """0 where one of them is zero."""
    sizes = np.linalg.norm(gradient) * np.linalg.norm(reference)
    return float(gradient @ reference / sizes) if sizes else 0.0


def _unseen(x: Outer, gradient: np.ndarray, reference: np.ndarray) -> str:
    """The leaves of x for which a gradient is zero that is not."""
    unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape), x))[1]
    leaves = [jax.tree_util.tree_leaves_with_path(unravel(jnp.asarray(a != 0, float))) for a in (gradient, reference)]
    names = [f"x{jax.tree_util.keystr(path)}" for (path, a), (_, b) in zip(*leaves, strict=True) if b.any() > a.any()]
    which = "x" if len(names) == len(leaves[0]) else ", ".join(names)
    return f"sees nothing of {which}" if names else ""


def _in_words(reference: Reference, target: Target, solver: AbstractInnerSolver) -> str:
    what = "of the solved problem, x -> F(x, y*(x))"
    if target == "path":
        steps = steps_of(solver)
        what = f"of what the inner solver computes{'' if steps is None else f' in {steps} steps'}, x -> F(x, y_K(x))"
    checked = f"central differences along {RANDOM + 1} directions lie {reference.disagreement:.1g} from it"
    if math.isnan(reference.disagreement):
        checked = f"central differences along {RANDOM + 1} directions settle at no step size"
    return f"Errors are relative to the derivative {what}, in {reference.dtype}; {checked}."


def _remarks(reference: Reference, target: Target, tolerance: float) -> Iterator[str]:
    if reference.doubtful:
        yield (
            "The reference is doubtful: its function is rough, or not the one that the derivative is of. "
            "metabilevel.check_hypergradient looks into it."
        )
    if reference.solution is None:
        yield f"There is no derivative of a solved problem to compare with: {reference.unsolved}."
    elif reference.apart <= tolerance:
        yield f"The inner solve has converged: the derivative of the solved problem is {reference.apart:.1g} away."
    else:
        yield (
            f"The inner solve has not converged: the derivative of its steps and that of the solved problem lie "
            f"{reference.apart:.2g} apart. Unrolling gives the first, implicit differentiation the second, and both "
            "are one where y is solved. "
            + (
                'If the solved problem is what you want, take more inner steps, or compare by target="solution".'
                if target == "path"
                else "Take more inner steps: at the y reached, no estimator knows the solution."
            )
        )
