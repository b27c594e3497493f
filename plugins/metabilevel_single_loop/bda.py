"""BDA: an inner descent of G that F has a fading say in, differentiated through."""

from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .bome import Memory
from .descent import descended
from .posing import Objective, Schedule, decaying, posed, real, scheduled


class BDA(mb.AbstractSingleLoop):
    """`inner_steps` times, from where y stood, each time with blocks of its own,

        y <- y - rate (alpha_k dF/dy + (1 - alpha_k) dG/dy),    alpha_k = aggregation / k,    k = 1, 2, ...

    The direction is dF(x, y)/dx at the y reached, through all these steps by reverse mode.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    aggregation: Array = eqx.field(converter=real, default=0.5)
    inner_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("inner_steps", self.inner_steps, 1)

    def begin(self, oracles, x, y, key):
        return Memory(y)

    def step(self, oracles, x, memory, t, key):
        k_y, k_x = jax.random.split(key)

        def reached(x: Any) -> Any:
            def aggregated(y: Any, i: Any, key: Any) -> Any:
                inner, outer = oracles.samples(key)
                share = self.aggregation / (i + 1)
                _, (_, f_y) = oracles.outer_gradients(x, y, outer)
                g_y = oracles.inner_gradient(x, y, inner)
                return optax.tree.add_scale(optax.tree.scale(share, f_y), 1 - share, g_y)

            return descended(aggregated, memory.y, self.rate(t), self.inner_steps, k_y)

        y, back = jax.vjp(reached, x)
        seen, (f_x, f_y) = oracles.outer_gradients(x, y, oracles.sample("outer", k_x))
        direction = optax.tree.add(f_x, back(f_y)[0])
        return mb.Stride(optax.tree.scale(self.outer(t), direction), seen, Memory(y))


def bda(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = None,
    inner_steps: int = 10,
    aggregation: float = 0.5,
) -> mb.Method:
    """BDA (Liu, Mu, Yuan, Zeng & Zhang 2020, arXiv:2006.04045): an inner descent along a mean of dG/dy and dF/dy, so
    that F chooses among the minima of G where there are many; the hypergradient goes back through it.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of y between two steps of x.
    - `aggregation`: the share of dF/dy in the first of these steps, the k-th has a k-th of it; from 0, which leaves
      G alone, to 1.

    **Raises:** `InputError` for a rate that is not positive, an exponent or an aggregation outside [0, 1], no steps,
    or losses that need all examples at once.
    """
    if not 0 <= aggregation <= 1:
        raise mb.InputError(f"aggregation = {aggregation}: a share of the outer gradient, from 0 to 1, is wanted.")
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, BDA(*rates, aggregation, inner_steps), objective, batch)
