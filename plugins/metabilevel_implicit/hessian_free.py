"""A Hessian-free inner solver: truncated Newton directions with a line search."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metabilevel import AbstractIterativeSolver, ConjugateGradient, LinearSystem

LEAST = 2.0**-20  # the shortest step of a line search


class HessianFree(AbstractIterativeSolver):
    """`steps` steps y <- y - t d, with d from `iterations` conjugate gradients on H d = g, for the gradient g and the
    Hessian H of the inner loss at y (Martens 2010), and t the first of 1, 1/2, 1/4, ... that is not too long.

    A step is too long if the loss falls by less than a ten-thousandth of t g.d, as far as slopes at either end tell:
    where -d.g(y - t d) > (1 - 2e-4) g.d (the approximate Wolfe condition of Hager & Zhang 2005, section 3), which,
    other than a difference of losses, does not drown in rounding errors near the minimum. Where H curves downwards so
    soon that d does not descend, d is g.

    It is to be differentiated implicitly: reverse mode does not go through its loops.
    """

    iterations: int = eqx.field(static=True, default=5)

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x, y):
        return None

    def step(self, x, gradient_fn, y, state):
        at, unravel = ravel_pytree(y)
        slope = lambda a: ravel_pytree(gradient_fn(unravel(a)))[0]
        g, product = jax.linearize(slope, at)
        none = jax.random.key(0)  # conjugate gradients draw nothing
        d, _, _ = ConjugateGradient(self.iterations)(LinearSystem(product, g, True, none))
        d = jnp.where(d @ g > 0, d, g)
        # by "not" of the wanted, so that a slope that is not a number is too long a step as well
        too_long = lambda t: ~(-d @ slope(at - t * d) <= (1 - 2e-4) * (d @ g)) & (t > LEAST)
        t = jax.lax.while_loop(too_long, lambda t: t / 2, jnp.ones((), at.dtype))
        return unravel(at - t * d), state

    def residual(self, problem, x, y, task, key):
        return jax.grad(problem.inner_loss, 1)(x, y, task, key)
