"""The programmatic door: one bilevel problem of your own, and no plugin."""

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from .adjoints import AbstractAdjoint, Unroll, check_parts, optimizer_remedy, solved
from .errors import ComputationError, HypergradientWarning, InputError, count, kind
from .estimators import Nested, WarmStarted, warmed
from .implicit import depends
from .info import Certificate, Info, Result, all_finite, norm
from .method import Method
from .oracles import Minibatches, Oracles, check_means
from .problem import BilevelProblem, Inner, Key, Outer, Scalar, Task, canonical, check_problem
from .single_loop import AbstractSingleLoop, SingleLoop
from .solvers import AbstractInnerSolver, GradientDescent
from .training import outer_step


def hypergradient(
    problem: BilevelProblem,
    x: PyTree,
    task: Task,
    *,
    key: Key,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
    restarts: int = 1,
    strict: bool = False,
) -> tuple[Scalar, Outer, Info]:
    """F(x, y(x)) of one task and its total derivative dF/dx + (dy/dx)^T dF/dy.

    **Arguments:**

    - `x`: floating arrays; `task`: what the problem's functions take for it, None if they need none.
    - `restarts`: inner solves, each with its own key and so with another start where `problem.init` draws one. Value
      and gradient are means over them; `info.certificate.spread` says how far the gradients lie apart, and every
      other entry of `info` has a leading axis of restarts.
    - `strict`: raises where otherwise a `HypergradientWarning` is given.

    **Returns:** the value; the gradient, shaped like `x`; `Info` with `metrics`, `inner` (the y that was reached)
    and `certificate`.

    **Warns:** of a certificate that speaks against the gradient, and of leaves of x whose gradient is zero whatever
    they are.

    **Raises:** `TypeError`, before compilation, for an `x` or y that has no gradient, or for a loss that is no scalar;
    `InputError` for what is no problem, solver or adjoint; it and `ComputationError` where `strict`.
    """
    count("restarts", restarts, 1)
    check_parts(problem, solver, adjoint)
    x = canonical(x, "x")
    check_problem(problem, x, task, key)
    check_influence(problem, solver, adjoint, x, task, key, strict)
    value, gradient, info = _hypergradient(problem, solver, adjoint, x, task, key, restarts)
    judge(info.certificate, strict, partial(optimizer_remedy, problem, solver, adjoint, x, task, key))
    return value, gradient, info


@eqx.filter_jit
def _hypergradient(problem, solver, adjoint, x, task, key, restarts):
    if restarts == 1:
        reached, gradient = adjoint.hypergradient(problem, solver, x, task, key)
        value, certificate = reached.value, reached.certificate
        finite = all_finite(value, gradient)
    else:
        each = lambda key: adjoint.hypergradient(problem, solver, x, task, key)
        reached, gradients = jax.vmap(each)(jax.random.split(key, restarts))
        value, gradient = jax.tree.map(lambda a: a.mean(0), (reached.value, gradients))
        finite = jax.vmap(all_finite)(reached.value, gradients)
        deviation = norm(jax.tree.map(jnp.subtract, gradients, gradient)) / jnp.sqrt(restarts)
        spread = deviation / norm(gradient)
        certificate = eqx.tree_at(lambda c: c.spread, reached.certificate, spread, is_leaf=lambda a: a is None)
    return value, gradient, Info(reached.value, reached.metrics, certificate, finite, reached.inner)


def reduced(
    problem: BilevelProblem, solver: AbstractInnerSolver, adjoint: AbstractAdjoint
) -> Callable[[Outer, Task, Key], Scalar]:
    """x, task, key -> F(x, y(x)), differentiable in x by `adjoint` any number of times and in either mode.

    As the `inner_loss` of another problem it makes a problem of three levels:

        inner_loss=lambda x, y, task, key: reduced(lowest, solver, adjoint)((x, y), task, key)

    **Raises:** `InputError` for what is no problem, solver or adjoint.
    """
    check_parts(problem, solver, adjoint)
    return lambda x, task, key: solved(problem, solver, adjoint, x, task, key)[0]


def check_influence(
    problem: BilevelProblem,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint,
    x: Outer,
    task: Task,
    key: Key,
    strict: bool,
) -> list[int]:
    """Names the leaves of x whose hypergradient does not depend on the outer loss, and hence is zero; by tracing.

    **Returns:** their numbers.

    **Warns:** `HypergradientWarning`; **raises** `InputError` where `strict`.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(x)]
    if idle := idle_leaves(problem, solver, adjoint, x, task, key):
        names = ", ".join(f"x{jax.tree_util.keystr(paths[i])}" for i in idle)
        which = "a hypergradient that is zero whatever its value"
        _complain(f"{names}: {which}. {adjoint.unseen}", InputError if strict else None)
    return idle


def idle_leaves(
    problem: BilevelProblem, solver: AbstractInnerSolver, adjoint: AbstractAdjoint, x: Outer, task: Task, key: Key
) -> list[int]:
    """The leaves of x, by number, whose hypergradient does not depend on the outer loss."""

    def scaled(x, factor):
        loss = lambda *given: factor * problem.objective(*given)[0]
        return adjoint.hypergradient(dataclasses.replace(problem, outer_loss=loss), solver, x, task, key)[1]

    jaxpr = jax.make_jaxpr(scaled)(x, jnp.ones(())).jaxpr
    leaves = range(len(jax.tree.leaves(x)))
    return [i for i in leaves if not dce_jaxpr(jaxpr, [i == j for j in leaves])[1][-1]]


_REMEDIES = (
    (Result.inner_not_stationary, "Take more inner steps or another solver, or differentiate the steps (Unroll)."),
    (Result.linear_breakdown, "The system is singular, or the solver does not suit it: add damping, or take another."),
    (Result.negative_curvature, "Solve further or from another start; damping does not make y a minimum."),
    (Result.series_diverged, "Lower the scale of Neumann, or leave it out: then it is estimated."),
    (Result.nonfinite, "Lower the inner learning rate, and look at the losses."),
)


def judge(certificate: Certificate, strict: bool, advice: Callable[[], str] = str) -> None:
    """Says in words what a certificate, or an array of them, holds against its hypergradient.

    `advice()` is what else to do about one that is not finite.

    **Warns:** `HypergradientWarning`; **raises** `ComputationError` where `strict`.
    """
    for result, remedy in _REMEDIES:
        bad = np.atleast_1d(certificate.result == result)
        if not bad.any():
            continue
        last = lambda a: np.broadcast_to(a, bad.shape)[bad][-1]  # noqa: B023 - used at once
        numbers = [f"inner residual {last(certificate.inner_residual):.2g}"]
        if certificate.linear_residual is not None:
            numbers.append(f"about {last(certificate.distance):.2g} |y| from a solution")
            numbers.append(f"relative linear residual {last(certificate.linear_residual):.2g}")
        often = f" ({bad.sum()} of {bad.size} hypergradients; the last: " if bad.size > 1 else " ("
        remedy += advice() if result == Result.nonfinite else ""
        _complain(f"{Result[result]}{often}{', '.join(numbers)}). {remedy}", ComputationError if strict else None)


def _complain(message: str, error: type[Exception] | None) -> None:
    if error is not None:
        raise error(message)
    warnings.warn(message, HypergradientWarning, stacklevel=4)


class Solution(NamedTuple):
    """What `solve` gives.

    - `x`: the outer variable after the last step, or before the first that was not finite.
    - `inner`: y, solved once more at that `x`; `certificate` belongs to this solve.
    - `history`: one row a step: `step`, the `loss` and metrics before the step (of its minibatch, where there are
      some), `inner_residual`, and `linear_residual` where there is a linear system.
    - `result`: the certificate's, but `Result.nonfinite` if any step was not finite.
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
    solver: AbstractInnerSolver | AbstractSingleLoop,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
    minibatches: Minibatches | None = None,
    optimizer: optax.GradientTransformation,
    steps: int,
    warm_start: bool | None = None,
    strict: bool = False,
) -> Solution:
    """Minimises F(x, y(x)) of one problem over x by `steps` outer steps in one compiled loop.

    **Arguments:**

    - `task`: the problem's data.
    - `solver`: an inner solver, through which `adjoint` differentiates; or a single-loop method, such as SOBA, whose y
      takes a few steps with every step of x, and whose task is of arrays.
    - `minibatches`: what the losses of a single-loop method see; all examples if None.
    - `warm_start`: an inner solve goes on from where the last one stopped; without, each starts from `problem.init`.
      None: so it does, unless the start depends on x, which no later solve would see.
    - `strict`: as in `hypergradient`.

    **Warns:** as `hypergradient`; once for all steps.

    **Raises:** `InputError` for negative `steps`, what are no minibatches or no optimizer; else as `hypergradient`.
    """
    count("steps", steps, 0)
    single = isinstance(solver, AbstractSingleLoop)
    if single and warm_start is False:
        raise InputError("warm_start = False: the y of a single-loop method goes on from step to step.")
    advice: Callable[[], str] = str
    if not single:
        check_parts(problem, solver, adjoint)
    if minibatches is not None and not single:
        raise InputError("minibatches: only a single-loop method has a use for them; give the inner solver its own.")
    if minibatches is not None and not isinstance(minibatches, Minibatches):
        raise InputError(f"minibatches is {kind(minibatches)}: an instance such as Minibatches(64) is wanted.")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(f"optimizer is {kind(optimizer)}: an optax transformation such as optax.adam(1e-2) is wanted.")
    x0 = canonical(x0, "x0")
    check_problem(problem, x0, task, key)
    if single:
        task = jax.tree.map(jnp.asarray, task)
        if minibatches is not None:
            check_means(Oracles(problem, task, minibatches), x0, key)
        x, inner, info, certificate = _walk(problem, solver, minibatches, optimizer, x0, task, key, steps)
    else:
        idle = check_influence(problem, solver, adjoint, x0, task, key, strict)
        if len(idle) == len(jax.tree.leaves(x0)) > 0:
            raise InputError(f"x0: no leaf has a hypergradient but zero, so that no step would move. {adjoint.unseen}")
        if warm_start is None:
            start = lambda x: ravel_pytree(problem.begin(x, task, key)[1])[0]
            warm_start = not depends(start, x0)
        advice = partial(optimizer_remedy, problem, solver, adjoint, x0, task, key)
        x, inner, info, certificate = _solve(problem, solver, adjoint, optimizer, x0, task, key, steps, warm_start)
    judge(jax.tree.map(lambda a, b: jnp.append(a, b), info.certificate, certificate), strict, advice)
    columns = {"loss": info.loss, **info.metrics, "inner_residual": info.certificate.inner_residual}
    if info.certificate.linear_residual is not None:
        columns["linear_residual"] = info.certificate.linear_residual
    columns = {name: np.asarray(a).tolist() for name, a in columns.items()}
    history = [{"step": i + 1, **{name: a[i] for name, a in columns.items()}} for i in range(steps)]
    return Solution(x, inner, history, certificate, certificate.result)


@eqx.filter_jit
def _solve(given, solver, adjoint, optimizer, x, task, key, steps, warm_start):
    # one task, which may hold no array to stack: it is bound, and the batch is an index
    problem = with_task(given, lambda _: task)
    batch = jnp.zeros(1)
    estimator = (WarmStarted if warm_start else Nested)(problem, solver, adjoint)
    k_carry, k_steps, k_last = jax.random.split(key, 3)
    x, carry, infos = _descend(
        Method(problem, lambda key: x, estimator, solver), optimizer, x, batch, k_carry, k_steps, steps
    )
    begin = lambda y0: y0
    if carry is not None:
        stored, warm = jax.tree.map(lambda a: a[0], carry)
        begin = lambda y0: warmed(y0, lambda y: y, stored, warm)
    last, _ = adjoint.hypergradient(problem, solver, x, None, k_last, begin)
    return x, last.inner, infos, _overall(infos, last.certificate)


@eqx.filter_jit
def _walk(given, loop, minibatches, optimizer, x, task, key, steps):
    # likewise, but minibatches are cut from the task: it goes beside the index
    problem = with_task(given, lambda t: t[0])
    if minibatches is not None:
        parts = minibatches
        minibatches = Minibatches(parts.size, lambda t: parts.inner(t[0]), lambda t: parts.outer(t[0]))
    batch = jax.tree.map(lambda a: a[None], (task, jnp.zeros(())))
    estimator = SingleLoop(problem, loop, minibatches)
    k_carry, k_steps, k_last = jax.random.split(key, 3)
    method = Method(problem, lambda key: x, estimator, GradientDescent(optax.identity(), 0))
    x, carry, infos = _descend(method, optimizer, x, batch, k_carry, k_steps, steps)
    _, _, last = estimator(x, batch, carry, k_last)
    return x, carry[0].y, infos, _overall(infos, jax.tree.map(lambda a: a[0], last.certificate))


def with_task(given: BilevelProblem, task_of: Callable[[Any], Task]) -> BilevelProblem:
    """`given` as a problem of other tasks, from which `task_of` gets those that it knows."""
    on = lambda fn: lambda *args: fn(*args[:-2], task_of(args[-2]), args[-1])
    return BilevelProblem(on(given.init), on(given.inner_loss), on(given.outer_loss), on(given.prepare))


def _descend(
    method: Method, optimizer: Any, x: Outer, batch: Task, k_carry: Key, k_steps: Key, steps: int
) -> tuple[Outer, PyTree, Info]:
    """x and the carry after `steps` outer steps on the same batch of one task, and what they reported."""

    def one(state: tuple[Outer, PyTree, PyTree], k: Key) -> Any:
        x, opt, carry = state
        x, opt, carry, info = outer_step(method, optimizer, x, opt, carry, batch, k)
        return (x, opt, carry), jax.tree.map(lambda a: a[0], info)

    state = (x, optimizer.init(x), method.estimator.init(x, batch, k_carry))
    (x, _, carry), infos = jax.lax.scan(one, state, jax.random.split(k_steps, steps))
    return x, carry, infos


def _overall(infos: Info, certificate: Certificate) -> Certificate:
    """`certificate`, whose result says so if any step was not finite."""
    result = Result.where(infos.finite.all(), certificate.result, Result.nonfinite)
    return eqx.tree_at(lambda c: c.result, certificate, result)
