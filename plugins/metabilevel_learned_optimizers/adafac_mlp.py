"""The per-coordinate net of Metz et al. 2022 (arXiv:2203.11860), which sees Adafactor's factored second moments."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from .mlp_optimizer import AbstractMLP, averaged, moments
from .training import method_of


class AdafacMLP(AbstractMLP):
    """As the MLP optimizer, y <- y - scale d exp(.001 a), with 18 more features: those of an average of g^2 that is
    kept as a row and a column (Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4).

    r and c, averages of g^2 over the largest and the second largest dimension of an array, each with three decays,
    estimate it by v = r c / mean(r). The features are r, c, 1 / sqrt(r), 1 / sqrt(c), g / sqrt(v) and m / sqrt(v). An
    array of less than two dimensions has no factors: there r = c = v. Two layers of 4 units have 197 weights.

    **Arguments:**

    - `layers`: hidden layers of the net.
    - `units`: units of a layer.
    - `scale`: the factor of the net's output.
    """

    layers: int = eqx.field(static=True, default=2)
    units: int = eqx.field(static=True, default=4)
    scale: float = eqx.field(static=True, default=0.001)
    decays: ClassVar = {"momentum": (0.9, 0.99, 0.999), "square": (0.999,), "factored": (0.9, 0.99, 0.999)}
    features: ClassVar = 28

    def averages(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        without = lambda axes: (3, *[1 if i in axes else n for i, n in enumerate(shape)])
        second, largest = _factored(shape)
        return {
            "momentum": (3, *shape), "square": (1, *shape), "row": without(largest), "column": without(second)
        }  # fmt: skip

    def observe(self, rates: Any, g: Any, y: Any, kept: Any) -> tuple[list[Any], Any]:
        features, new = moments(rates, g, y, kept)
        second, largest = _factored(g.shape)
        mean = lambda axes: jnp.mean(g**2, axes, keepdims=True)
        row = averaged(rates["factored"], kept["row"], mean(largest))
        column = averaged(rates["factored"], kept["column"], mean(second))
        total = jnp.mean(row, tuple(1 + i for i in second), keepdims=True)
        inverse = jax.lax.rsqrt((row + 1e-9) / (total + 1e-9) * (column + 1e-9))
        roots = [jax.lax.rsqrt(row + 1e-8), jax.lax.rsqrt(column + 1e-8)]
        features += [row, column, *roots, g * inverse, new["momentum"] * inverse]
        return features, {**new, "row": row, "column": column}


def _factored(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the second largest and of the largest dimension; none where there are less than two."""
    if len(shape) < 2:
        return (), ()
    second, largest = sorted(range(len(shape)), key=lambda i: shape[i])[-2:]
    return (second,), (largest,)


adafac_mlp = method_of(AdafacMLP)
