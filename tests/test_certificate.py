"""The error bound of a certificate, against the true errors of random strongly convex problems."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb

KEY = jax.random.key(0)
N, ROWS = 12, 24  # inner variables, and rows of data
STAY = mb.GradientDescent(optax.sgd(0.0), 0)


class Family(NamedTuple):
    """Strongly convex problems of one shape: the inner curvature lies between mu = 1 / kappa and 1 / rate."""

    number: int
    outer: int
    rate: float
    inner_loss: Callable[..., Any]
    outer_loss: Callable[..., Any]


softplus = jax.nn.softplus
quadratic = lambda x, y, task, key: y @ task["a"] @ y / 2 - y @ task["c"] @ x
logarithm = lambda x, y, task, key: jnp.mean(jnp.log1p((task["d"] @ y - task["t"]) ** 2)) + x @ x / 2
FAMILIES = {
    "quadratic": Family(40, 3, 1.0, quadratic, lambda x, y, task, key: jnp.sum((y - task["t"][:N]) ** 2) / 2 + x @ x),
    "logistic, a decay for each part of y": Family(
        30,
        4,
        0.1,
        lambda x, y, task, key: (
            jnp.mean(softplus(-3 * task["d"] @ y)) + task["mu"] * jnp.exp(jnp.repeat(x - x.min(), N // 4)) @ y**2 / 2
        ),
        logarithm,
    ),
    "softplus that x moves": Family(
        30,
        1,
        0.2,
        lambda x, y, task, key: (
            quadratic(x, y, task, key) + jnp.mean(softplus(4 * task["d"] @ y + task["t"] * jnp.sum(x)))
        ),
        logarithm,
    ),
}


def draw(family: Family, seed: int) -> tuple[dict[str, Any], Any]:
    """A task, with a condition number from 1 to 1,000, and how far its two solves go; and x."""
    rng = np.random.default_rng(seed)
    kappa = 10 ** rng.uniform(0, 3)
    basis = np.linalg.qr(rng.normal(size=(N, N)))[0]
    rows = rng.normal(size=(ROWS, N))
    return {
        "a": basis @ np.diag(np.geomspace(1 / kappa, 1, N)) @ basis.T,
        "c": rng.normal(size=(N, family.outer)),
        "d": rows / np.linalg.norm(rows, 2) * np.sqrt(ROWS),
        "t": rng.normal(size=ROWS),
        "mu": 1 / kappa,
        "inner": 10 ** rng.uniform(-7, 0),
        "linear": 10 ** rng.uniform(-6, 0),
    }, rng.uniform(-1, 1, family.outer)


def minimum(problem: mb.BilevelProblem, x: Any, task: Any) -> Any:
    """y(x), by Newton's method with a line search."""
    gradient = lambda y: jax.grad(problem.inner_loss, 1)(x, y, task, KEY)

    def step(_, y):
        tried = y - 0.5 ** jnp.arange(12.0)[:, None] * jnp.linalg.solve(jax.jacobian(gradient)(y), gradient(y))
        return tried[jnp.linalg.norm(jax.vmap(gradient)(tried), axis=1).argmin()]

    return jax.lax.fori_loop(0, 40, step, jnp.zeros(N))


@partial(jax.jit, static_argnums=0)
def judged(family: Family, tasks: Any, xs: Any) -> Any:
    """Of every task: the bounds with mu known and estimated, the true error, and the residual of the truth."""
    problem = mb.BilevelProblem(lambda x, task, key: task["start"], family.inner_loss, family.outer_loss)
    loose: dict[str, Any] = {"tolerance": jnp.inf, "linear_tolerance": jnp.inf}

    def one(task, x):
        task = {**task, "start": jnp.zeros(N)}
        steepest = jnp.linalg.norm(jax.grad(problem.inner_loss, 1)(x, jnp.zeros(N), task, KEY))
        solver = mb.GradientDescent(optax.sgd(family.rate), 3000, tolerance=task["inner"] * steepest)
        inverse = mb.ConjugateGradient(50, tolerance=task["linear"])
        known = mb.Implicit(inverse, strong_convexity=task["mu"], **loose)
        reached, gradient = known.hypergradient(problem, solver, x, task, KEY)
        estimated = dataclasses.replace(known, strong_convexity="estimate")
        again, _ = estimated.hypergradient(problem, STAY, x, {**task, "start": reached.inner}, KEY)
        solved = {**task, "start": minimum(problem, x, task)}
        truth, exact = mb.Implicit(mb.Dense()).hypergradient(problem, STAY, x, solved, KEY)
        bounds = reached.certificate.error_bound, again.certificate.error_bound
        return bounds, jnp.linalg.norm(gradient - exact), truth.certificate.inner_residual

    return jax.vmap(one)(tasks, xs)


def test_the_bound_holds_and_is_near_the_error(x64):
    ratios = []
    for family in FAMILIES.values():
        tasks, xs = zip(*(draw(family, seed) for seed in range(family.number)), strict=True)
        bounds, errors, residuals = judged(family, jax.tree.map(lambda *a: jnp.stack(a), *tasks), jnp.stack(xs))
        assert residuals.max() < 1e-12
        assert errors.min() < 1e-4 * errors.max()  # solves of all degrees
        ratios.append(np.asarray(bounds) / errors)
    ratios = np.concatenate(ratios, axis=1)
    assert ratios.shape == (2, 100)
    assert (ratios >= 1).all()
    assert ((ratios <= 10).mean(1) >= 0.9).all()


@pytest.mark.parametrize("steps", [0, 7])
def test_a_bound_in_single_precision_allows_for_its_rounding(steps):
    task, x = draw(FAMILIES["quadratic"], 0)
    task = {name: jnp.asarray(a) for name, a in task.items()}
    family = FAMILIES["quadratic"]
    exact = np.linalg.solve(task["a"], task["c"] @ x)
    gradient = 2 * x + task["c"].T @ np.linalg.solve(task["a"], exact - task["t"][:N])
    start = jnp.asarray(exact if steps == 0 else np.zeros(N))
    problem = mb.BilevelProblem(lambda x, task, key: start, family.inner_loss, family.outer_loss)
    adjoint = mb.Implicit(
        mb.ConjugateGradient(steps), tolerance=np.inf, linear_tolerance=np.inf, strong_convexity=float(task["mu"])
    )
    solver = mb.GradientDescent(optax.sgd(1.0), steps)
    _, found, info = mb.hypergradient(problem, jnp.asarray(x), task, key=KEY, solver=solver, adjoint=adjoint)
    bound = info.certificate.error_bound
    assert bound is not None
    assert np.linalg.norm(found - gradient) <= bound


def test_what_is_not_convex_has_no_bound():
    problem = mb.BilevelProblem(
        lambda x, task, key: jnp.zeros(2),
        lambda x, y, task, key: y[0] ** 2 - y[1] ** 2 + x @ y,
        lambda x, y, task, key: jnp.sum(y),
    )
    adjoint = mb.Implicit(mb.Dense(), strong_convexity="estimate")
    with pytest.warns(mb.HypergradientWarning):
        info = mb.hypergradient(problem, jnp.ones(2), None, key=KEY, solver=STAY, adjoint=adjoint)[2]
    assert info.certificate.error_bound == np.inf
