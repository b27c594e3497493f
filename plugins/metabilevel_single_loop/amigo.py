"""AmIGO: steps of y, then steps of v from where it was."""

from typing import Any

import equinox as eqx
import optax

import metabilevel as mb
from metabilevel import errors

from .descent import descended
from .posing import Objective, decaying, posed
from .steps import AbstractDoubleLoop


class AmIGO(AbstractDoubleLoop):
    """The linear system by `linear_steps` steps from the kept v, on one dF/dy, and a block of its own for each Hessian:

        v <- v - rate ((d2G/dy2) v + dF/dy)

    **Raises:** `InputError` for no inner or no linear steps.
    """

    linear_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("linear_steps", self.linear_steps, 1)

    def system(self, hessian, f_y, v, t, key):
        residual = lambda v, i, key: optax.tree.add(hessian(v, key), f_y)
        return descended(residual, v, self.rate(t), self.linear_steps, key)


def amigo(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    inner_steps: int = 10,
    linear_steps: int = 10,
) -> mb.Method:
    """AmIGO (Arbel & Mairal 2022, arXiv:2111.14580, algorithms 1 and 2): a few stochastic steps of y, then of the
    linear system, both from where they last stopped: without a bias, unlike a truncated series.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y and of the linear system.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of y before each step of x.
    - `linear_steps`: of the linear system before each step of x.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], counts below 1, or losses
    that need all examples at once.
    """
    rates = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, AmIGO(*rates, inner_steps, linear_steps), objective, batch)
