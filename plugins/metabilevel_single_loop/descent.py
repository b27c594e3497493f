"""What the methods of first derivatives share: inner steps, the gradient of a value gap, a finite difference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb


def descended(gradient: Callable[[Any, Any, Any], Any], y: Any, rate: Any, steps: int, key: Any) -> Any:
    """y after `steps` of   y <- y - rate gradient(y, i, key_i),   i = 0, 1, ..."""
    step = lambda i, y: optax.tree.add_scale(y, -rate, gradient(y, i, jax.random.fold_in(key, i)))
    return jax.lax.fori_loop(0, steps, step, y)


def gap(oracles: mb.Oracles, x: Any, y: Any, z: Any, at_y: mb.Sample, at_z: mb.Sample) -> tuple[Any, Any]:
    """The derivatives in x and in y of   q = G(x, y) - G(x, z)   for a constant z, which stands for argmin G(x, .)."""
    (_, (above, g_y)), (_, (below, _)) = oracles.inner_gradients(x, y, at_y), oracles.inner_gradients(x, z, at_z)
    return optax.tree.sub(above, below), g_y


def difference(oracles: mb.Oracles, x: Any, y: Any, v: Any, at: mb.Sample, radius: float = 0.01) -> Any:
    """(d2G/dx dy) v by two values of dG/dx, with epsilon = radius / |v|:

        (dG/dx(x, y + epsilon v) - dG/dx(x, y - epsilon v)) / (2 epsilon)

    whose error is of the second order in the radius, and zero for a quadratic G; zero for v = 0.
    """
    length = optax.tree.norm(v)
    unit = optax.tree.scale(1 / jnp.where(length > 0, length, 1), v)
    at_distance = lambda far: oracles.inner_gradients(x, optax.tree.add_scale(y, far, unit), at)[1][0]
    return optax.tree.scale(length / (2 * radius), optax.tree.sub(at_distance(radius), at_distance(-radius)))
