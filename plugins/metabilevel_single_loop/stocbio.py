"""stocBiO: steps of y, then a truncated Neumann series."""

from typing import Any

import equinox as eqx
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .posing import Objective, decaying, posed, real
from .steps import AbstractDoubleLoop, neumann, series_scale


class StocBiO(AbstractDoubleLoop):
    """The linear system by the series, a sum of terms + 1 products of random factors:

        v = -scale sum_{i=0}^{terms} (I - scale H_i) ... (I - scale H_1) dF/dy

    Its mean is -H^-1 (I - (I - scale H)^(terms + 1)) dF/dy. No v is kept.

    **Raises:** `InputError` for no terms, or no inner steps.
    """

    scale: Array = eqx.field(converter=real, default=0.1)
    terms: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("terms", self.terms, 1)

    def system(self, hessian, f_y, v, t, key):
        return neumann(hessian, f_y, self.scale, self.terms, key)


def stocbio(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    inner_steps: int = 10,
    terms: int = 10,
    scale: float | None = None,
) -> mb.Method:
    """stocBiO (Ji, Yang & Liang 2021, arXiv:2010.07962, algorithms 1 and 2): a few stochastic steps of y, and the
    inverse Hessian by a truncated Neumann series. A longer series leaves a smaller bias.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of y before each step of x.
    - `terms`: Hessian products of the series.
    - `scale`: of the series, constant, below 2 / the largest eigenvalue of the Hessian; the learning rate if none.

    **Raises:** `InputError` for a rate or scale that is not positive, an exponent outside [0, 1], counts below 1, or
    losses that need all examples at once.
    """
    rates = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, StocBiO(*rates, inner_steps, series_scale(scale, learning_rate), terms), objective, batch)
