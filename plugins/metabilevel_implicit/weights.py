"""Weights of examples: a set that they are projected onto, and how well small ones find what is wrong."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def capped(x: Float[Array, " n"], radius: float) -> Float[Array, " n"]:
    """The point of {0 <= w <= 1, sum w <= radius} that is nearest to x: clip(x - tau, 0, 1), where tau is 0, or makes
    the sum be `radius`; differentiable in x wherever the projection is.

    The sum falls with tau along straight pieces: bisection finds the piece, one Newton step the point on it, whose
    derivative is that of tau.
    """
    total = lambda tau: jnp.clip(x - tau, 0, 1).sum()
    halve = lambda i, ends: jnp.where(
        total(ends.mean()) > radius, ends.at[0].set(ends.mean()), ends.at[1].set(ends.mean())
    )
    ends = jnp.stack([jnp.zeros(()), jnp.maximum(x.max(), 0)])
    tau = jax.lax.stop_gradient(jax.lax.fori_loop(0, 60, halve, jax.lax.stop_gradient(ends)).mean())
    free = jnp.sum((x > tau) & (x < tau + 1))
    newton = tau + (total(tau) - radius) / jnp.maximum(free, 1)
    return jnp.clip(x - jnp.where(total(0.0) > radius, newton, 0), 0, 1)


def detection(found: Bool[Array, " n"], wrong: Bool[Array, " n"]) -> dict[str, Array]:
    """Precision, recall and F1 of `found`; 0 for 0 / 0."""
    both = jnp.sum(found & wrong, dtype=float)
    ratio = lambda a, b: a / jnp.maximum(b, 1)
    return {
        "precision": ratio(both, found.sum()),
        "recall": ratio(both, wrong.sum()),
        "f1": ratio(2 * both, found.sum() + wrong.sum()),
    }
