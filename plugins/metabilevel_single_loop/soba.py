"""SOBA: y, v and x move at once."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb

from .posing import Objective, Schedule, decaying, posed, scheduled
from .steps import directions


class Memory(NamedTuple):
    """y, and v, which goes towards the solution of (d2G/dy2) v = -dF/dy."""

    y: Any
    v: Any


class SOBA(mb.AbstractSingleLoop):
    """With one block of inner and one of outer examples, all at (x, y, v):

        y <- y - rate dG/dy,    v <- v - rate ((d2G/dy2) v + dF/dy),    direction = (d2G/dx dy) v + dF/dx

    **Arguments:** `rate(t)` of y and v; `outer(t)` is the factor of the direction.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)

    def begin(self, oracles, x, y, key):
        return Memory(y, jax.tree.map(jnp.zeros_like, y))

    def step(self, oracles, x, memory, t, key):
        y, v = memory
        seen, (d_y, d_v, d_x) = directions(oracles, (x, y, v), *oracles.samples(key))
        rate = self.rate(t)
        later = Memory(optax.tree.add_scale(y, -rate, d_y), optax.tree.add_scale(v, -rate, d_v))
        return mb.Stride(optax.tree.scale(self.outer(t), d_x), seen, later)


def soba(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
) -> mb.Method:
    """SOBA (Dagreou, Ablin, Vaiter & Moreau 2022, arXiv:2201.13409): y, the solution of the linear system and x move
    at once, each along a stochastic direction, so that a step costs a few gradients of a minibatch.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y and of the linear system.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], or losses that need all
    examples at once.
    """
    loop = SOBA(decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent"))
    return posed(subject, loop, objective, batch)
