"""Checks of what a test does, and of training beside it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..estimators import Nested
from ..info import norm
from ..method import Method
from ..problem import Key, Outer, Task
from ..solvers import AbstractIterativeSolver
from ..tasks import Episode
from .outcome import Nonconformity, NotApplicable
from .trees import broken, unequal
from .trial import Trial


def adapts(trial: Trial) -> None:
    """A test adapts to the support set of a task alone, is judged on its query set, and is finite."""
    bench = trial.bench
    with bench.precision():
        serve = jax.jit(lambda x, task, key: (bench.method.adapt(x, task, key), bench.method.test(x, task, key)))
        for seed in trial.seeds:
            point = bench.start(seed)
            task = jax.tree.map(lambda a: a[0], point.tasks)
            y, said = serve(point.x, task, point.key)
            if wrong := broken(said, "test") or broken(y, "y"):
                raise Nonconformity(f"a test's {wrong} (seed {seed}).")
            if isinstance(task, Episode):
                y_other, said_other = serve(point.x, _other_query(task), point.key)
                if wrong := unequal(y_other, y, "y"):
                    raise Nonconformity(
                        f"with other queries adaptation ends elsewhere: {wrong} (seed {seed}). A test must not see the "
                        "query set before it is judged on it."
                    )
                if not unequal(said_other, said, ""):
                    raise Nonconformity(
                        f"with other queries a test has the same loss, {said['loss']:.6g}, and the same metrics (seed "
                        f"{seed}): it is judged on examples that it was adapted to. Let outer_loss see task.query."
                    )


def _other_query(task: Episode) -> Episode:
    change = lambda a: a[::-1] * 2 if jnp.issubdtype(a.dtype, jnp.floating) else a[::-1]
    return task._replace(query=jax.tree.map(change, task.query))


def adapts_as_trained(trial: Trial) -> None:
    """Training solves the inner problem as a test does, unless it says otherwise: the losses, metrics and residuals of
    the two agree, and those of training are not of one inner step more, or one fewer."""
    bench = trial.bench
    method, solver = bench.method, bench.method.solver
    if not isinstance(solver, AbstractIterativeSolver) or solver.steps < 1:
        raise NotApplicable("the inner solver of a test takes no steps")
    if not trial.deterministic:
        raise NotApplicable("the losses depend on the key")
    near = (solver.steps - 1, solver.steps, solver.steps + 1)
    with bench.precision():
        curve = jax.jit(lambda x, task, key: (method.curve(x, task, key, near), _residual(method, x, task, key)))
        for seed in trial.seeds:
            point, info = bench.start(seed), bench.first(seed).info
            rows, residual = curve(point.x, jax.tree.map(lambda a: a[0], point.tasks), point.key)
            losses, trained = [float(row["loss"]) for row in rows], float(info.loss[0])
            if not _close(losses[1], trained):
                _say_why_not(method, near, losses, trained, seed)
                continue
            tested = {"residual": residual, **rows[1]}
            for name, a in {"residual": info.certificate.inner_residual, **info.metrics}.items():
                if name in tested and abs(a[0] - tested[name]) > 1e-7 * abs(tested[name]) + 1e-10:
                    raise Nonconformity(
                        f"in training a task has the loss that it has in a test, and the {name} {a[0]:.6g} where the "
                        f"test has {tested[name]:.6g} (seed {seed}). Report what outer_loss and solver.residual give."
                    )


def _residual(method: Method, x: Outer, task: Task, key: Key) -> Array:
    """The norm of the inner residual at the y that a test adapts."""
    z, y0, k = method.problem.begin(x, task, key)
    y = method.solver.solve(method.problem, z, y0, task, k)
    return norm(method.solver.residual(method.problem, z, y, task, k))


def _say_why_not(method: Method, near: tuple[int, ...], losses: list[float], trained: float, seed: int) -> None:
    """Training has another loss than a test, whose `losses` are after the steps of `near`: raises where it is wrong."""
    off = [steps for steps, loss in zip(near, losses, strict=True) if _close(loss, trained)]
    said = f"in training a task has the loss {trained:.6g}"
    if off:
        raise Nonconformity(
            f"{said}, which a test has after {off[0]} inner steps and not after the {near[1]} that it takes "
            f"({losses[1]:.6g}; seed {seed}). One of the two counts its steps wrongly."
        )
    if _poses_the_same(method):
        raise Nonconformity(
            f"{said}, and in a test {losses[1]:.6g} (seed {seed}), after as many steps of the same kind of solver: "
            "another inner loss, learning rate or minibatch. Give `Method` and its estimator one problem and solver."
        )


def _poses_the_same(method: Method) -> bool:
    """Whether training starts as a test does, takes as many steps of the same kind, and judges them alike."""
    estimator, solver = method.estimator, method.solver
    if not isinstance(estimator, Nested) or not isinstance(solver, AbstractIterativeSolver):
        return False
    trained, tested = estimator.problem, method.problem
    alike = all(getattr(trained, part) == getattr(tested, part) for part in ("prepare", "init", "outer_loss"))
    return alike and type(estimator.solver) is type(solver) and estimator.solver.steps == solver.steps


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-10 * (abs(a) + abs(b))


CHECKS = (adapts, adapts_as_trained)
