"""Checks of the inverses by which implicit adjoints solve their linear systems, on matrices that are known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..linear import AbstractInverse, LinearSystem
from .outcome import Nonconformity, NotApplicable
from .trees import parts
from .trial import Trial

SPECTRA = {
    "quadratic": (0.5, 0.8, 1.2, 1.6),
    "isotropic": (0.7, 0.7, 0.7, 0.7),
    "one-dimension": (0.6,),
    "ill-conditioned": (1.0, 0.1, 0.03, 0.01),
}
SOLVED = 1e-3  # relative residual of Krylov's methods, which must solve a system of four unknowns in as many steps


def inverse_quadratic(trial: Trial) -> None:
    """An inverse lowers v.A v / 2 - b.v, and where it builds on its own progress (conjugate gradients), solves."""
    _look(trial, "quadratic")


def inverse_isotropic(trial: Trial) -> None:
    """Likewise, where A is a multiple of the identity."""
    _look(trial, "isotropic")


def inverse_one_dimension(trial: Trial) -> None:
    """Likewise, of one unknown."""
    _look(trial, "one-dimension")


def inverse_ill_conditioned(trial: Trial) -> None:
    """Likewise, where the condition number of A is 100."""
    _look(trial, "ill-conditioned")


def _look(trial: Trial, name: str) -> None:
    inverses = parts(trial.bench.method.estimator, AbstractInverse)
    if not inverses:
        raise NotApplicable("the estimator has no inverse (of an implicit adjoint)")
    for inverse in inverses:
        for seed in trial.seeds:
            with trial.bench.precision():
                _require_inverse(inverse, name, seed)


def _require_inverse(inverse: Any, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spectrum = np.array(SPECTRA[name])
    n = len(spectrum)
    axes = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a, b, c = axes @ np.diag(spectrum) @ axes.T, rng.normal(size=n), rng.normal(size=n)

    @jax.jit
    def solve(a, b):
        return inverse(LinearSystem(lambda u: a @ u, b, True, jax.random.key(seed)))[:2]

    (v, iterations), (w, _), (both, _) = (solve(jnp.asarray(a), jnp.asarray(right)) for right in (b, c, b + c))
    v, w, both = map(np.asarray, (v, w, both))
    who = f"{type(inverse).__name__} on a {name} system of {n} unknowns (eigenvalues {', '.join(map(str, spectrum))})"
    residual = np.linalg.norm(b - a @ v) / np.linalg.norm(b)
    if not np.isfinite(residual) or residual > 1e3:
        raise Nonconformity(
            f"{who} gives a v of norm {np.linalg.norm(v):.3g}, with the relative residual {residual:.3g}: it diverges. "
            "A Neumann series needs scale times the largest eigenvalue below 2 (Neumann(terms) estimates a scale)."
        )
    if not np.any(v):
        raise Nonconformity(
            f"{who} gives v = 0 for a b of norm {np.linalg.norm(b):.3g} (seed {seed}): a solver that has converged "
            "must give what it has found; where A is a multiple of the identity, that is after one step."
        )
    energy = v @ a @ v / 2 - b @ v
    if energy > -1e-9:
        raise Nonconformity(
            f"{who} gives a v that is no better than 0: v.A v / 2 - b.v is {energy:.3g}, and "
            f"{-b @ np.linalg.solve(a, b) / 2:.3g} at the solution (residual {residual:.3g}, "
            f"seed {seed}). Look at its sign, its scale, and for conjugate gradients at the residual in the direction "
            "update: the new one is wanted."
        )
    linear = np.linalg.norm(v + w - both) <= 1e-6 * np.linalg.norm(both)  # a fixed approximation of A^-1
    if not linear and int(iterations) >= n and residual > SOLVED:
        raise Nonconformity(
            f"{who} has the relative residual {residual:.3g} after {int(iterations)} iterations (seed {seed}), where "
            f"conjugate gradients need {n}. Look at the residual in the direction update: the new one is wanted, not "
            "the old one."
        )


CHECKS = (inverse_quadratic, inverse_isotropic, inverse_one_dimension, inverse_ill_conditioned)
