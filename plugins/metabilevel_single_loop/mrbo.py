"""MRBO: steps of y and of x along directions that remember, by the momentum of STORM."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .posing import Decaying, Objective, Schedule, decaying, posed, real, scheduled
from .steps import implicit, neumann, series_scale


class Memory(NamedTuple):
    """y, (x, y) of the step before, and the directions (of y, of x) along which it went."""

    y: Any
    previous: Any
    directions: Any


class MRBO(mb.AbstractSingleLoop):
    """With d = (dG/dy, dF/dx - (d2G/dx dy) s), where s is the truncated Neumann series of stocBiO, and with all blocks
    of d the same at both points:

        directions <- d(x, y) + (1 - momentum) (directions - d(previous x, y)),    d(x, y) at the first step

    Then y <- y - rate its direction. A momentum of 1 leaves none of the past.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction; `momentum(t)`.

    **Raises:** `InputError` for no terms.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    momentum: Schedule = eqx.field(converter=scheduled, default=0.5)
    scale: Array = eqx.field(converter=real, default=0.1)
    terms: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("terms", self.terms, 1)

    def begin(self, oracles, x, y, key):
        return Memory(y, (x, y), jax.tree.map(jnp.zeros_like, (y, x)))

    def step(self, oracles, x, memory, t, key):
        k_inner, k_outer = jax.random.split(key)
        block = oracles.sample("inner", k_inner)
        solve = lambda hessian, f_y, key: neumann(hessian, f_y, self.scale, self.terms, key)

        def fresh(x: Any, y: Any) -> Any:
            seen, _, direction = implicit(oracles, x, y, solve, k_outer)
            return seen, (oracles.inner_gradient(x, y, block), direction)

        seen, now = fresh(x, memory.y)
        _, before = fresh(*memory.previous)
        kept = jnp.where(t > 0, 1 - self.momentum(t), 0)
        estimates = optax.tree.add_scale(now, kept, optax.tree.sub(memory.directions, before))
        y = optax.tree.add_scale(memory.y, -self.rate(t), estimates[0])
        return mb.Stride(optax.tree.scale(self.outer(t), estimates[1]), seen, Memory(y, (x, memory.y), estimates))


def mrbo(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 1 / 3,
    outer_exponent: float = 1 / 3,
    batch: int | None = 64,
    terms: int = 10,
    scale: float | None = None,
    momentum: float = 0.5,
) -> mb.Method:
    """MRBO (Yang, Ji & Liang 2021, arXiv:2106.04692, algorithm 1): y and x move at once, along directions whose noise
    the momentum of STORM takes away step by step.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `terms`: Hessian products of the Neumann series.
    - `scale`: of the series, constant, below 2 / the largest eigenvalue of the Hessian; the learning rate if none.
    - `momentum`: the share of what is fresh in a direction, above 0 and up to 1; it falls as the square of the rate.

    **Raises:** `InputError` for a rate or scale that is not positive, an exponent outside [0, 1], no terms, a momentum
    out of range, or losses that need all examples at once.
    """
    if not 0 < momentum <= 1:
        raise mb.InputError(f"momentum = {momentum}: the share of what is fresh is above 0 and up to 1.")
    rate, outer = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    share = Decaying(jnp.asarray(momentum, float), jnp.asarray(2 * exponent, float))
    loop = MRBO(rate, outer, share, series_scale(scale, learning_rate), terms)
    return posed(subject, loop, objective, batch)
