"""What a hypergradient says of itself: losses, metrics, and the certificate that it can be trusted."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from .problem import Inner, Metrics, Scalar


class Result(eqx.Enumeration):
    """How a hypergradient ended."""

    success = "nothing speaks against it"
    inner_not_stationary = "the inner solve has not converged, which an implicit hypergradient takes for granted"
    linear_breakdown = "the linear system was not solved"
    negative_curvature = "the inner loss curves downwards: y is no minimum, or the linear solver needs one"
    series_diverged = "the Neumann series diverges: its scale times the largest eigenvalue is not safely below 2"
    nonfinite = "the loss, a metric of the solve or the gradient is not finite"


def _shown(module: eqx.Module) -> str:
    """As equinox prints a module, but with the value of every scalar that is known."""

    def known(a: Any) -> Any:
        if not eqx.is_array(a) or a.ndim or isinstance(a, Tracer):
            return a
        return float(f"{a.item():.4g}") if jnp.issubdtype(a.dtype, jnp.floating) else a.item()

    item = lambda a: isinstance(a, type(Result.success))
    return eqx.tree_pformat(jax.tree.map(known, module, is_leaf=item))


class Certificate(eqx.Module):
    """Evidence beside a hypergradient, one entry a task where there are several.

    - `inner_residual`: Euclidean norm of the inner solver's residual (dG/dy for a descent) at the y reached.
    - `linear_residual`: |b - A v| / |b| of an implicit hypergradient's linear system (0 where b = 0); None where
      there is none. A damped system is measured without its damping. `iterations` of its solver.
    - `distance`: an estimate of |y - y*| / max(|y|, |y0|) for an implicit hypergradient, the residual over the smaller
      of the curvatures along itself and along v. This is what `Implicit.tolerance` is compared with.
    - `error_bound`: on the Euclidean norm of the hypergradient's error, where strong convexity is known.
    - `spread`: over several inner solves from different starts, of the norm of the hypergradient's deviation from its
      mean, the root mean square relative to the mean's norm.
    - `result`: a `Result`.
    """

    inner_residual: Float[Array, "*tasks"]
    result: Result
    linear_residual: Float[Array, "*tasks"] | None = None
    iterations: Array | None = None
    distance: Float[Array, "*tasks"] | None = None
    error_bound: Float[Array, "*tasks"] | None = None
    spread: Float[Array, ""] | None = None

    def __repr__(self) -> str:
        return _shown(self)


class Reached(NamedTuple):
    """What one hypergradient reached beside its gradient: F, its metrics, y, and the certificate."""

    value: Scalar
    metrics: Metrics
    inner: Inner
    certificate: Certificate


class Info(eqx.Module):
    """What one estimate reports, with one entry a task in every array (none for a single hypergradient).

    `finite` marks the tasks that the direction is the mean of; the others are left out and counted in `failed`.
    `inner` is the y reached, given by `hypergradient` alone.
    """

    loss: Float[Array, "*tasks"]
    metrics: Metrics
    certificate: Certificate
    finite: Bool[Array, "*tasks"]
    inner: Inner = None

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def failed(self) -> Array:
        return jnp.sum(~self.finite)

    def mean(self) -> Metrics:
        """Loss and metrics averaged over the finite tasks; NaN when there is none."""
        return jax.tree.map(lambda a: finite_mean(a, self.finite), {"loss": self.loss, **self.metrics})


def finite_mean(values: Array, finite: Array) -> Array:
    """Mean over the leading axis of the entries where `finite`."""
    return masked_sum(values, finite) / jnp.sum(finite)


def masked_sum(values: Array, keep: Array) -> Array:
    """Sum over the leading axis of the entries where `keep`, whatever the others hold."""
    return jnp.sum(jnp.where(keep.reshape(-1, *[1] * (values.ndim - 1)), values, 0), 0)


def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm of all entries; zero for an empty tree."""
    squares = [jnp.sum(jnp.square(a)) for a in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def all_finite(*trees: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every floating leaf is finite."""
    floats = [a for a in jax.tree.leaves(trees) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.array([True, *[jnp.isfinite(a).all() for a in floats]]))
