"""What a stochastic method asks of a problem: derivatives of both losses, on a minibatch or on all examples.

G(x, y) = mean over the examples i of a task's inner part of   G_i(x, y),      F likewise over its outer part
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, UInt32

from .errors import InputError, count
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Scalar, Task

Part: TypeAlias = Literal["inner", "outer"]


class Sample(NamedTuple):
    """What an oracle is evaluated on: a block of its examples (all of them if None), and what a loss draws by."""

    block: Int[Array, ""] | None
    key: Key


class Minibatches(eqx.Module):
    """The examples of a task in blocks of `size`, in their order, the last one maybe shorter.

    The losses must be means over the examples, and what an example needs must lie in its row: a weight of its own is
    found by a number that the row holds. Rows should lie in random order.

    **Arguments:** `inner(task)` and `outer(task)` are the parts of a task that hold the examples of G and of F: pytrees
    of arrays [n, ...].
    """

    size: int = eqx.field(static=True)
    inner: Callable[[Task], PyTree] = lambda task: task.support
    outer: Callable[[Task], PyTree] = lambda task: task.query

    def __check_init__(self):
        count("batch", self.size, 1)

    def examples(self, part: Part, task: Task) -> int:
        """How many a part has.

        **Raises:** `InputError` where it has no examples, or fewer than a batch.
        """
        try:
            leaves = jax.tree.leaves(self._of(part)(task))
        except AttributeError as error:
            raise InputError(f"batch = {self.size}: the task has no examples to choose from ({error}).") from error
        lengths = {jnp.shape(a)[:1] for a in leaves}
        if len(lengths) != 1 or () in lengths:
            shapes = ", ".join(str(jnp.shape(a)) for a in leaves)
            raise InputError(f"batch = {self.size}: the {part} part is no set of examples; its arrays are {shapes}.")
        ((n,),) = lengths
        if self.size > n:
            raise InputError(f"batch = {self.size}: the {part} part has {n} examples. Take a smaller batch, or all.")
        return n

    def weights(self, part: Part, task: Task) -> Array:
        """The fraction of the examples that each block holds."""
        n = self.examples(part, task)
        whole, rest = divmod(n, self.size)
        return jnp.asarray([self.size] * whole + [rest] * (rest > 0), float) / n

    def drawn(self, part: Part, task: Task, bits: UInt32[Array, ""]) -> Int[Array, ""]:
        """The block of a random example, given 32 random bits: its mean is an unbiased estimate of the mean of all."""
        return (bits % jnp.uint32(self.examples(part, task))).astype(jnp.int32) // self.size

    def apply(self, fn: Callable[[Task], Any], part: Part, task: Task, block: Array) -> Any:
        """`fn` of the task that has the examples of a block alone."""
        whole, rest = divmod(self.examples(part, task), self.size)

        def rows(length: int) -> Any:
            take = lambda a: jax.lax.dynamic_slice_in_dim(a, block * self.size, length)
            return fn(eqx.tree_at(self._of(part), task, jax.tree.map(take, self._of(part)(task))))

        if not rest:
            return rows(self.size)
        return jax.lax.cond(block < whole, lambda: rows(self.size), lambda: rows(rest))

    def _of(self, part: Part) -> Callable[[Task], PyTree]:
        return self.inner if part == "inner" else self.outer


class Oracles(eqx.Module):
    """The derivatives of one task's losses.

    **Arguments:** `minibatches` is None where every evaluation is of all examples, or the losses draw their own by
    their key.
    """

    problem: BilevelProblem
    task: Task
    minibatches: Minibatches | None = None

    def weights(self, part: Part) -> Array:
        """The fraction of the examples that each block holds.

        **Raises:** `InputError` without minibatches.
        """
        if self.minibatches is None:
            raise InputError("batch = None: this method tells minibatches apart, so that it needs a batch size.")
        return self.minibatches.weights(part, self.task)

    def sample(self, part: Part, key: Key) -> Sample:
        """A block at random."""
        return self._samples((part,), key)[0]

    def samples(self, key: Key) -> tuple[Sample, Sample]:
        """One block of the inner part, and one of the outer part."""
        inner, outer = self._samples(("inner", "outer"), key)
        return inner, outer

    def _samples(self, parts: tuple[Part, ...], key: Key) -> list[Sample]:
        if self.minibatches is None:
            return [Sample(None, k) for k in jax.random.split(key, len(parts))]
        # one call for all blocks: in a step of microseconds each call counts
        bits = jax.random.bits(key, (len(parts),), jnp.uint32)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(parts))
        blocks = [self.minibatches.drawn(part, self.task, b) for part, b in zip(parts, bits, strict=True)]
        return [Sample(block, k) for block, k in zip(blocks, keys, strict=True)]

    def inner_loss(self, x: Outer, y: Inner, at: Sample) -> Scalar:
        """G."""
        return self._on("inner", at, lambda task: self._g(x, y, task, at.key))

    def inner_gradient(self, x: Outer, y: Inner, at: Sample) -> Inner:
        """dG/dy."""
        return self._on("inner", at, lambda task: jax.grad(self._g, 1)(x, y, task, at.key))

    def inner_gradients(self, x: Outer, y: Inner, at: Sample) -> tuple[Scalar, tuple[Outer, Inner]]:
        """G, and (dG/dx, dG/dy)."""
        return self._on("inner", at, lambda task: jax.value_and_grad(self._g, (0, 1))(x, y, task, at.key))

    def inner_products(self, x: Outer, y: Inner, v: Inner, at: Sample) -> tuple[Inner, Inner, Outer]:
        """dG/dy, (d2G/dy dy) v and (d2G/dx dy) v, all by one derivative of the gradient in the direction v."""

        def products(task: Task) -> Any:
            gradients = lambda y: jax.grad(self._g, (0, 1))(x, y, task, at.key)
            (_, gradient), (cross, product) = jax.jvp(gradients, (y,), (v,))
            return gradient, product, cross

        return self._on("inner", at, products)

    def outer_gradients(self, x: Outer, y: Inner, at: Sample) -> tuple[tuple[Scalar, Metrics], tuple[Outer, Inner]]:
        """F with its metrics, and (dF/dx, dF/dy)."""
        gradients = jax.value_and_grad(self._f, (0, 1), has_aux=True)
        return self._on("outer", at, lambda task: gradients(x, y, task, at.key))

    def _g(self, x: Outer, y: Inner, task: Task, key: Key) -> Scalar:
        k_prepare, k_loss = jax.random.split(key)
        return self.problem.inner_loss(self.problem.prepare(x, task, k_prepare), y, task, k_loss)

    def _f(self, x: Outer, y: Inner, task: Task, key: Key) -> tuple[Scalar, Metrics]:
        k_prepare, k_loss = jax.random.split(key)
        return self.problem.objective(self.problem.prepare(x, task, k_prepare), y, task, k_loss)

    def _on(self, part: Part, at: Sample, fn: Callable[[Task], Any]) -> Any:
        if self.minibatches is None or at.block is None:
            return fn(self.task)
        return self.minibatches.apply(fn, part, self.task, at.block)


def check_means(oracles: Oracles, x: Outer, key: Key) -> None:
    """Compares both losses, where the inner solve starts, with the means of their minibatches.

    **Raises:** `InputError` for a loss that is no mean over its examples, as with batch statistics.
    """
    if oracles.minibatches is None:
        return
    for part, (whole, mean) in _means(oracles, x, key).items():
        if math.isfinite(whole) and not abs(mean - whole) <= 1e-3 * max(abs(whole), abs(mean)) + 1e-6:
            raise InputError(
                f"batch = {oracles.minibatches.size}: the {part} loss is {whole:.4g} of all examples, but {mean:.4g} "
                "in the mean of its minibatches. A loss that is no mean over examples needs all of them (no batch)."
            )


@eqx.filter_jit
def _means(oracles: Oracles, x: Outer, key: Key) -> dict[str, tuple[Scalar, Scalar]]:
    """Of both losses at y0: the value of all examples, and the weighted mean over the blocks."""
    _, y, _ = oracles.problem.begin(x, oracles.task, key)

    def both(part: Part, loss: Callable[[Sample], Scalar]) -> tuple[Scalar, Scalar]:
        weights = oracles.weights(part)
        of_blocks = jax.lax.map(lambda block: loss(Sample(block, key)), jnp.arange(len(weights)))
        return loss(Sample(None, key)), weights @ of_blocks

    return {
        "inner": both("inner", lambda at: oracles.inner_loss(x, y, at)),
        "outer": both("outer", lambda at: oracles.outer_gradients(x, y, at)[0][0]),
    }
