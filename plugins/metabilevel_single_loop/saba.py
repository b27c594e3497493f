"""SABA: SOBA without the noise of its minibatches, by tables of what each of them gave last."""

import operator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel import errors

from .posing import Objective, Schedule, decaying, posed, scheduled


class Table(NamedTuple):
    """What every block gave when it was last seen [blocks, ...], and the weighted mean over the blocks.

    The newest row, of `block`, is in `rows` only from the next step on: where a table is written before it is read,
    it is changed in place, and elsewhere copied whole.
    """

    rows: Any
    mean: Any
    newest: Any
    block: Any


class Memory(NamedTuple):
    """y and v as of SOBA; the tables of (dG/dy, (d2G/dy2) v, (d2G/dx dy) v) and of (dF/dx, dF/dy)."""

    y: Any
    v: Any
    inner: Table
    outer: Table


class SABA(mb.AbstractSingleLoop):
    """The steps of SOBA along the directions of SAGA (Defazio et al. 2014), for each of its five oracles d:

        d_b - table_b + mean of the table,    table_b <- d_b

    for the block b that was drawn; a block that was never drawn has zeros.

    **Arguments:** as of `SOBA`; `budget` is the most GiB that the tables may take.

    **Raises:** `InputError` for larger tables, a budget that is not positive, or without minibatches.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    budget: float = 2.0

    def __check_init__(self):
        errors.number("budget", self.budget, 0, above=True)

    def begin(self, oracles, x, y, key):
        blocks = [len(oracles.weights(part)) for part in ("inner", "outer")]
        sizes = [sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(part)) for part in ((y, y, x), (x, y))]
        bytes_ = sum(map(operator.mul, blocks, sizes))
        if bytes_ > self.budget * 2**30:
            raise mb.InputError(
                f"budget = {self.budget:g}: the tables of SABA take {bytes_:,} bytes ({blocks[0]} and {blocks[1]} "
                f"blocks), more than {self.budget:g} GiB. Take larger batches, or soba, which keeps no table."
            )
        zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
        rows = lambda n, tree: jax.tree.map(lambda a: jnp.zeros((n, *a.shape), a.dtype), tree)
        tables = [
            Table(rows(n, part), zeros(part), zeros(part), jnp.int32(0))
            for n, part in zip(blocks, ((y, y, x), (x, y)), strict=True)
        ]
        return Memory(y, zeros(y), *tables)

    def step(self, oracles, x, memory, t, key):
        y, v = memory.y, memory.v
        inner, outer = oracles.samples(key)
        fresh = oracles.inner_products(x, y, v, inner)
        (gradient, product, cross), inner_table = _reduced(fresh, memory.inner, inner.block, oracles.weights("inner"))
        seen, fresh = oracles.outer_gradients(x, y, outer)
        (f_x, f_y), outer_table = _reduced(fresh, memory.outer, outer.block, oracles.weights("outer"))
        rate = self.rate(t)
        y = optax.tree.add_scale(y, -rate, gradient)
        v = optax.tree.add_scale(v, -rate, optax.tree.add(product, f_y))
        direction = optax.tree.scale(self.outer(t), optax.tree.add(cross, f_x))
        return mb.Stride(direction, seen, Memory(y, v, inner_table, outer_table))


def _reduced(fresh: Any, table: Table, block: Any, weights: Any) -> tuple[Any, Table]:
    """SAGA's direction, and the table where `block` gave `fresh`."""
    rows = jax.tree.map(lambda rows, new: rows.at[table.block].set(new), table.rows, table.newest)
    change = jax.tree.map(lambda new, rows: new - rows[block], fresh, rows)
    direction = optax.tree.add(change, table.mean)
    return direction, Table(rows, optax.tree.add_scale(table.mean, weights[block], change), fresh, block)


def saba(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    budget: float = 2.0,
) -> mb.Method:
    """SABA (Dagreou, Ablin, Vaiter & Moreau 2022, arXiv:2201.13409): SOBA with the variance reduction of SAGA, which
    converges with constant steps.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y and of the linear system.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle.
    - `budget`: the most GiB that its tables may take.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], tables above the budget, or
    losses that need all examples at once.
    """
    rates = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, SABA(*rates, budget), objective, batch)
