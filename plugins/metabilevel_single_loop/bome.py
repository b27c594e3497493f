"""BOME: descent of F that lowers the gap of the value function as fast as a barrier asks."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .descent import descended, gap
from .posing import Objective, Schedule, decaying, posed, real, scheduled


class Memory(NamedTuple):
    """y alone."""

    y: Any


class BOME(mb.AbstractSingleLoop):
    """z is y after `inner_steps` of gradient descent on G(x, .) at `inner_rate`, and a constant in the gap
    q = G(x, y) - G(x, z). x and y follow, from the same point,

        grad F + lambda grad q,    lambda = max(barrier - <grad F, grad q> / |grad q|^2, 0),

    the direction nearest to grad F along which q falls by barrier |grad q|^2 or more. One block of inner and one of
    outer examples serve all derivatives of a step.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    barrier: Array = eqx.field(converter=real, default=0.5)
    inner_rate: Array = eqx.field(converter=real, default=0.1)
    inner_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("inner_steps", self.inner_steps, 1)

    def begin(self, oracles, x, y, key):
        return Memory(y)

    def step(self, oracles, x, memory, t, key):
        (y,) = memory
        inner, outer = oracles.samples(key)
        z = descended(lambda z, i, key: oracles.inner_gradient(x, z, inner), y, self.inner_rate, self.inner_steps, key)
        seen, gradients = oracles.outer_gradients(x, y, outer)
        q = gap(oracles, x, y, z, inner, inner)
        square = optax.tree.norm(q, squared=True)
        # where grad q is zero, so is its product with lambda, whatever that is
        price = jnp.maximum(self.barrier - optax.tree.vdot(gradients, q) / jnp.where(square > 0, square, 1), 0)
        d_x, d_y = optax.tree.add_scale(gradients, price, q)
        return mb.Stride(
            optax.tree.scale(self.outer(t), d_x), seen, Memory(optax.tree.add_scale(y, -self.rate(t), d_y))
        )


def bome(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.5,
    outer_exponent: float = 0.5,
    batch: int | None = None,
    inner_learning_rate: float = 0.1,
    inner_steps: int = 10,
    barrier: float = 0.5,
) -> mb.Method:
    """BOME (Ye, Liu, Wright, Stone & Liu 2022, arXiv:2209.08709, algorithm 1): x and y descend F under the constraint
    that G is at its minimum, by first derivatives alone.

    The barrier is the first of the paper's two, proportional to the square of the gradient of the gap. With constant
    steps x and y end up swinging, at a distance from the solution that is proportional to them.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_learning_rate`: of the steps from y towards the minimum of G, constant.
    - `inner_steps`: from y towards the minimum of G.
    - `barrier`: how fast the gap must fall; eta in the paper.

    **Raises:** `InputError` for rates or a barrier that are not positive, an exponent outside [0, 1], no steps, or
    losses that need all examples at once.
    """
    errors.number("inner_learning_rate", inner_learning_rate, 0, above=True)
    errors.number("barrier", barrier, 0, above=True)
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, BOME(*rates, barrier, inner_learning_rate, inner_steps), objective, batch)
