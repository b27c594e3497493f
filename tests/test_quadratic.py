"""Quadratic programs over simplices against an independent solver, and their gradients against differences."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import directional, dot, like

import metabilevel as mb

WAYS, C = 5, 0.1
INPUTS = pytest.mark.parametrize(("shots", "d", "spread"), [(1, 20, 1.0), (5, 64, 1.0), (5, 10, 1.0), (5, 64, 4.0)])


def episode(shots: int, d: int, spread: float, seed: int = 0):
    """Features of clusters that overlap, their one-hot labels, and features of queries."""
    rng = np.random.default_rng(seed)
    centres, labels = rng.normal(size=(WAYS, d)), np.repeat(np.arange(WAYS), shots)
    draw = lambda: np.maximum(spread * (centres[labels] + 1.5 * rng.normal(size=(len(labels), d))), 0)
    return jnp.asarray(draw()), jnp.asarray(np.eye(WAYS)[labels]), jnp.asarray(draw())


def decisions(features, labels, queries, iterations=100):
    """Scores of the queries by the Crammer-Singer machine."""
    kernel = features @ features.T
    b = mb.simplex_qp(kernel, labels - C * kernel @ labels, C, iterations=iterations)
    return queries @ features.T @ (C * labels - b)


@INPUTS
def test_decisions_are_those_of_the_primal_machine(shots, d, spread, x64):
    features, labels, queries = episode(shots, d, spread)
    weights, slack = cvxpy.Variable((d, WAYS)), cvxpy.Variable(len(labels))
    scores, own = np.asarray(features) @ weights, np.asarray(labels)
    margins = [scores[i] @ own[i] - scores[i, k] >= 1 - own[i, k] - slack[i] for i in range(len(own)) for k in range(5)]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(weights) / 2 + C * cvxpy.sum(slack)), margins).solve("CLARABEL")
    np.testing.assert_allclose(decisions(features, labels, queries), queries @ weights.value, atol=1e-4)


@INPUTS
def test_the_gradient_agrees_with_differences(shots, d, spread, x64):
    features, labels, queries = episode(shots, d, spread)
    loss = jax.jit(lambda f: jnp.sum(jnp.sin(decisions(f, labels, queries, 1000))))
    v = like(features, jax.random.key(0))
    slope = directional(loss, features, v, h=1e-6)
    np.testing.assert_allclose(dot(jax.grad(loss)(features), v), slope, rtol=1e-3)


def test_the_residual_vanishes_at_the_solution_alone(x64):
    features, labels, _ = episode(5, 64, 1.0)
    kernel, every = features @ features.T, jnp.ones(WAYS, bool)
    b = mb.simplex_qp(kernel, labels, C, iterations=1000)
    np.testing.assert_allclose(mb.simplex_residual(kernel, labels, C, every, b), 0, atol=1e-12)
    assert jnp.abs(mb.simplex_residual(kernel, labels, C, every, jnp.roll(b, 1, 1))).max() > 1e-3
    np.testing.assert_allclose(b.sum(1), C, rtol=1e-12)


def test_columns_that_are_not_allowed_stay_empty():
    features, labels, _ = episode(5, 64, 1.0)
    allowed = jnp.array([True, True, False, True, False])
    b = mb.simplex_qp(features @ features.T, labels, C, allowed)
    assert (b[:, ~allowed] == 0).all()
    np.testing.assert_allclose(b.sum(1), C, rtol=1e-4)


def test_examples_that_coincide_have_a_finite_solution_and_gradient():
    features, labels, queries = episode(5, 8, 1.0)
    features = jnp.repeat(features[::5], 5, 0)
    scores, pull = jax.vjp(lambda f: decisions(f, labels, queries), features)
    assert jnp.isfinite(scores).all()
    assert jnp.isfinite(pull(jnp.ones_like(scores))[0]).all()


@pytest.mark.parametrize(("radius", "iterations", "message"), [(0.0, 9, "radius = 0"), (1.0, 0, "iterations = 0")])
def test_wrong_programs_are_refused(radius, iterations, message):
    with pytest.raises(mb.InputError, match=message):
        mb.simplex_qp(jnp.eye(2), jnp.ones((2, 3)), radius, iterations=iterations)
