"""PBGD: descent of F with a price on G above its minimum."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .descent import descended, gap
from .f2sa import Memory
from .posing import Objective, Schedule, decaying, posed, real, scheduled


class PBGD(mb.AbstractSingleLoop):
    """After `inner_steps` of   z <- z - rate dG/dy(x, z),   x and y descend the penalised loss, from the same point,

        F(x, y) + penalty (G(x, y) - G(x, z)),

    where z is a constant; its gradient is divided by the penalty, if that is above 1, since its curvature grows so.

    **Arguments:** `rate(t)` of y and z; `outer(t)` is the factor of the direction.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    penalty: Array = eqx.field(converter=real, default=10.0)
    inner_steps: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        errors.count("inner_steps", self.inner_steps, 1)

    def begin(self, oracles, x, y, key):
        return Memory(y, y)

    def step(self, oracles, x, memory, t, key):
        k_z, k_step = jax.random.split(key)
        y, rate = memory.y, self.rate(t)
        inner_gradient = lambda z, i, key: oracles.inner_gradient(x, z, oracles.sample("inner", key))
        z = descended(inner_gradient, memory.z, rate, self.inner_steps, k_z)
        inner, outer = oracles.samples(k_step)
        seen, gradients = oracles.outer_gradients(x, y, outer)
        gradients = optax.tree.add_scale(gradients, self.penalty, gap(oracles, x, y, z, inner, inner))
        d_x, d_y = optax.tree.scale(1 / jnp.maximum(self.penalty, 1), gradients)
        return mb.Stride(optax.tree.scale(self.outer(t), d_x), seen, Memory(optax.tree.add_scale(y, -rate, d_y), z))


def pbgd(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = None,
    inner_steps: int = 1,
    penalty: float = 10.0,
) -> mb.Method:
    """V-PBGD (Shen & Chen 2023, arXiv:2302.05185, algorithm 1): x and y descend F + penalty (G - min G) together,
    whose solutions are within O(1 / penalty) of those of the bilevel problem.

    An inner variable z follows the minimum of G, going on from where it stood, as in the authors' code.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of z; y and x take steps that are divided by the penalty, where that is above 1.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of z between two steps of x and y.
    - `penalty`: gamma in the paper.

    **Raises:** `InputError` for a rate or a penalty that is not positive, an exponent outside [0, 1], no steps, or
    losses that need all examples at once.
    """
    errors.number("penalty", penalty, 0, above=True)
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, PBGD(*rates, penalty, inner_steps), objective, batch)
