"""Quadratic programs over simplices against an independent solver, and their gradients against differences."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import directional, dot, like

import metabilevel as mb

WAYS, C = 5, 0.1
SOLVERS = pytest.mark.parametrize("solver", ["admm", "interior-point"])
INPUTS = pytest.mark.parametrize(("shots", "d", "spread"), [(1, 20, 1.0), (5, 64, 1.0), (5, 10, 1.0), (5, 64, 4.0)])


def episode(shots: int, d: int, spread: float, seed: int = 0):
    """Features of clusters that overlap, their one-hot labels, and features of queries."""
    rng = np.random.default_rng(seed)
    centres, labels = rng.normal(size=(WAYS, d)), np.repeat(np.arange(WAYS), shots)
    draw = lambda: np.maximum(spread * (centres[labels] + 1.5 * rng.normal(size=(len(labels), d))), 0)
    return jnp.asarray(draw()), jnp.asarray(np.eye(WAYS)[labels]), jnp.asarray(draw())


def decisions(features, labels, queries, solver, iterations=None):
    """Scores of the queries by the Crammer-Singer machine."""
    kernel = features @ features.T
    b = mb.simplex_qp(kernel, labels - C * kernel @ labels, C, solver=solver, iterations=iterations)
    return queries @ features.T @ (C * labels - b)


@SOLVERS
@INPUTS
def test_decisions_are_those_of_the_primal_machine(shots, d, spread, solver, x64):
    features, labels, queries = episode(shots, d, spread)
    weights, slack = cvxpy.Variable((d, WAYS)), cvxpy.Variable(len(labels))
    scores, own = np.asarray(features) @ weights, np.asarray(labels)
    margins = [scores[i] @ own[i] - scores[i, k] >= 1 - own[i, k] - slack[i] for i in range(len(own)) for k in range(5)]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(weights) / 2 + C * cvxpy.sum(slack)), margins).solve("CLARABEL")
    np.testing.assert_allclose(decisions(features, labels, queries, solver), queries @ weights.value, atol=1e-4)


@pytest.mark.parametrize(("solver", "iterations"), [("admm", 1000), ("interior-point", None)])
@INPUTS
def test_the_gradient_agrees_with_differences(shots, d, spread, solver, iterations, x64):
    features, labels, queries = episode(shots, d, spread)
    loss = jax.jit(lambda f: jnp.sum(jnp.sin(decisions(f, labels, queries, solver, iterations))))
    v = like(features, jax.random.key(0))
    slope = directional(loss, features, v, h=1e-6)
    np.testing.assert_allclose(dot(jax.grad(loss)(features), v), slope, rtol=1e-3)


@SOLVERS
def test_the_residual_vanishes_at_the_solution_alone(solver, x64):
    features, labels, _ = episode(5, 64, 1.0)
    kernel, every = features @ features.T, jnp.ones(WAYS, bool)
    b = mb.simplex_qp(kernel, labels, C, solver=solver, iterations=1000)
    np.testing.assert_allclose(mb.simplex_residual(kernel, labels, C, every, b), 0, atol=1e-12)
    assert jnp.abs(mb.simplex_residual(kernel, labels, C, every, jnp.roll(b, 1, 1))).max() > 1e-3
    np.testing.assert_allclose(b.sum(1), C, rtol=1e-12)


@SOLVERS
def test_columns_that_are_not_allowed_stay_empty(solver):
    features, labels, _ = episode(5, 64, 1.0)
    allowed = jnp.array([True, True, False, True, False])
    b = mb.simplex_qp(features @ features.T, labels, C, allowed, solver=solver)
    assert (b[:, ~allowed] == 0).all()
    np.testing.assert_allclose(b.sum(1), C, rtol=1e-4)


@SOLVERS
def test_examples_that_coincide_have_a_finite_solution_and_gradient(solver):
    features, labels, queries = episode(5, 8, 1.0)
    features = jnp.repeat(features[::5], 5, 0)
    scores, pull = jax.vjp(lambda f: decisions(f, labels, queries, solver), features)
    assert jnp.isfinite(scores).all()
    assert jnp.isfinite(pull(jnp.ones_like(scores))[0]).all()


def test_few_steps_of_the_interior_point_solve_in_single_precision_what_many_of_admm_do_in_double():
    features, labels, _ = episode(5, 64, 4.0)
    with jax.enable_x64(True):
        f, linear = (jnp.asarray(each, jnp.float64) for each in (features, labels))
        exact = np.asarray(mb.simplex_qp(f @ f.T, linear, C, iterations=5000))
    b = mb.simplex_qp(features @ features.T, labels, C, solver="interior-point")
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(b, exact, atol=1e-5)
    np.testing.assert_array_equal(b > 0, exact > 0)


@SOLVERS
def test_a_batch_of_programs_is_solved_as_each_alone(solver, x64):
    batch = [episode(1, 20, 1.0, seed)[:2] for seed in range(3)]
    kernels, labels = (jnp.stack(each) for each in zip(*((f @ f.T, own) for f, own in batch), strict=True))
    solve = lambda kernel, own: mb.simplex_qp(kernel, own, C, solver=solver)
    loop = [solve(kernel, own) for kernel, own in zip(kernels, labels, strict=True)]
    np.testing.assert_allclose(jax.vmap(solve)(kernels, labels), jnp.stack(loop), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("radius", "options", "message"),
    [(0.0, {}, "radius = 0"), (1.0, {"iterations": 0}, "iterations = 0"), (1.0, {"solver": "simplex"}, "one of admm")],
)
def test_wrong_programs_are_refused(radius, options, message):
    with pytest.raises(mb.InputError, match=message):
        mb.simplex_qp(jnp.eye(2), jnp.ones((2, 3)), radius, **options)
