"""From one task to many: gradients and scores over a batch, a chunk of tasks at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import subjaxprs
from jaxtyping import Array, PyTree

from .devices import spread, summed
from .info import all_finite, masked_sum
from .problem import Key, Outer

# Where the largest temporary of a chunk outgrows this, fresh memory pages cost more than a longer vector saves.
CHUNK_BYTES = 2 * 2**20


def task_gradient(
    gradient: Callable[..., tuple[tuple[Array, Any], Outer]],
    x: Outer,
    tasks: PyTree,
    key: Key,
    *carried: PyTree,
    chunk: int | None = None,
    loss: Callable[..., tuple[Array, Any]] | None = None,
) -> tuple[Outer, Array, Any, Array]:
    """Mean over tasks of d loss / d x, without the tasks whose loss or gradient is not finite.

    Differentiating inside the vmap, not outside, is what lets one diverged task be left out: the gradient of a mean
    would be NaN whole. The sum is accumulated chunk by chunk, so that memory does not grow with the tasks.

    **Arguments:** `gradient(x, task, key, *carried) -> ((loss, aux), d loss / d x)` of one task; `tasks`
    and `carried` with a leading axis of n tasks; `chunk` tasks are vmapped at once, as many as
    `fitting_chunk` says if None. Where `gradient` is the derivative of `loss(x, task, key, *carried) -> (loss, aux)`
    and no more, giving that too lets the sum of a chunk be differentiated, one matrix product for all its tasks in
    place of many small ones; task by task only where the result is not finite.

    **Returns:** the mean gradient (zero if no task is finite), losses [n], aux [n, ...], finite [n].
    """
    keys = jax.random.split(key, leading(tasks))

    def each(x, *batch):
        (losses, aux), gradients = _vmap(lambda *one: gradient(x, *one))(*batch)
        total, finite = _finite_sum(losses, gradients)
        return total, (losses, aux, finite)

    def part(x, *batch):
        if loss is None or leading(batch) == 1:
            return each(x, *batch)
        losses, aux, total = _sum_gradient(loss, x, batch)
        whole = total, (losses, aux, jnp.ones(losses.shape, bool))
        return _unless(all_finite(losses, total), whole, lambda: each(x, *batch))

    share = lambda x, *batch: _sum_chunks(part, gradient, x, batch, chunk)
    total, (losses, aux, finite) = summed(share, x, tasks, keys, *carried)
    count = jnp.maximum(jnp.sum(finite), 1)
    return jax.tree.map(lambda g: (g / count).astype(g.dtype), total), losses, aux, finite


def _sum_gradient(loss: Callable[..., tuple[Array, Any]], x: Outer, batch: PyTree) -> tuple[Array, Any, Outer]:
    """Losses and aux of each task, and the derivative of the sum of the losses, taken at once."""

    def summed(x: Outer) -> tuple[Array, Any]:
        losses, aux = jax.vmap(lambda *one: loss(x, *one))(*batch)
        return losses.sum(), (losses, aux)

    (_, (losses, aux)), total = jax.value_and_grad(summed, has_aux=True)(x)
    return losses, aux, total


def _finite_sum(losses: Array, gradients: Outer) -> tuple[Outer, Array]:
    """Sum over the tasks whose loss and gradient are finite, and which they are.

    The plain sum is finite only if every addend is, so that the tasks are looked at one by one in a bad step alone.
    """
    plain = jax.tree.map(_sum, gradients)

    def one_by_one():
        finite = jax.vmap(all_finite)(losses, gradients)
        return jax.tree.map(lambda g: masked_sum(g, finite), gradients), finite

    return _unless(all_finite(losses, plain), (plain, jnp.ones(losses.shape, bool)), one_by_one)


def _unless(good: Array, usual: Any, otherwise: Callable[[], Any]) -> Any:
    """`usual` if `good`, or else `otherwise()`; over a batch of runs that is computed only where one of them needs it.

    Of a predicate with a batch axis `jax.lax.cond` alone would compute both, at every step.
    """
    return jax.lax.cond(_of_all(good), lambda: usual, lambda: jax.lax.cond(good, lambda: usual, otherwise))


@custom_vmap
def _of_all(predicate: Array) -> Array:
    """`predicate`; over a batch, whether it holds for all, which has no batch axis."""
    return predicate


@_of_all.def_vmap
def _(size, batched, predicate):
    return predicate.all(), False


def _vmap(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap`, and of a single task `fn` itself: products without a batch axis are up to a fifth faster."""

    def mapped(*batch):
        if leading(batch) > 1:
            return jax.vmap(fn)(*batch)
        return jax.tree.map(lambda a: jnp.asarray(a)[None], fn(*jax.tree.map(lambda a: a[0], batch)))

    return mapped


def _sum(a: Array) -> Array:
    """`a.sum(0)` by halves: on CPU additions fuse, and a reduction of a short leading axis is slow."""
    while len(a) > 1:
        half = len(a) // 2
        a = jnp.concatenate([a[:half] + a[half : 2 * half], a[2 * half :]])
    return a[0]


def map_tasks(fn: Callable[..., Any], x: PyTree, *batch: PyTree, chunk: int | None = None) -> Any:
    """`fn(x, *one)` of every task of a batch, stacked; as `jax.vmap` without an axis of x, a chunk at a time."""
    part = lambda x, *batch: ((), _vmap(lambda *one: fn(x, *one))(*batch))
    return spread(lambda x, *share: _sum_chunks(part, fn, x, share, chunk)[1], x, *batch)


def leading(tree: PyTree) -> int:
    """The length of the leading axis."""
    return jax.tree.leaves(tree)[0].shape[0]


def fitting_chunk(fn: Callable[..., Any], batch: tuple[PyTree, ...]) -> int:
    """How many tasks of `batch`, the arguments of `fn` with a leading axis of tasks, to vmap at once.

    On a CPU: as many as keep the largest intermediate array of `fn` below `CHUNK_BYTES`, found by tracing one task.
    On an accelerator: all.
    """
    n = leading(batch)
    if jax.default_backend() != "cpu":
        return n
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), batch)
    fitting = CHUNK_BYTES // _largest(jax.make_jaxpr(fn)(*one).jaxpr)
    return max(size for size in range(1, n + 1) if size <= max(1, fitting) and n % size == 0)


def _largest(jaxpr: Any) -> int:
    """Bytes of the largest array that an equation of `jaxpr`, or of one inside it, writes."""
    inside = [_largest(sub) for sub in subjaxprs(jaxpr)]
    return max([1, *inside, *[_bytes(v.aval) for eqn in jaxpr.eqns for v in eqn.outvars]])


def _bytes(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ())) * getattr(getattr(aval, "dtype", None), "itemsize", 1)


def _sum_chunks(
    part: Callable[..., tuple[Any, Any]], one: Callable[..., Any], x: PyTree, batch: tuple, chunk: int | None
) -> Any:
    """`part(x, *batch) -> (total, stacked)` chunk by chunk: totals added, stacked results put together.

    `one(x, *task)` is what a part does of each task.
    """
    n = leading(batch)
    size = min(n, chunk or fitting_chunk(lambda *task: one(x, *task), batch))
    if size == n:
        return part(x, *batch)
    whole = n - n % size
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, size, *a.shape[1:]), batch)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda b: part(x, *jax.tree.map(lambda a: a[0], b))[0], chunks))

    def add(total, b):
        more, stacked = part(x, *b)
        return jax.tree.map(jnp.add, total, more), stacked

    total, stacked = jax.lax.scan(add, zero, chunks)
    stacked = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)
    if whole == n:
        return total, stacked
    more, rest = part(x, *jax.tree.map(lambda a: a[whole:], batch))
    return jax.tree.map(jnp.add, total, more), jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, rest)
