"""SRBA: SOBA along directions that are followed from step to step, by the recursion of SARAH."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel import errors

from .posing import Objective, Schedule, decaying, posed, scheduled
from .steps import directions


class Memory(NamedTuple):
    """y and v as of SOBA; (x, y, v) of the step before, and the directions (of y, of v, of x) along which it went."""

    y: Any
    v: Any
    previous: Any
    directions: Any


class SRBA(mb.AbstractSingleLoop):
    """The steps of SOBA along directions d of its three variables u = (x, y, v): every `period` steps on all examples,
    and between them, with the same blocks at both points,

        d <- d + D(u) - D(previous u)

    where D are SOBA's directions on these blocks. The paper's projection of v onto a ball is left out.

    **Arguments:** as of `SOBA`; `period` is as many steps as both losses have blocks if None. Without minibatches every
    step is on all examples.

    **Raises:** `InputError` for a period below 1.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    period: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.period is not None:
            errors.count("period", self.period, 1)

    def begin(self, oracles, x, y, key):
        v = jax.tree.map(jnp.zeros_like, y)
        return Memory(y, v, (x, y, v), (v, v, jax.tree.map(jnp.zeros_like, x)))

    def step(self, oracles, x, memory, t, key):
        y, v = memory.y, memory.v
        point, (inner, outer) = (x, y, v), oracles.samples(key)

        def restart() -> Any:
            return directions(oracles, point, inner._replace(block=None), outer._replace(block=None))

        def recursion() -> Any:
            seen, now = directions(oracles, point, inner, outer)
            _, before = directions(oracles, memory.previous, inner, outer)
            return seen, optax.tree.add(memory.directions, optax.tree.sub(now, before))

        if oracles.minibatches is None:
            seen, estimates = restart()
        else:
            period = self.period or sum(len(oracles.weights(part)) for part in ("inner", "outer"))
            seen, estimates = jax.lax.cond(t % period == 0, restart, recursion)
        d_y, d_v, d_x = estimates
        rate = self.rate(t)
        later = optax.tree.add_scale(y, -rate, d_y), optax.tree.add_scale(v, -rate, d_v)
        return mb.Stride(optax.tree.scale(self.outer(t), d_x), seen, Memory(*later, point, estimates))


def srba(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    period: int | None = None,
) -> mb.Method:
    """SRBA (Dagreou, Moreau, Vaiter & Ablin 2023, arXiv:2302.08766, algorithm 1): SOBA with the variance reduction of
    SARAH, which converges with constant steps, and keeps no table.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y and of the linear system.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `period`: steps from one pass over all examples to the next; as many as both parts have batches if none.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], a period below 1, or losses
    that need all examples at once.
    """
    rates = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, SRBA(*rates, period), objective, batch)
