"""DARTS: the hypergradient of one inner step ahead, by finite differences."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .descent import difference
from .posing import Objective, Schedule, decaying, posed, real, scheduled


class Memory(NamedTuple):
    """y, and its momentum, a falling sum of gradients."""

    y: Any
    velocity: Any


class DARTS(mb.AbstractSingleLoop):
    """After a step of y, with y' one further step ahead on a block of its own, equations (7) and (8):

        direction = dF/dx(x, y') - rate (d2G/dx dy)(x, y) dF/dy(x, y')

    with the product as `difference` gives it. The paper's step of y, which follows that of x, opens our next step. A
    step is   velocity <- momentum velocity + dG/dy + weight_decay y,   y <- y - rate velocity.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction; `first_order` takes y for y' and drops
    the second term.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    momentum: Array = eqx.field(converter=real, default=0.9)
    weight_decay: Array = eqx.field(converter=real, default=0.0)
    first_order: bool = eqx.field(static=True, default=False)

    def begin(self, oracles, x, y, key):
        return Memory(y, jax.tree.map(jnp.zeros_like, y))

    def step(self, oracles, x, memory, t, key):
        k_y, k_x = jax.random.split(key)
        rate = self.rate(t)

        def moved(memory: Memory, at: mb.Sample) -> Memory:
            y, velocity = memory
            gradient = optax.tree.add_scale(oracles.inner_gradient(x, y, at), self.weight_decay, y)
            velocity = optax.tree.add_scale(gradient, self.momentum, velocity)
            return Memory(optax.tree.add_scale(y, -rate, velocity), velocity)

        memory = moved(memory, oracles.sample("inner", k_y))
        inner, outer = oracles.samples(k_x)
        ahead = memory if self.first_order else moved(memory, inner)
        seen, (direction, f_y) = oracles.outer_gradients(x, ahead.y, outer)
        if not self.first_order:
            direction = optax.tree.add_scale(direction, -rate, difference(oracles, x, memory.y, f_y, inner))
        return mb.Stride(optax.tree.scale(self.outer(t), direction), seen, memory)


def darts(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.025,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    first_order: bool = False,
) -> mb.Method:
    """DARTS (Liu, Simonyan & Yang 2019, arXiv:1806.09055, algorithm 1): one inner step ahead stands for the whole
    inner solve, and two gradients of G for its second derivative.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y, and of the step ahead.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `momentum`: of y; from 0 to below 1.
    - `weight_decay`: of y, beside what the inner loss has; 3e-4 in the paper.
    - `first_order`: no step ahead, so that x sees no more than what stands in the outer loss itself.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], a momentum outside [0, 1), a
    negative weight decay, or losses that need all examples at once.
    """
    if not 0 <= momentum < 1:
        raise mb.InputError(f"momentum = {momentum}: 0 or more and less than 1 is wanted.")
    errors.number("weight_decay", weight_decay, 0)
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, DARTS(*rates, momentum, weight_decay, first_order), objective, batch)
