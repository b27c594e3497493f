"""Estimators: one outer direction from a batch of tasks, and what is remembered for the next.

This is the only interface that the outer loop knows. `carry` is what the next call needs; `Info` is the rest.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .adjoints import AbstractAdjoint, Unroll, check_parts, optimizer_remedy
from .batching import leading, task_gradient
from .errors import count
from .info import Info, all_finite
from .problem import BilevelProblem, Inner, Key, Outer, Task
from .solvers import AbstractInnerSolver
from .tasks import TaskDistribution


class AbstractEstimator(eqx.Module):
    """`task_chunk` tasks are computed at once: as many as fit the machine's caches if None."""

    task_chunk: int | None = eqx.field(static=True, default=None, kw_only=True)

    @abc.abstractmethod
    def init(self, x: Outer, tasks: Task, key: Key) -> PyTree:
        """The first carry; `tasks` has a leading axis of tasks."""

    @abc.abstractmethod
    def __call__(self, x: Outer, tasks: Task, carry: PyTree, key: Key) -> tuple[Outer, PyTree, Info]:
        """The direction (shaped like `x`, to be followed downhill), the next carry, and `Info` with a row a task."""

    def check(self, x: Outer, tasks: TaskDistribution, key: Key) -> None:
        """Looks at values, once before the first step and not compiled, where an estimator must.

        **Raises:** `InputError` for a family, or losses, that it cannot serve.
        """

    def remedy(self, x: Outer, task: Task, key: Key) -> str:
        """What else to do about a direction that is not finite, beside lower learning rates; by tracing and small
        computations of its own. Empty where there is nothing to say."""
        return ""


class Nested(AbstractEstimator):
    """Every task is solved afresh from `problem.init`, and nothing is carried:

        direction = mean over tasks of   d/dx F(x, y_t(x), t)

    with the derivative of y_t as `adjoint` gives it.

    **Raises:** `InputError` for what is no problem, solver or adjoint.
    """

    problem: BilevelProblem
    solver: AbstractInnerSolver
    adjoint: AbstractAdjoint = Unroll()

    def __check_init__(self):
        check_parts(self.problem, self.solver, self.adjoint)

    def remedy(self, x, task, key):
        return optimizer_remedy(self.problem, self.solver, self.adjoint, x, task, key)

    def init(self, x, tasks, key):
        return None

    def __call__(self, x, tasks, carry, key):
        def gradient(x, task, key):
            reached, gradient = self.adjoint.hypergradient(self.problem, self.solver, x, task, key)
            return (reached.value, (reached.metrics, reached.certificate)), gradient

        found = task_gradient(gradient, x, tasks, key, chunk=self.task_chunk)
        direction, losses, (metrics, certificates), finite = found
        return direction, None, Info(losses, metrics, certificates, finite)


class WarmStarted(AbstractEstimator):
    """As `Nested`, but the solve of slot `slot(task)` goes on from where that slot's last solve stopped.

    A slot's first visit, and the visit after one that was not finite, start from `problem.init`; so does a task whose
    slot is none of 0 ... slots - 1, and of it nothing is kept. Tasks of one batch that share a slot all start from
    what it held before the batch; the last of them in the batch is kept.

    **Arguments:** `part(y)` is the part of y that is kept (a head, say): a node of the pytree; the rest of y starts
    from `problem.init` at every visit.

    **Raises:** `InputError` as `Nested`, and for no slots.
    """

    problem: BilevelProblem
    solver: AbstractInnerSolver
    adjoint: AbstractAdjoint = Unroll()
    slots: int = eqx.field(static=True, default=1)
    slot: Callable[[Task], Any] = lambda task: 0
    part: Callable[[Inner], PyTree] = lambda y: y

    def __check_init__(self):
        check_parts(self.problem, self.solver, self.adjoint)
        count("slots", self.slots, 1)

    def remedy(self, x, task, key):
        return optimizer_remedy(self.problem, self.solver, self.adjoint, x, task, key)

    def init(self, x, tasks, key):
        y = jax.eval_shape(lambda: self.problem.begin(x, jax.tree.map(lambda a: a[0], tasks), key)[1])
        table = jax.tree.map(lambda a: jnp.zeros((self.slots, *a.shape), a.dtype), self.part(y))
        return table, jnp.zeros(self.slots, bool)

    def __call__(self, x, tasks, carry, key):
        table, filled = carry
        where = jnp.broadcast_to(jax.vmap(lambda task: jnp.asarray(self.slot(task)))(tasks), leading(tasks))
        known = (where >= 0) & (where < self.slots)

        def gradient(x, task, key, stored, warm):
            begin = lambda y0: warmed(y0, self.part, stored, warm)
            reached, gradient = self.adjoint.hypergradient(self.problem, self.solver, x, task, key, begin)
            return (reached.value, (reached.metrics, reached.certificate, self.part(reached.inner))), gradient

        stored = jax.tree.map(lambda a: a[where], table)
        direction, losses, (metrics, certificates, y), finite = task_gradient(
            gradient, x, tasks, key, stored, filled[where] & known, chunk=self.task_chunk
        )
        later = jnp.triu(where[:, None] == where[None, :], k=1).any(1)
        into = jnp.where(known & ~later, where, self.slots)  # beyond the table, hence dropped
        table = jax.tree.map(lambda a, b: a.at[into].set(b, mode="drop"), table, y)
        filled = filled.at[into].set(finite & jax.vmap(all_finite)(y), mode="drop")
        return direction, (table, filled), Info(losses, metrics, certificates, finite)


def warmed(y0: Inner, part: Callable[[Inner], PyTree], stored: PyTree, warm: jax.Array) -> Inner:
    """`y0` with its part `part(y0)` replaced by `stored`, if `warm`."""
    return eqx.tree_at(part, y0, jax.tree.map(lambda a, b: jnp.where(warm, a, b), stored, part(y0)))
