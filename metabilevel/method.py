"""A method: what a plugin hands over."""

import dataclasses
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .batching import map_tasks
from .errors import InputError, count
from .estimators import AbstractEstimator
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Task
from .solvers import AbstractInnerSolver, AbstractIterativeSolver


class Posed(eqx.Module):
    """A bilevel problem as a task family poses it: what a method is built on where the tasks are not supervised ones.

    **Arguments:** `init(key) -> x` at the start; `solver` finds y(x) exactly enough to judge x.
    """

    problem: BilevelProblem
    init: Callable[[Key], Outer]
    solver: AbstractInnerSolver


class Method(eqx.Module):
    """How x is trained, and how it serves a task not seen before.

    **Arguments:**

    - `problem`, `solver`: adaptation to a new task, and its judgement. What is trained on may differ (Reptile).
    - `init(key) -> x`: the outer variable at the start.
    - `estimator`: the direction along which x is trained.
    """

    problem: BilevelProblem
    init: Callable[[Key], Outer]
    estimator: AbstractEstimator
    solver: AbstractInnerSolver

    def adapt(self, x: Outer, task: Task, key: Key) -> Inner:
        """y for one task."""
        z, y0, k_inner = self.problem.begin(x, task, key)
        return self.solver.solve(self.problem, z, y0, task, k_inner)

    def test(self, x: Outer, task: Task, key: Key) -> Metrics:
        """The outer loss, as `loss`, and the metrics of one task, adapted first."""
        z, y0, k_inner = self.problem.begin(x, task, key)
        return self._judge(z, self.solver.solve(self.problem, z, y0, task, k_inner), task, key)

    def score(self, x: Outer, tasks: PyTree, key: Key) -> Metrics:
        """Mean of `test` over a batch of tasks."""
        keys = jax.random.split(key, len(jax.tree.leaves(tasks)[0]))
        return jax.tree.map(lambda a: a.mean(0), map_tasks(self.test, x, tasks, keys))

    def curve(self, x: Outer, task: Task, key: Key, steps: Sequence[int]) -> list[Metrics]:
        """`test` after each of the increasing numbers of inner `steps`, in one walk along the inner path.

        **Raises:** `InputError` where the inner solver takes no steps.
        """
        solver = self.solver
        if not isinstance(solver, AbstractIterativeSolver):
            raise InputError(f"steps = {list(steps)}: the inner solver {type(solver).__name__} takes no steps.")
        z, y0, k_inner = self.problem.begin(x, task, key)
        step = lambda i, point: solver.path(self.problem, z, point, task, k_inner, start=i, length=1)[0]

        def advance(walked: Any, stop: Any) -> Any:
            point = jax.lax.fori_loop(walked[1], stop, step, walked[0])
            return (point, stop), self._judge(z, point[0], task, key)

        _, rows = jax.lax.scan(advance, ((y0, solver.init(z, y0)), jnp.int32(0)), jnp.asarray(steps, jnp.int32))
        return [jax.tree.map(itemgetter(j), rows) for j in range(len(steps))]

    def _judge(self, z: Outer, y: Inner, task: Task, key: Key) -> Metrics:
        loss, metrics = self.problem.objective(z, y, task, key)
        return scalars({"loss": loss, **metrics})


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """`metrics`, if each is one number a task, which is what can be averaged over tasks.

    **Raises:** `InputError` that names one which is not.
    """
    for name, value in metrics.items():
        if value.shape != ():
            raise InputError(f"The metric {name!r} has the shape {value.shape}: fit and evaluate average scalars only.")
    return metrics


def in_chunks(method: Method, task_chunk: int | None) -> Method:
    """`method`, whose estimator computes `task_chunk` tasks at once (as many as fit if None).

    **Raises:** `InputError` for a chunk below one task.
    """
    if task_chunk is not None:
        count("task_chunk", task_chunk, 1)
    return dataclasses.replace(method, estimator=dataclasses.replace(method.estimator, task_chunk=task_chunk))
