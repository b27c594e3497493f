"""Inner solvers: y0 -> y. A solver sees `x`, so its own coefficients may be outer variables."""

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .errors import count
from .info import norm
from .problem import BilevelProblem, Inner, Key, Outer, Task

GradientFn: TypeAlias = Callable[[Inner], Inner]
GradTransform: TypeAlias = Callable[[BilevelProblem, Outer, Inner, Task, Key], Inner]
Scan: TypeAlias = Callable[..., tuple[Any, Any]]

FEW_STEPS, SMALL = 5, 2**13  # that are written out, and the entries of what one hands on


def inner_gradient(problem: BilevelProblem, x: Outer, y: Inner, task: Task, key: Key) -> Inner:
    """dG/dy at (x, y): what a descent follows, and the residual of a stationary point."""
    return jax.grad(problem.inner_loss, 1)(x, y, task, key)


def looped(body: Callable, init: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan`; few steps of a small inner variable are written out, which a loop would take a fifth longer for:
    it stores and loads what it could compute on the way."""
    few = len(jax.tree.leaves(xs)[0]) <= FEW_STEPS
    small = sum(jnp.size(a) for a in jax.tree.leaves(init)) <= SMALL
    return jax.lax.scan(body, init, xs, unroll=few and small)


class AbstractInnerSolver(eqx.Module):
    """Gives y for one task, differentiably in `x` and `y0`."""

    @property
    @abc.abstractmethod
    def symmetric(self) -> bool:
        """Whether the derivative of `residual` in y is known to be symmetric, as a Hessian is."""

    @abc.abstractmethod
    def solve(
        self,
        problem: BilevelProblem,
        x: Outer,
        y0: Inner,
        task: Task,
        key: Key,
        grad: GradTransform = inner_gradient,
        scan: Scan = jax.lax.scan,
    ) -> Inner:
        """y for one task.

        `grad` and `scan` are how an adjoint reaches into the solve without knowing it: stand-ins for `inner_gradient`
        (that cut second-order terms, or order them differently) and for `jax.lax.scan` (that store less).
        """

    @abc.abstractmethod
    def residual(self, problem: BilevelProblem, x: Outer, y: Inner, task: Task, key: Key) -> PyTree:
        """Zero, and shaped like `y`, at the y that `solve` aims at."""


class AbstractIterativeSolver(AbstractInnerSolver):
    """`steps` applications of `step`. Step i draws from `fold_in(key, i)`, whatever the number of steps: a short
    solve is the beginning of a long one.

    A subclass gives `init(x, y) -> state`, `step(x, gradient_fn, y, state) -> (y, state)` and `residual`.

    **Arguments:**

    - `minibatch(task, key, i) -> task` is what step i sees of the task, the whole of it if None; `key` is one for all
      the steps of a solve, so that they can be cut out of one shuffle.
    - `tolerance`: no further step is taken once |dG/dy| <= tolerance; None takes them all.

    **Raises:** `InputError` for a negative number of steps; zero give y = y0.
    """

    steps: int = eqx.field(static=True, kw_only=True)
    minibatch: Callable[[Task, Key, Any], Task] | None = eqx.field(default=None, kw_only=True)
    tolerance: float | jax.Array | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        count("steps", self.steps, 0)

    @abc.abstractmethod
    def init(self, x: Outer, y: Inner) -> PyTree:
        """The solver's own state (momenta, say) at the start."""

    @abc.abstractmethod
    def step(self, x: Outer, gradient_fn: GradientFn, y: Inner, state: PyTree) -> tuple[Inner, PyTree]:
        """One step; `gradient_fn(y)` is dG/dy at fixed x and task, on this step's minibatch."""

    def path(
        self,
        problem: BilevelProblem,
        x: Outer,
        point: tuple[Inner, PyTree],
        task: Task,
        key: Key,
        *,
        start: Any = 0,
        length: int | None = None,
        read: Callable[[Inner, Any], Any] | None = None,
        grad: GradTransform = inner_gradient,
        scan: Scan = jax.lax.scan,
    ) -> tuple[tuple[Inner, PyTree], Any]:
        """Walks `length` steps (`self.steps` where None) from `point = (y, state)`, of which `start` have been taken.

        **Returns:** the last point, and `read(y, i)` after each step, the i-th of all, stacked (None without `read`).
        """

        def body(carry: Any, i: Any) -> tuple[Any, Any]:
            point, done = carry
            k = jax.random.fold_in(key, i)
            seen = self.minibatch(task, key, i) if self.minibatch else task
            gradient_fn = lambda y: grad(problem, x, y, seen, k)
            if done is None:
                point = self.step(x, gradient_fn, *point)
            else:
                advance = lambda: self._unless_stationary(x, gradient_fn, *point)
                point, done = jax.lax.cond(done, lambda: (point, done), advance)
            return (point, done), None if read is None else read(point[0], i + 1)

        carry = (point, None if self.tolerance is None else jnp.array(False))
        length = self.steps if length is None else length
        if length == 1:  # one step needs no loop
            (point, _), read_ = body(carry, start)
            return point, jax.tree.map(lambda a: a[None], read_)
        (point, _), read_ = scan(body, carry, start + jnp.arange(length))
        return point, read_

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        (y, _), _ = self.path(problem, x, (y0, self.init(x, y0)), task, key, grad=grad, scan=scan)
        return y

    def _unless_stationary(
        self, x: Outer, gradient_fn: GradientFn, y: Inner, state: PyTree
    ) -> tuple[tuple[Inner, PyTree], jax.Array]:
        """`step`, unless y is stationary already; and whether it is."""
        gradient = gradient_fn(y)
        known = lambda at: gradient if at is y else gradient_fn(at)
        enough = norm(jax.lax.stop_gradient(gradient)) <= jnp.asarray(self.tolerance)
        return jax.lax.cond(enough, lambda: (y, state), lambda: self.step(x, known, y, state)), enough


class GradientDescent(AbstractIterativeSolver):
    """`steps` updates of y by an optax transformation; `GradientDescent(optax.sgd(0.4), steps=5)` is MAML's inner loop.

    A negative step size is allowed.
    """

    transformation: optax.GradientTransformation

    @property
    def symmetric(self) -> bool:
        return True

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        steps: int,
        minibatch: Callable[[Task, Key, Any], Task] | None = None,
        tolerance: float | jax.Array | None = None,
    ):
        self.transformation = transformation
        self.steps = steps
        self.minibatch = minibatch
        self.tolerance = tolerance

    def init(self, x, y):
        return self.transformation.init(y)

    def step(self, x, gradient_fn, y, state):
        updates, state = self.transformation.update(gradient_fn(y), state, y)
        return optax.apply_updates(y, updates), state

    def residual(self, problem, x, y, task, key):
        return inner_gradient(problem, x, y, task, key)


class Descent(AbstractIterativeSolver):
    """y_{i+1} = y_i - rate(x, i) g_i, with a rate that is, or depends on, an outer variable (Meta-SGD, LSLR).

    **Arguments:** `rate(x, i)` is a scalar, or a pytree that `y` begins with: one rate for a leaf, or for every entry.
    """

    rate: Callable[[Outer, Any], PyTree]

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x, y):
        return jnp.zeros((), jnp.int32)

    def step(self, x, gradient_fn, y, state):
        move = lambda rate, y, g: jax.tree.map(lambda a, b: a - rate * b, y, g)
        return jax.tree.map(move, self.rate(x, state), y, gradient_fn(y)), state + 1

    def residual(self, problem, x, y, task, key):
        return inner_gradient(problem, x, y, task, key)


class ProjectedGradient(AbstractIterativeSolver):
    """y_{i+1} = project(y_i - learning_rate dG/dy): the inner loss over a closed convex set.

    `residual` is y - project(y - learning_rate dG/dy), which vanishes at the constrained minimum alone; its derivative
    is not symmetric. `project(y) -> y` is the Euclidean projection onto the set, `jaxopt.projection` has many.
    """

    project: Callable[[Inner], Inner]
    learning_rate: float | jax.Array = eqx.field(kw_only=True)

    @property
    def symmetric(self) -> bool:
        return False

    def init(self, x, y):
        return None

    def step(self, x, gradient_fn, y, state):
        return self.project(jax.tree.map(lambda a, g: a - self.learning_rate * g, y, gradient_fn(y))), state

    def residual(self, problem, x, y, task, key):
        moved, _ = self.step(x, lambda y: inner_gradient(problem, x, y, task, key), y, None)
        return jax.tree.map(jnp.subtract, y, moved)


class Trajectory(AbstractInnerSolver):
    """The whole path of an iterative solver as the inner variable: y_0, y_1, ..., stacked along a first axis.

    For outer losses of more than the last point (the multi-step loss of MAML++, differences of two steps). The
    problem's inner loss and y0 are those of one point.
    """

    solver: AbstractIterativeSolver

    @property
    def symmetric(self) -> bool:
        return False

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        start = (y0, self.solver.init(x, y0))
        _, path = self.solver.path(problem, x, start, task, key, read=lambda y, i: y, grad=grad, scan=scan)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), y0, path)

    def residual(self, problem, x, y, task, key):
        return self.solver.residual(problem, x, jax.tree.map(lambda a: a[-1], y), task, key)


class ClosedForm(AbstractInnerSolver):
    """y by a formula, `formula(x, task) -> y`, whose derivative is the formula's own.

    `residual` is dG/dy, which shows whether the formula solves the inner problem that is stated beside it; where y is
    constrained, `stationarity(x, y, task)` is what vanishes in its place.
    """

    formula: Callable[[Outer, Task], Inner]
    stationarity: Callable[[Outer, Inner, Task], PyTree] | None = None

    @property
    def symmetric(self) -> bool:
        return self.stationarity is None

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        return self.formula(x, task)

    def residual(self, problem, x, y, task, key):
        if self.stationarity is not None:
            return self.stationarity(x, y, task)
        return inner_gradient(problem, x, y, task, key)
