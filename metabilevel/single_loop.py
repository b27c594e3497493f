"""Methods without an inner solve: y, and what else they keep, takes a few steps with every step of x."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .adjoints import certify
from .batching import leading, task_gradient
from .errors import InputError, count
from .estimators import AbstractEstimator
from .info import Info, all_finite, norm
from .oracles import Minibatches, Oracles, Sample, check_means
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Scalar, Task


class Stride(NamedTuple):
    """What one step gives: the direction for x, F with its metrics where the step saw it, and the next memory."""

    direction: Outer
    seen: tuple[Scalar, Metrics]
    memory: Any


class AbstractSingleLoop(eqx.Module):
    """A single-loop or penalty method, in two functions of one task.

    The memory is any pytree of arrays that has a field `y`, the inner variable.
    """

    @abc.abstractmethod
    def begin(self, oracles: Oracles, x: Outer, y: Inner, key: Key) -> Any:
        """The memory before the first step, where the inner variable is `y`."""

    @abc.abstractmethod
    def step(self, oracles: Oracles, x: Outer, memory: Any, t: Array, key: Key) -> Stride:
        """Step t = 0, 1, ...: x is followed by an outer optimizer along the direction, downhill."""


class SingleLoop(AbstractEstimator):
    """The direction of a single-loop method, whose memory of a task goes on from one outer step to the next.

    A memory that was not finite is begun anew, from `problem.init`.

    **Arguments:**

    - `loop`: the method.
    - `minibatches`: what its oracles see; all examples if None.
    - `slots`, `slot(task)`: a memory for each of so many tasks. With one slot there is one task; two tasks of a batch
      must not share a slot, since only the last one's memory is kept. A task whose slot is none of 0 ... slots - 1
      begins anew.

    **Raises:** `InputError` for more tasks than memories, a batch above a part's examples, and losses that are no
    means over minibatches.
    """

    problem: BilevelProblem
    loop: AbstractSingleLoop
    minibatches: Minibatches | None = None
    slots: int = eqx.field(static=True, default=1)
    slot: Callable[[Task], Any] = lambda task: 0

    def __check_init__(self):
        count("slots", self.slots, 1)

    def init(self, x, tasks, key):
        if self.slots == 1 and leading(tasks) > 1:
            raise InputError(
                f"meta_batch = {leading(tasks)}: one memory serves one task. Take a meta-batch of 1, or tasks of a "
                "pool, each of which has a memory of its own."
            )
        if self.minibatches is not None:
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tasks)
            for part in ("inner", "outer"):
                self.minibatches.examples(part, shapes)
        first = jax.tree.map(lambda a: a[0], tasks)
        if self.slots == 1:
            return self._begin(x, first, key), jnp.int32(0), jnp.bool_(True)
        memory = jax.eval_shape(self._begin, x, first, key)
        table = jax.tree.map(lambda a: jnp.zeros((self.slots, *a.shape), a.dtype), memory)
        return table, jnp.zeros(self.slots, jnp.int32), jnp.zeros(self.slots, bool)

    def check(self, x, tasks, key):
        if self.slots == 1 and not tasks.single:
            raise InputError(
                "slots = 1: one memory serves one task, and every draw of these is another. Take tasks of a pool of 2 "
                "or more (--task-option pool=...), each of which has a memory of its own, or a family of a single task."
            )
        check_means(Oracles(self.problem, tasks.sample(key, "train"), self.minibatches), x, key)

    def __call__(self, x, tasks, carry, key):
        if self.slots == 1:  # without a leading axis, which would have a large memory copied
            (value, aux), direction = self._step(x, jax.tree.map(lambda a: a[0], tasks), key, *carry)
            losses, (metrics, certificates, later) = value[None], aux
            metrics, certificates = jax.tree.map(lambda a: jnp.asarray(a)[None], (metrics, certificates))
            finite = later[2][None]
            direction = jax.tree.map(lambda a: jnp.where(later[2], a, 0), direction)
            return direction, later, Info(losses, metrics, certificates, finite)
        slots = jax.vmap(lambda task: jnp.asarray(self.slot(task)))(tasks)
        known = (slots >= 0) & (slots < self.slots)
        memory, t, alive = jax.tree.map(lambda a: a[slots], carry)
        found = task_gradient(self._step, x, tasks, key, memory, t, alive & known, chunk=self.task_chunk)
        direction, losses, (metrics, certificates, later), finite = found
        place = jnp.where(known, slots, self.slots)  # beyond the table, hence dropped
        later = jax.tree.map(lambda a, b: a.at[place].set(b, mode="drop"), carry, later)
        return direction, later, Info(losses, metrics, certificates, finite)

    def _step(self, x: Outer, task: Task, key: Key, memory: Any, t: Array, alive: Array) -> Any:
        """((F, (metrics, certificate, carry)), direction) of one task."""
        k_step, k_other = jax.random.split(key)
        # a loop of at most one turn leaves a large memory where it is, and a conditional copies it
        anew = lambda _: (self._begin(x, task, jax.random.fold_in(k_other, 0)), jnp.int32(0), jnp.bool_(True))
        memory, t, _ = jax.lax.while_loop(lambda s: ~s[2], anew, (memory, t, alive))
        oracles = Oracles(self.problem, task, self.minibatches)
        with jax.named_scope("single_loop"):
            direction, (value, metrics), memory = self.loop.step(oracles, x, memory, t, k_step)
        residual = norm(oracles.inner_gradient(x, memory.y, Sample(None, jax.random.fold_in(k_other, 1))))
        alive = all_finite(value, direction, memory.y)
        return (value, (metrics, certify(residual, alive), (memory, t + 1, alive))), direction

    def _begin(self, x: Outer, task: Task, key: Key) -> PyTree:
        k_init, k_begin = jax.random.split(key)
        _, y, _ = self.problem.begin(x, task, k_init)
        return self.loop.begin(Oracles(self.problem, task, self.minibatches), x, y, k_begin)
