"""Descent of an outer loss by hypergradients whose errors fall on a schedule, with steps of its own."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb


class Carry(NamedTuple):
    """Where step k = 1, 2, ... left off: its number, step size, value, |x_{k+1} - x_k| and x_{k+1}; the first inner
    residual; and the weights."""

    k: Any
    rate: Any
    value: Any
    moved: Any
    x: Any
    residual: Any
    warm: Any


class HOAG(mb.AbstractEstimator):
    """Gradient descent on F by hypergradients with an error of about eps_k = `tolerance(k)`, in [-`bound`, `bound`].

        |dG/dy| <= eps_k |dG/dy| at the start,     |F_y - A v| <= eps_k |F_y|,     x_{k+1} = clip(x_k - a_k g_k)

    a_1 moves x by 1 (root mean square). Then the step size is 1.05 a if, with D = |x_k - x_{k-1}| and a = a_{k-1},

        F_k <= F_{k-1} + eps_k + eps_{k-1} (1 + D) - D^2 / (2 a),

    and a / 2 otherwise. The direction is x_k - x_{k+1}, to be followed by `optax.sgd(1.0)`: where x is not what the
    last direction led to, a warning says so.

    **Arguments:** `solve(tolerance)` gives an inner solver that stops at |dG/dy| <= tolerance; `estimate(solver, eps)`
    the estimator of the hypergradient by that solver, whose linear system is solved to eps.

    **Raises:** `InputError` for more than one task.
    """

    problem: mb.BilevelProblem
    solve: Callable[[Any], mb.AbstractInnerSolver]
    estimate: Callable[[mb.AbstractInnerSolver, Any], mb.AbstractEstimator]
    tolerance: Callable[[Any], Any]
    bound: float = 12.0

    def init(self, x, tasks, key):
        (count,) = {len(a) for a in jax.tree.leaves(tasks)}
        if count != 1:
            raise mb.InputError(f"meta_batch = {count}: HOAG compares the values of one task, so 1 is wanted.")
        task = jax.tree.map(lambda a: a[0], tasks)
        z, y, k_solve = self.problem.begin(x, task, key)
        residual = optax.tree.norm(self.solve(0.0).residual(self.problem, z, y, task, k_solve))
        warm = self.estimate(self.solve(0.0), 0.0).init(x, tasks, key)
        return Carry(jnp.ones((), int), jnp.ones(()), jnp.asarray(jnp.inf, float), jnp.zeros(()), x, residual, warm)

    def __call__(self, x, tasks, carry, key):
        now, last = self.tolerance(carry.k), self.tolerance(carry.k - 1)
        gradient, warm, info = self.estimate(self.solve(now * carry.residual), now)(x, tasks, carry.warm, key)
        size, entries = optax.tree.norm(gradient), sum(a.size for a in jax.tree.leaves(x))
        promised = carry.value + now + last * (1 + carry.moved) - carry.moved**2 / (2 * carry.rate)
        first = jnp.where(size > 0, jnp.sqrt(entries) / size, 1.0)
        rate = jnp.where(carry.k == 1, first, carry.rate * jnp.where(info.loss[0] <= promised, 1.05, 0.5))
        step = lambda a, g: a - jnp.clip(a - rate * g, -self.bound, self.bound)
        direction = jax.tree.map(step, x, gradient)
        there = jax.tree.map(jnp.subtract, x, direction)
        strayed = optax.tree.norm(jax.tree.map(jnp.subtract, x, carry.x)) > 0
        jax.lax.cond(strayed, lambda: jax.debug.callback(_warn), lambda: None)
        value = jnp.where(info.finite[0], info.loss[0], carry.value)
        moved = optax.tree.norm(direction)
        return direction, Carry(carry.k + 1, rate, value, moved, there, carry.residual, warm), info


def _warn() -> None:
    said = "HOAG chooses its own steps: follow them by --outer-optimizer sgd --outer-learning-rate 1 (optax.sgd(1.0))."
    warnings.warn(said, stacklevel=2)
