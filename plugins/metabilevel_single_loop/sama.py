"""SAMA: the hypergradient of one step of an adaptive inner optimizer, by finite differences."""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import metabilevel as mb

from .descent import difference
from .posing import Objective, Schedule, decaying, posed, scheduled

B1, B2, EPS = 0.9, 0.999, 1e-8  # of Adam
OPTIMIZERS = {"adam": optax.scale_by_adam(B1, B2, EPS), "sgd": optax.identity()}


class Memory(NamedTuple):
    """y, and the state of its optimizer."""

    y: Any
    state: Any


class SAMA(mb.AbstractSingleLoop):
    """After a step   y <- y - rate u(dG/dy)   of the inner optimizer, with one block of inner and one of outer
    examples, by the identity for the inverse of the derivative of y - (y - rate u) in y,

        direction = dF/dx - (d2G/dx dy) v,    v = rate (du/dg) dF/dy    at the new (x, y),

    with the product as `difference` gives it, and du/dg that of the step which was taken.

    **Arguments:** `rate(t)` of y; `outer(t)` is the factor of the direction; `optimizer` is one of `OPTIMIZERS`, of
    which gradient descent has du/dg = 1.
    """

    rate: Schedule = eqx.field(converter=scheduled)
    outer: Schedule = eqx.field(converter=scheduled, default=1.0)
    optimizer: optax.GradientTransformation = OPTIMIZERS["adam"]

    def begin(self, oracles, x, y, key):
        return Memory(y, self.optimizer.init(y))

    def step(self, oracles, x, memory, t, key):
        inner, outer = oracles.samples(key)
        rate = self.rate(t)
        gradient = oracles.inner_gradient(x, memory.y, inner)
        update, state = self.optimizer.update(gradient, memory.state, memory.y)
        y = optax.tree.add_scale(memory.y, -rate, update)
        seen, (f_x, f_y) = oracles.outer_gradients(x, y, outer)
        if isinstance(memory.state, optax.ScaleByAdamState):
            f_y = optax.tree.mul(slope(gradient, memory.state), f_y)
        mixed = difference(oracles, x, y, optax.tree.scale(rate, f_y), inner)
        return mb.Stride(optax.tree.scale(self.outer(t), optax.tree.sub(f_x, mixed)), seen, Memory(y, state))


def slope(gradient: Any, state: Any) -> Any:
    """du/dg of Adam's step u = (m' / c1) / sqrt(v' / c2), entry by entry, from the moments m and v before it:

        (sqrt(c2) / c1) ((1 - b1) b2 v - b1 (1 - b2) g m) / sqrt(v')^3,    v' = b2 v + (1 - b2) g^2,   c_i = 1 - b_i^n

    which is zero where all gradients were zero so far, by the epsilon that is added to the root.
    """
    n = state.count + 1
    factor = jnp.sqrt(1 - B2**n) / (1 - B1**n)

    def entries(g: Any, m: Any, v: Any) -> Any:
        root = jnp.sqrt(B2 * v + (1 - B2) * g**2) + EPS
        return factor * ((1 - B1) * B2 * v - B1 * (1 - B2) * g * m) / root**3

    return jax.tree.map(entries, gradient, state.mu, state.nu)


def sama(
    subject: Any,
    *,
    objective: Objective = "decay",
    learning_rate: float = 1e-3,
    exponent: float = 0.0,
    outer_exponent: float = 0.0,
    batch: int | None = 64,
    optimizer: Literal["adam", "sgd"] = "adam",
) -> mb.Method:
    """SAMA (Choe et al. 2023, arXiv:2310.05674): three gradients for a hypergradient, which takes the step of the inner
    optimizer, adaptive or not, for the whole inner solve.

    **Arguments:**

    - `objective`: what is solved where the tasks are supervised; `decay` tunes a weight decay for each array of the
      net, `proximal` the start of the net, to which every task is pulled.
    - `learning_rate`: of y.
    - `exponent`: that rate falls as (t + 1)^-exponent; from 0 to 1.
    - `outer_exponent`: the same of the step of x.
    - `batch`: examples of an oracle; all of them if none.
    - `optimizer`: of y.

    **Raises:** `InputError` for a rate that is not positive, an exponent outside [0, 1], or losses that need all
    examples at once.
    """
    rates = decaying(learning_rate, exponent), decaying(1.0, outer_exponent, "outer_exponent")
    return posed(subject, SAMA(*rates, OPTIMIZERS[optimizer]), objective, batch)
