"""F2SA: the hypergradient by first derivatives alone, from the minima of G and of F + lambda G."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel import errors

from .descent import descended, gap
from .posing import Decaying, Objective, Schedule, decaying, posed, scheduled


class Memory(NamedTuple):
    """y, which goes towards the minimum of F + lambda G, and z, which goes towards that of G."""

    y: Any
    z: Any


class F2SA(mb.AbstractSingleLoop):
    """`inner_steps` times, with blocks of their own for every derivative,

        z <- z - rate dG/dy(x, z),    y <- y - rate / (2 lambda) (dF/dy + lambda dG/dy)(x, y)

    and then   direction = dF/dx(x, y) + lambda (dG/dx(x, y) - dG/dx(x, z)),   which misses the hypergradient by
    O(1 / lambda) where y and z are at their minima.

    The direction carries lambda, and while y and z are not solved its error does: the step of x must stay below about
    1 / lambda.

    **Arguments:** `rate(t)` of z; `outer(t)` is the factor of the direction, and `penalty(t)` is lambda.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    penalty: Schedule = eqx.field(converter=scheduled, default=1.0)
    inner_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("inner_steps", self.inner_steps, 1)

    def begin(self, oracles, x, y, key):
        return Memory(y, y)

    def step(self, oracles, x, memory, t, key):
        k_z, k_y, k_x, k_below = jax.random.split(key, 4)
        rate, penalty = self.rate(t), self.penalty(t)

        def penalised(y: Any, i: Any, key: Any) -> Any:
            inner, outer = oracles.samples(key)
            _, (_, f_y) = oracles.outer_gradients(x, y, outer)
            return optax.tree.add_scale(f_y, penalty, oracles.inner_gradient(x, y, inner))

        inner_gradient = lambda z, i, key: oracles.inner_gradient(x, z, oracles.sample("inner", key))
        z = descended(inner_gradient, memory.z, rate, self.inner_steps, k_z)
        y = descended(penalised, memory.y, rate / (2 * penalty), self.inner_steps, k_y)
        inner, outer = oracles.samples(k_x)
        seen, (f_x, _) = oracles.outer_gradients(x, y, outer)
        q_x, _ = gap(oracles, x, y, z, inner, oracles.sample("inner", k_below))
        return mb.Stride(optax.tree.scale(self.outer(t), optax.tree.add_scale(f_x, penalty, q_x)), seen, Memory(y, z))


def f2sa(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 4 / 7,
    outer_exponent: float = 5 / 7,
    batch: int | None = 64,
    inner_steps: int = 10,
    penalty: float = 1.0,
    growth: float = 1 / 7,
) -> mb.Method:
    """F2SA (Kwon, Kwon, Wright & Nowak 2023, arXiv:2301.10945, algorithm 1): no second derivative, but two inner
    variables, one for the inner loss G and one for F + lambda G, whose difference tells how F pulls.

    The paper's rates are for noise in both losses; without noise they are 0, 1/3 and 1/3 in place of 4/7, 5/7 and 1/7.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of z, the inner variable of G; that of F + lambda G has half of it over lambda.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of both inner variables between two steps of x.
    - `penalty`: lambda at the start.
    - `growth`: lambda grows as (t + 1)^growth.

    **Raises:** `InputError` for a rate or a penalty that is not positive, an exponent outside [0, 1], a negative
    growth, no steps, or losses that need all examples at once.
    """
    errors.number("penalty", penalty, 0, above=True)
    errors.number("growth", growth, 0)
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    growing = Decaying(jnp.asarray(penalty, float), jnp.asarray(-growth, float))
    return posed(subject, F2SA(*rates, growing, inner_steps), objective, batch)
