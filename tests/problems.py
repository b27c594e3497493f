"""Bilevel problems with known answers."""

import jax
import jax.numpy as jnp
import numpy as np

from metabilevel import BilevelProblem


def quadratic(n: int = 4, seed: int = 0) -> tuple[BilevelProblem, np.ndarray, np.ndarray]:
    """G = y^T A y / 2 - y^T x and F = |y - t|^2 / 2: y* = A^-1 x and dF/dx = A^-1 (A^-1 x - t)."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = basis @ np.diag(np.linspace(0.5, 1.5, n)) @ basis.T
    target = rng.normal(size=n)
    problem = BilevelProblem(
        init=lambda x, task, key: jnp.zeros(n),
        inner_loss=lambda x, y, task, key: y @ jnp.asarray(a) @ y / 2 - y @ x,
        outer_loss=lambda x, y, task, key: (jnp.sum((y - target) ** 2) / 2, {"size": jnp.sum(y**2)}),
    )
    return problem, a, target


def directional(fn, x, direction, h: float = 1e-5):
    """Central difference of the scalar `fn` at the pytree `x` along `direction`."""
    at = lambda s: fn(jax.tree.map(lambda a, b: a + s * b, x, direction))
    return (at(h) - at(-h)) / (2 * h)


def dot(a, b):
    return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def like(tree, key):
    """A random pytree shaped like `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    )


def assert_close(a, b, tolerance: float):
    """Equality of pytrees relative to the largest entry of each leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(v).max(initial=0.0))))
