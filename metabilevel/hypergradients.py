"""The programmatic door: one bilevel problem of your own, and no plugin."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .adjoints import AbstractAdjoint, Unroll
from .errors import count
from .estimators import Nested, WarmStarted, certify, solved, warmed
from .info import Certificate, Info, Result, all_finite
from .method import Method
from .problem import BilevelProblem, Inner, Key, Outer, Scalar, Task, canonical, check_problem
from .solvers import AbstractInnerSolver
from .training import outer_step


@eqx.filter_jit
def _hypergradient(problem, solver, adjoint, x, task, key):
    loss = lambda x: solved(problem, solver, adjoint, x, task, key)
    (value, (metrics, residual, y)), grad = jax.value_and_grad(loss, has_aux=True)(x)
    finite = all_finite(value, grad)
    return value, grad, Info(value, metrics, certify(residual, finite), finite, y)


def hypergradient(
    problem: BilevelProblem,
    x: PyTree,
    task: Task,
    *,
    key: Key,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
) -> tuple[Scalar, Outer, Info]:
    """F(x, y(x)) of one task and its total derivative dF/dx + (dy/dx)^T dF/dy.

    **Arguments:** `x`: floating arrays; `task`: what the problem's functions take for it, None if they need none.

    **Returns:** the value; the gradient, shaped like `x`; `Info` with `metrics`, `inner` (the y that was reached)
    and `certificate`.

    **Raises:** `TypeError`, before compilation, for an `x` or y that has no gradient, or for a loss that is no scalar.
    """
    x = canonical(x, "x")
    check_problem(problem, x, task, key)
    return _hypergradient(problem, solver, adjoint, x, task, key)


class Solution(NamedTuple):
    """What `solve` gives.

    - `x`: the outer variable after the last step, or before the first that was not finite.
    - `inner`: y, solved once more at that `x`; `certificate` belongs to this solve.
    - `history`: one row a step: `step`, the `loss` and metrics before the step, `inner_residual`.
    - `result`: `Result.success`, or `Result.nonfinite` if any step was not finite.
    """

    x: Outer
    inner: Inner
    history: list[dict[str, Any]]
    certificate: Certificate
    result: Result


def solve(
    problem: BilevelProblem,
    x0: PyTree,
    task: Task,
    *,
    key: Key,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
    optimizer: optax.GradientTransformation,
    steps: int,
    warm_start: bool = True,
) -> Solution:
    """Minimises F(x, y(x)) of one problem over x by `steps` outer steps in one compiled loop.

    **Arguments:** `task` is the problem's data. With `warm_start` an inner solve goes on from where the last one
    stopped; without, each starts from `problem.init`.

    **Raises:** `InputError` for negative `steps`; otherwise as `hypergradient`.
    """
    count("steps", steps, 0)
    x0 = canonical(x0, "x0")
    check_problem(problem, x0, task, key)
    x, inner, info, certificate = _solve(problem, solver, adjoint, optimizer, x0, task, key, steps, warm_start)
    columns = {"loss": info.loss, **info.metrics, "inner_residual": info.certificate.inner_residual}
    columns = {name: np.asarray(a).tolist() for name, a in columns.items()}
    history = [{"step": i + 1, **{name: a[i] for name, a in columns.items()}} for i in range(steps)]
    return Solution(x, inner, history, certificate, certificate.result)


@eqx.filter_jit
def _solve(given, solver, adjoint, optimizer, x, task, key, steps, warm_start):
    problem = BilevelProblem(  # one task, which may hold no array to stack: it is bound, and the batch is an index
        lambda x, _, key: given.init(x, task, key),
        lambda x, y, _, key: given.inner_loss(x, y, task, key),
        lambda x, y, _, key: given.outer_loss(x, y, task, key),
        lambda x, _, key: given.prepare(x, task, key),
    )
    batch = jnp.zeros(1)
    estimator = (WarmStarted if warm_start else Nested)(problem, solver, adjoint)
    method = Method(problem, lambda key: x, estimator, solver)
    k_carry, k_steps, k_last = jax.random.split(key, 3)

    def one(state: tuple[Outer, PyTree, PyTree], k: Key) -> Any:
        x, opt, carry = state
        x, opt, carry, info = outer_step(method, optimizer, x, opt, carry, batch, k)
        return (x, opt, carry), jax.tree.map(lambda a: a[0], info)

    state = (x, optimizer.init(x), estimator.init(x, batch, k_carry))
    (x, _, carry), infos = jax.lax.scan(one, state, jax.random.split(k_steps, steps))
    begin = lambda y0: y0
    if carry is not None:
        stored, warm = jax.tree.map(lambda a: a[0], carry)
        begin = lambda y0: warmed(y0, lambda y: y, stored, warm)
    value, (_, residual, y) = solved(problem, solver, adjoint, x, None, k_last, begin)
    finite = infos.finite.all() & all_finite(value, y)
    return x, y, infos, certify(residual, finite)
