"""Minibatches, the oracles on them, and the estimator whose memory goes on from step to step."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from single_loops import Quadratics, family

import metabilevel as mb

KEY = jax.random.key(3)


class Memory(NamedTuple):
    y: Any


class Follow(mb.AbstractSingleLoop):
    """A gradient step of y, then the partial derivative of F in x."""

    rate: float = 0.1

    def begin(self, oracles, x, y, key):
        return Memory(y)

    def step(self, oracles, x, memory, t, key):
        inner, outer = oracles.samples(key)
        y = memory.y - self.rate * oracles.inner_gradient(x, memory.y, inner)
        seen, (f_x, _) = oracles.outer_gradients(x, y, outer)
        return mb.Stride(f_x, seen, Memory(y))


def rows(n: int, m: int = 5) -> mb.Episode:
    inner, outer = (mb.Data(jnp.arange(k, dtype=float)[:, None], jnp.arange(k)) for k in (n, m))
    return mb.Episode(inner, outer)


@pytest.mark.parametrize("n", [8, 11])
def test_the_blocks_are_the_examples_and_their_weights_make_the_mean(n):
    batches, task = mb.Minibatches(4), rows(n)
    weights = batches.weights("inner", task)
    mean = lambda task: task.support.inputs.mean()
    means = jnp.stack([batches.apply(mean, "inner", task, jnp.int32(i)) for i in range(len(weights))])
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights @ means, task.support.inputs.mean(), rtol=1e-6)
    np.testing.assert_allclose(means[0], 1.5)
    drawn = jax.vmap(lambda bits: batches.drawn("inner", task, bits))(jax.random.bits(KEY, (4000,), jnp.uint32))
    np.testing.assert_allclose(np.bincount(drawn, minlength=len(weights)) / 4000, weights, atol=0.03)


@pytest.mark.parametrize(
    ("size", "task", "message"),
    [
        (0, rows(8), "batch = 0"),
        (9, rows(8, 20), "the inner part has 8 examples"),
        (6, rows(8, 5), "the outer part has 5 examples"),
        (2, None, "no examples to choose from"),
        (2, mb.Episode(mb.Data(jnp.ones(()), jnp.ones(3)), rows(8).query), "no set of examples"),
        (2, mb.Episode(mb.Data(jnp.ones(4), jnp.ones(3)), rows(8).query), "no set of examples"),
    ],
)
def test_batches_that_cannot_be_taken_are_named(size, task, message):
    with pytest.raises(mb.InputError, match=message):
        [mb.Minibatches(size).examples(part, task) for part in ("inner", "outer")]


def test_oracles_are_the_derivatives_of_a_block(x64):
    quadratics = Quadratics()
    oracles = mb.Oracles(quadratics.problem, quadratics.task, mb.Minibatches(4))
    x, y, v = (jnp.asarray(np.random.default_rng(i).normal(size=size)) for i, size in enumerate((2, 3, 3)))
    at, some = mb.Sample(jnp.int32(1), KEY), np.arange(4, 8)
    g_x, g_y = quadratics.inner_gradients(x, y, some)
    value, (ours_x, ours_y) = oracles.inner_gradients(x, y, at)
    gradient, product, cross = oracles.inner_products(x, y, v, at)
    _, outer = oracles.outer_gradients(x, y, at)
    expected = [quadratics.inner_loss(x, y, some), g_x, g_y, g_y, g_y, *quadratics.products(v, some)]
    found = [value, ours_x, ours_y, oracles.inner_gradient(x, y, at), gradient, product, cross]
    for a, b in zip([*found, *outer], [*expected, *quadratics.outer_gradients(x, y, some)], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_what_is_prepared_is_differentiated(x64):
    problem = mb.BilevelProblem(
        init=lambda z, task, key: jnp.zeros(2),
        inner_loss=lambda z, y, task, key: jnp.sum((y - z) ** 2),
        outer_loss=lambda z, y, task, key: jnp.sum(y * z),
        prepare=lambda x, task, key: x**2,
    )
    x, y, at = jnp.array([1.0, 3.0]), jnp.array([2.0, 5.0]), mb.Sample(None, KEY)
    _, (f_x, _) = mb.Oracles(problem, None).outer_gradients(x, y, at)
    np.testing.assert_allclose(f_x, 2 * x * y)


def estimator(problem, **options):
    return mb.SingleLoop(problem, Follow(), **options)


def stacked(*tasks):
    return jax.tree.map(lambda *a: jnp.stack(a), *tasks)


def test_one_memory_serves_one_task():
    quadratics = Quadratics()
    with pytest.raises(mb.InputError, match="meta_batch = 2: one memory"):
        estimator(quadratics.problem).init(jnp.zeros(2), stacked(quadratics.task, quadratics.task), KEY)
    made = estimator(quadratics.problem, minibatches=mb.Minibatches(13))
    with pytest.raises(mb.InputError, match="batch = 13: the inner part has 12"):
        made.init(jnp.zeros(2), stacked(quadratics.task), KEY)


PULL = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(()),
    inner_loss=lambda x, y, task, key: (y - task["to"]) ** 2 / 2,
    outer_loss=lambda x, y, task, key: x * y,
)


def pull(to: float, slot: int) -> dict[str, Any]:
    return {"to": jnp.asarray(to), "slot": jnp.int32(slot)}


def test_a_task_of_a_pool_goes_on_with_its_own_memory():
    made = estimator(PULL, slots=3, slot=lambda task: task["slot"])
    x, batch = jnp.ones(()), stacked(pull(1.0, 0), pull(2.0, 2), pull(5.0, 7))
    carry = made.init(x, batch, KEY)
    for steps in (1, 2):
        _, carry, info = made(x, batch, carry, KEY)
        reached = 1 - 0.9**steps
        np.testing.assert_allclose(carry[0].y, [reached, 0, 2 * reached], rtol=1e-5)
        np.testing.assert_allclose(info.loss, [reached, 2 * reached, 0.5], rtol=1e-5)  # no slot 7: begun anew
    np.testing.assert_array_equal(carry[1], [2, 0, 2])


def test_a_memory_that_is_not_finite_begins_anew():
    made = estimator(PULL)
    x, good, bad = jnp.ones(()), stacked(pull(1.0, 0)), stacked(pull(jnp.nan, 0))
    carry = made.init(x, good, KEY)
    _, carry, _ = made(x, good, carry, KEY)
    direction, carry, info = made(x, bad, carry, KEY)
    assert int(info.failed) == 1
    assert float(direction) == 0
    _, carry, info = made(x, good, carry, KEY)
    assert int(info.failed) == 0
    np.testing.assert_allclose(carry[0].y, 0.1, rtol=1e-6)


def test_solve_takes_a_single_loop_in_the_place_of_an_inner_solver(x64):
    quadratics = Quadratics()
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 3}
    start = jnp.array([0.2, -0.1])
    found = mb.solve(quadratics.problem, start, quadratics.task, solver=Follow(), **common)
    x, y, losses = np.array([0.2, -0.1]), np.zeros(3), []
    for _ in range(3):
        y = y - 0.1 * quadratics.inner_gradients(x, y)[1]
        losses.append(quadratics.problem.outer_loss(x, y, quadratics.task, KEY))
        x = x - 0.1 * quadratics.outer_gradients(x, y)[0]
    np.testing.assert_allclose(found.x, x, rtol=1e-12)
    np.testing.assert_allclose(found.inner, y, rtol=1e-12)
    np.testing.assert_allclose([row["loss"] for row in found.history], losses, rtol=1e-12)


def test_solve_refuses_minibatches_of_what_is_no_mean():
    quadratics = Quadratics()
    given = quadratics.problem
    spread = lambda x, y, task, key: given.inner_loss(x, y, task, key) + task.support.inputs[2].std()
    common = {"key": KEY, "optimizer": optax.sgd(0.1), "steps": 1, "minibatches": mb.Minibatches(4)}
    x, task = jnp.ones(2), quadratics.task
    with pytest.raises(mb.InputError, match=r"the inner loss is .* of all examples, but"):
        mb.solve(dataclasses.replace(given, inner_loss=spread), x, task, solver=Follow(), **common)
    method = mb.Method(
        dataclasses.replace(given, inner_loss=spread),
        lambda key: jnp.ones(2),
        mb.SingleLoop(dataclasses.replace(given, inner_loss=spread), Follow(), mb.Minibatches(4)),
        mb.GradientDescent(optax.sgd(0.1), 3),
    )
    with pytest.raises(mb.InputError, match=r"the inner loss is .* of all examples, but"):
        mb.fit(method, family(quadratics), optax.sgd(0.1), key=KEY, steps=1, meta_batch=1)
    with pytest.raises(mb.InputError, match="only a single-loop method"):
        mb.solve(given, x, task, solver=mb.GradientDescent(optax.sgd(0.1), 3), **common)
    with pytest.raises(mb.InputError, match="warm_start = False"):
        mb.solve(given, x, task, solver=Follow(), warm_start=False, **common)
    mb.solve(given, x, task, solver=Follow(), **common)
