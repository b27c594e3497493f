"""Estimators for long inner runs, a window of steps at a time: truncated backpropagation and evolution strategies.

    L(x) = sum over t = 1 ... T of   w_t F(x, y_t)

over the path of an iterative solver of T steps, the horizon. A batch has one run for each of its tasks. Every call
walks each run one window further; a run that is at its end, or whose loss or direction was not finite, begins anew
with the task that is then given. So a direction belongs to the part of L that lies in the window. The metrics are
those after its last step.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .adjoints import Unroll, certify, optimizer_remedy
from .batching import leading, task_gradient
from .errors import InputError, count, number
from .estimators import AbstractEstimator
from .info import Info, all_finite, norm
from .problem import BilevelProblem, Inner, Key, Metrics, Outer, Scalar, Task
from .solvers import AbstractInnerSolver, AbstractIterativeSolver, inner_gradient

Weights = Array | Callable[[Array], Array] | None


class Run(NamedTuple):
    """A run that goes on: `done` steps were taken of the solve that `task` and `key` began, up to `point`."""

    task: Task
    key: Key
    point: tuple[Inner, PyTree]
    done: Array


class Truncated(AbstractEstimator):
    """Truncated backpropagation through time: the derivative of a window's losses, by `adjoint`, with y and the
    solver's state at its beginning taken for constants (Andrychowicz et al. 2016, arXiv:1606.04474, section 2.1).

    With `window` = the solver's steps it is the gradient of L(x) itself, the start y_0(x) included.

    **Arguments:**

    - `solver`: its steps are the horizon T.
    - `window`: steps of a call, a divisor of T.
    - `weights`: w_1 ... w_T as an array [T] or a function of the array of t; all ones if None.
    - `clip`: to this Euclidean norm the gradient of each run is scaled down where it is longer; the metric `clipped` is
      how many of them were.

    **Raises:** `InputError` for a window that does not divide the horizon, weights of another shape, and any other
    adjoint than `Unroll`.
    """

    problem: BilevelProblem
    solver: AbstractIterativeSolver
    adjoint: Unroll = Unroll(first_order=True, checkpoint="step")
    window: int = eqx.field(static=True, default=20)
    weights: Weights = None
    clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check(self)
        if not isinstance(self.adjoint, Unroll):
            raise InputError(f"adjoint = {self.adjoint}: a window is differentiated step by step, by Unroll.")

    def remedy(self, x, task, key):
        return optimizer_remedy(self.problem, self.solver, self.adjoint, x, task, key)

    def init(self, x, tasks, key):
        return _before(self, x, tasks, key)

    def __call__(self, x, tasks, carry, key):
        def loss(x, task, key, run):
            return _walk(self, self.adjoint, x, run)

        def gradient(x, task, key, run):
            (value, (metrics, certificate, run)), found = jax.value_and_grad(loss, has_aux=True)(x, task, key, run)
            found, said = _clipped(found, self.clip)
            return (value, ({**metrics, **said}, certificate, run)), found

        return _estimate(self, gradient, x, carry, tasks, key, loss if self.clip is None else None)


class EvolutionStrategies(AbstractEstimator):
    """Antithetic evolution strategies, without a derivative of the inner run:

        direction = mean over runs of   e (L(x + e) - L(x - e)) / (2 s^2),    e ~ N(0, s^2 I)

    where L are the losses of a window, both sides of which begin where the run of x itself stands. It is the gradient
    of L smoothed by the normal law, which is differentiable where L is chaotic; with windows shorter than the horizon
    it has the bias of truncation. The loss and the metrics are those of x.

    **Arguments:** as of `Truncated`; `deviation` is s.
    """

    problem: BilevelProblem
    solver: AbstractIterativeSolver
    deviation: float = eqx.field(static=True, default=0.01)
    window: int = eqx.field(static=True, default=20)
    weights: Weights = None
    clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check(self)
        number("deviation", self.deviation, 0, above=True)

    def init(self, x, tasks, key):
        return _before(self, x, tasks, key)

    def __call__(self, x, tasks, carry, key):
        def gradient(x, task, key, run):
            e = _noise(self.deviation, x, key)
            sides = jax.tree.map(lambda a, b: jnp.stack([a + b, a - b, a]), x, e)
            losses, (metrics, certificates, runs) = jax.vmap(lambda x: _walk(self, _PLAIN, x, run))(sides)
            value, *aux = jax.tree.map(lambda a: a[2], (losses, metrics, certificates, runs))
            found, said = _clipped(_difference(e, losses, self.deviation), self.clip)
            return (value, ({**aux[0], **said}, *aux[1:])), found

        return _estimate(self, gradient, x, carry, tasks, key)


class PersistentES(AbstractEstimator):
    """Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, arXiv:2112.13835): evolution strategies over
    windows without the bias of truncation.

    Every run has two sides, x + e and x - e with a new e in every window, that keep states of their own, and the sum
    xi of all its e since it began:

        direction = mean over runs of   xi (L(x + e) - L(x - e)) / (2 s^2)

    The loss and the metrics are the means of both sides.

    **Arguments:** as of `EvolutionStrategies`.
    """

    problem: BilevelProblem
    solver: AbstractIterativeSolver
    deviation: float = eqx.field(static=True, default=0.01)
    window: int = eqx.field(static=True, default=20)
    weights: Weights = None
    clip: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _check(self)
        number("deviation", self.deviation, 0, above=True)

    def init(self, x, tasks, key):
        run = _before(self, x, tasks, key)
        twice = jax.tree.map(lambda a: jnp.stack([a, a], 1), run.point)
        xi = jax.tree.map(lambda a: jnp.zeros((leading(tasks), *a.shape), a.dtype), x)
        return run._replace(point=(twice, xi))

    def __call__(self, x, tasks, carry, key):
        def gradient(x, task, key, run):
            points, xi = run.point
            e = _noise(self.deviation, x, key)
            xi = jax.tree.map(lambda a, b: jnp.where(run.done == 0, b, a + b), xi, e)
            sides = jax.tree.map(lambda a, b: jnp.stack([a + b, a - b]), x, e)
            side = lambda x, point: _walk(self, _PLAIN, x, run._replace(point=point))
            losses, (metrics, certificates, runs) = jax.vmap(side)(sides, points)
            after = run._replace(point=(runs.point, xi), done=runs.done[0])
            found, said = _clipped(_difference(xi, losses, self.deviation), self.clip)
            metrics = jax.tree.map(lambda a: a.mean(0), metrics)
            certificate = jax.tree.map(lambda a: a[0], certificates)
            return (losses.mean(), ({**metrics, **said}, certificate, after)), found

        return _estimate(self, gradient, x, carry, tasks, key)


class _Walk(AbstractInnerSolver):
    """A window of a run as an inner solve of its own: (point, done) -> (point, what `read` saw after each step)."""

    solver: AbstractIterativeSolver
    window: int
    read: Callable[[Outer, Inner, Array], Any]

    @property
    def symmetric(self) -> bool:
        return False

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        point, done = y0
        read = lambda y, i: self.read(x, y, i)
        return self.solver.path(
            problem, x, point, task, key, start=done, length=self.window, read=read, grad=grad, scan=scan
        )

    def residual(self, problem, x, y, task, key):
        return self.solver.residual(problem, x, y[0][0], task, key)


_PLAIN = Unroll()
_Windowed = Truncated | EvolutionStrategies | PersistentES


def _check(self: _Windowed) -> None:
    horizon = self.solver.steps
    count("steps", horizon, 1)
    count("window", self.window, 1)
    if horizon % self.window:
        small = [d for d in range(1, math.isqrt(horizon) + 1) if horizon % d == 0]
        divisors = ", ".join(map(str, sorted({*small, *(horizon // d for d in small)})))
        raise InputError(
            f"window = {self.window}: it does not divide the horizon, the {horizon} steps of the solver. "
            f"One of {divisors} is wanted."
        )
    if self.clip is not None:
        number("clip", self.clip, 0, above=True)
    shape = jax.eval_shape(lambda: _weights(self)).shape
    if shape != (horizon,):
        raise InputError(f"weights of shape {shape}: one for each of the {horizon} steps of the solver is wanted.")


def _weights(self: _Windowed) -> Array:
    t = 1 + jnp.arange(self.solver.steps)
    if self.weights is None:
        return jnp.ones(t.shape)
    return jnp.asarray(self.weights(t) if callable(self.weights) else self.weights, float)


def _before(self: _Windowed, x: Outer, tasks: Task, key: Key) -> Run:
    """Runs that are at their end, so that the first call begins them all."""
    n = leading(tasks)
    keys = jax.random.split(key, n)

    def first(task: Task, key: Key) -> Any:
        z, y0, _ = self.problem.begin(x, task, key)
        return y0, self.solver.init(z, y0)

    shapes = jax.eval_shape(jax.vmap(first), tasks, keys)
    point = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return Run(tasks, keys, point, jnp.full(n, self.solver.steps, jnp.int32))


def _walk(self: _Windowed, adjoint: Unroll, x: Outer, run: Run) -> tuple[Scalar, tuple[Metrics, Any, Run]]:
    """The losses of the next window, weighted and summed; and the metrics, certificate and run at its end."""
    z, y0, k_solve = self.problem.begin(x, run.task, run.key)
    k_inner, k_outer = jax.random.split(k_solve)
    begins = run.done == 0
    point = jax.tree.map(lambda a, b: jnp.where(begins, a, b), (y0, self.solver.init(z, y0)), run.point)
    read = lambda z, y, i: self.problem.objective(z, y, run.task, jax.random.fold_in(k_outer, i))
    walk = _Walk(self.solver, self.window, read)
    with jax.named_scope("inner_solve"):
        end, (losses, metrics) = adjoint(self.problem, walk, z, (point, run.done), run.task, k_inner)
    value = losses @ jax.lax.dynamic_slice_in_dim(_weights(self).astype(losses.dtype), run.done, self.window)
    at = jax.lax.stop_gradient((z, end))
    with jax.named_scope("certificate"):
        residual = norm(self.solver.residual(self.problem, at[0], at[1][0], run.task, k_inner))
    last = jax.tree.map(lambda a: jax.lax.stop_gradient(a[-1]), metrics)
    run = run._replace(point=at[1], done=run.done + self.window)
    return value, (last, certify(residual, all_finite(value)), run)


def _estimate(
    self: _Windowed,
    gradient: Callable[..., Any],
    x: Outer,
    runs: Run,
    tasks: Task,
    key: Key,
    loss: Callable[..., Any] | None = None,
) -> tuple[Outer, Run, Info]:
    """One window of every run, after those that are at their end have begun anew; `loss` as of `task_gradient`."""
    k_begin, k_window = jax.random.split(key)
    over = runs.done >= self.solver.steps
    either = lambda new, old: jnp.where(over.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    fresh = (tasks, jax.random.split(k_begin, leading(tasks)))
    task, keys = jax.tree.map(either, fresh, (runs.task, runs.key))
    runs = Run(task, keys, runs.point, jnp.where(over, 0, runs.done))
    direction, losses, (metrics, certificates, runs), finite = task_gradient(
        gradient, x, tasks, k_window, runs, chunk=self.task_chunk, loss=loss
    )
    usable = finite & jax.vmap(all_finite)(runs.point)
    runs = runs._replace(done=jnp.where(usable, runs.done, self.solver.steps))
    return direction, runs, Info(losses, metrics, certificates, finite)


def _noise(deviation: float, x: Outer, key: Key) -> Outer:
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [deviation * jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    )


def _difference(e: Outer, losses: Array, deviation: float) -> Outer:
    """e (L+ - L-) / (2 s^2)."""
    return jax.tree.map(lambda a: a * ((losses[0] - losses[1]) / (2 * deviation**2)).astype(a.dtype), e)


def _clipped(gradient: Outer, clip: float | None) -> tuple[Outer, Metrics]:
    """`gradient`, no longer than `clip`, and whether it was; NaN where its length is not finite, so that it fails."""
    if clip is None:
        return gradient, {}
    length = norm(gradient)
    scale = jnp.where(jnp.isfinite(length), jnp.minimum(1, clip / length), jnp.nan)
    return jax.tree.map(lambda a: a * scale.astype(a.dtype), gradient), {"clipped": (length > clip).astype(float)}
