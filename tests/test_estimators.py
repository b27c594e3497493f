"""`Nested` and `WarmStarted`: one direction from many tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close

import metabilevel as mb

PROBLEM = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(2),
    inner_loss=lambda x, y, task, key: jnp.sum((y - x * task[1:]) ** 2) / 2 + jnp.sum(y**4) / 8,
    outer_loss=lambda x, y, task, key: (jnp.sum(jnp.sqrt(y + task[0])), {"reached": y[0]}),
)
SOLVER = mb.GradientDescent(optax.sgd(0.3), steps=3)


def tasks(n: int = 5):
    return jax.random.uniform(jax.random.key(1), (n, 3)) + 0.5


@pytest.mark.parametrize("chunk", [None, 2])
def test_nested_is_the_mean_of_hypergradients(chunk, x64, key):
    x, batch = jnp.array([0.4, 0.9]), tasks()
    estimator = mb.Nested(PROBLEM, SOLVER, task_chunk=chunk)
    direction, carry, info = estimator(x, batch, estimator.init(x, batch, key), key)
    each = [mb.hypergradient(PROBLEM, x, task, key=key, solver=SOLVER) for task in batch]
    assert_close(direction, sum(g for _, g, _ in each) / len(each), 1e-10)
    np.testing.assert_allclose(info.loss, [v for v, _, _ in each], rtol=1e-12)
    np.testing.assert_allclose(info.metrics["reached"], [i.metrics["reached"] for _, _, i in each], rtol=1e-12)
    residuals = [i.certificate.inner_residual for _, _, i in each]
    np.testing.assert_allclose(info.certificate.inner_residual, residuals, rtol=1e-12)
    assert carry is None
    assert info.failed == 0


def test_a_broken_task_is_masked_and_counted(x64, key):
    x, batch = jnp.array([0.4, 0.9]), tasks()
    estimator = mb.Nested(PROBLEM, SOLVER)
    direction, _, info = estimator(x, batch.at[1, 0].set(-9.0), None, key)
    rest = estimator(x, jnp.delete(batch, 1, 0), None, key)
    assert_close(direction, rest[0], 1e-12)
    assert info.finite.tolist() == [True, False, True, True, True]
    assert info.failed == 1
    assert (info.certificate.result == mb.Result.nonfinite).tolist() == [False, True, False, False, False]
    np.testing.assert_allclose(info.mean()["loss"], rest[2].mean()["loss"], rtol=1e-12)


def test_a_warm_start_goes_on_where_it_stopped(x64, key):
    x, batch = jnp.array([0.4, 0.9]), tasks(1)
    warm = mb.WarmStarted(PROBLEM, SOLVER)
    carry = warm.init(x, batch, key)
    for _ in range(4):
        _, carry, info = warm(x, batch, carry, key)
    long = mb.hypergradient(PROBLEM, x, batch[0], key=key, solver=mb.GradientDescent(optax.sgd(0.3), steps=12))
    np.testing.assert_allclose(carry[0][0], long[2].inner, rtol=1e-12)
    np.testing.assert_allclose(info.loss[0], long[0], rtol=1e-12)


def test_slots_are_kept_apart_and_the_last_visitor_stays(x64, key):
    x, batch = jnp.array([0.4, 0.9]), jnp.concatenate([jnp.array([[2.0], [0.0], [2.0]]), tasks(3)], 1)
    problem = mb.BilevelProblem(
        PROBLEM.init,
        lambda x, y, task, key: PROBLEM.inner_loss(x, y, task[1:], key),
        lambda x, y, task, key: PROBLEM.outer_loss(x, y, task[1:], key),
    )
    warm = mb.WarmStarted(problem, SOLVER, slots=4, slot=lambda task: task[0].astype(int))
    (table, filled), _ = warm(x, batch, warm.init(x, batch, key), key)[1:]
    fresh = [mb.hypergradient(problem, x, task, key=key, solver=SOLVER)[2].inner for task in batch]
    np.testing.assert_allclose(table, [fresh[1], np.zeros(2), fresh[2], np.zeros(2)], rtol=1e-12)
    assert filled.tolist() == [True, False, True, False]


def test_a_slot_that_failed_starts_anew(x64, key):
    x, good = jnp.array([0.4, 0.9]), tasks(1)
    warm = mb.WarmStarted(PROBLEM, SOLVER)
    carry = warm(x, good.at[0, 1].set(jnp.nan), warm.init(x, good, key), key)[1]
    _, carry, info = warm(x, good, carry, key)
    assert info.finite.all()
    fresh = mb.hypergradient(PROBLEM, x, good[0], key=key, solver=SOLVER)[2].inner
    np.testing.assert_allclose(carry[0][0], fresh, rtol=1e-12)
