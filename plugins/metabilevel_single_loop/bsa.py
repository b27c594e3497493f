"""BSA: steps of y, then a random product in place of the inverse Hessian; with one step of y, TTSA."""

from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array

import metabilevel as mb
from metabilevel import errors

from .posing import Objective, decaying, posed, real
from .steps import AbstractDoubleLoop, series_scale


class BSA(AbstractDoubleLoop):
    """The linear system by one product of p random factors, with p uniform on 0 ... terms - 1:

        v = -terms scale (I - scale H_p) ... (I - scale H_1) dF/dy

    Its mean is the series -scale sum_{p < terms} (I - scale H)^p dF/dy. No v is kept.

    **Raises:** `InputError` for no terms, or no inner steps.
    """

    scale: Array = eqx.field(converter=real, default=0.1)
    terms: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        errors.count("terms", self.terms, 1)

    def system(self, hessian, f_y, v, t, key):
        k_p, k_factors = jax.random.split(key)
        p = jax.random.randint(k_p, (), 0, self.terms)
        keys = jax.random.split(k_factors, self.terms)
        factor = lambda i, r: optax.tree.add_scale(r, -self.scale, hessian(r, keys[i]))
        return optax.tree.scale(-self.terms * self.scale, jax.lax.fori_loop(0, p, factor, f_y))


def bsa(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 0.1,
    exponent: float = 0.5,
    outer_exponent: float = 0.5,
    batch: int | None = 64,
    inner_steps: int = 10,
    terms: int = 10,
    scale: float | None = None,
) -> mb.Method:
    """BSA (Ghadimi & Wang 2018, arXiv:1802.02246, algorithms 2 and 3): a few stochastic steps of y, and the inverse
    Hessian by a product of a random number of factors, whose mean is a truncated Neumann series. With one inner step,
    `exponent` 0.4 and `outer_exponent` 0.6 it is TTSA (Hong, Wai, Wang & Yang 2020, arXiv:2007.05170).

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `inner_steps`: of y before each step of x.
    - `terms`: of the series; the factors are fewer.
    - `scale`: of the series, constant, below 2 / the largest eigenvalue of the Hessian; the learning rate if none.

    **Raises:** `InputError` for a rate or scale that is not positive, an exponent outside [0, 1], counts below 1, or
    losses that need all examples at once.
    """
    rates = decaying(learning_rate, exponent, "exponent"), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, BSA(*rates, inner_steps, series_scale(scale, learning_rate), terms), objective, batch)
