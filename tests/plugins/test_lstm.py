"""The LSTM optimizer against its formulas, and the derivative by hand of its cell against automatic ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metabilevel_learned_optimizers.cell import at_rest, initial, recur
from metabilevel_learned_optimizers.lstm import LSTM
from problems import assert_close, directional, dot, like

UNITS, INPUTS, N = 3, 2, 5


def given(key, dtype):
    """Weights, signal and state of two layers."""
    layers = [initial(k, size, UNITS) for k, size in zip(jax.random.split(key), (INPUTS, UNITS), strict=True)]
    tree = (layers, jnp.zeros((INPUTS, N)), at_rest(2, UNITS, N, dtype))
    return jax.tree.map(lambda a: a.astype(dtype), like(tree, key))


def by_equinox(layers, signal, state):
    """The same layers as equinox's, whose quarters stand in the order i, f, g, o."""

    def column(signal, state):
        after = []
        for layer, before in zip(layers, state, strict=True):
            order = lambda a: jnp.concatenate([jnp.split(a, 4)[k] for k in (0, 1, 3, 2)])
            inputs, weights = len(signal), order(layer["weights"])
            cell = eqx.nn.LSTMCell(inputs, UNITS, key=jax.random.key(0))
            parts = lambda c: (c.weight_ih, c.weight_hh, c.bias)
            cell = eqx.tree_at(parts, cell, (weights[:, :inputs], weights[:, inputs:], order(layer["bias"])))
            signal, c = cell(signal, (before["hidden"], before["cell"]))
            after.append({"hidden": signal, "cell": c})
        return signal, after

    return jax.vmap(column, -1, -1)(signal, state)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_the_cell_and_its_derivative_are_those_of_equinox(dtype, tolerance, x64, key):
    arguments = given(key, dtype)
    direction = like(jax.eval_shape(recur, *arguments), jax.random.key(3))
    ours, theirs = (
        (f(*arguments), jax.grad(lambda *a, f=f: dot(f(*a), direction), (0, 1, 2))(*arguments))
        for f in (recur, by_equinox)
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert all(a.dtype == dtype for a in jax.tree.leaves(ours))
    jax.tree.map(close, ours, theirs)


def test_the_second_derivative_is_that_of_equinox(x64, key):
    arguments = given(key, "float64")
    u = like(arguments, jax.random.key(4))

    def product(f):
        loss = lambda arguments: sum(jnp.sum(a**2) for a in jax.tree.leaves(f(*arguments)))
        return jax.grad(lambda a: dot(jax.grad(loss)(a), u))(arguments)

    assert_close(product(recur), product(by_equinox), 1e-10)


def test_a_batch_has_the_derivatives_of_its_members(x64, key):
    layers, *_ = given(key, "float64")
    batch = jax.tree.map(lambda *a: jnp.stack(a), *[given(k, "float64")[1:] for k in jax.random.split(key, 3)])
    slope = lambda *one: jax.grad(lambda layers: recur(layers, *one)[0].sum())(layers)
    each = [slope(*jax.tree.map(lambda a, i=i: a[i], batch)) for i in range(3)]
    assert_close(jax.vmap(slope)(*batch), jax.tree.map(lambda *a: jnp.stack(a), *each), 1e-12)
    whole = lambda layers: jax.vmap(lambda *one: recur(layers, *one)[0].sum())(*batch).sum()
    assert_close(jax.grad(whole)(layers), jax.tree.map(lambda *a: sum(a), *each), 1e-12)


def test_a_batch_has_the_second_derivatives_of_its_members(x64, key):
    layers, *_ = given(key, "float64")
    batch = jax.tree.map(lambda *a: jnp.stack(a), *[given(k, "float64")[1:] for k in jax.random.split(key, 3)])
    slope = lambda f: lambda *one: jax.grad(lambda layers: jnp.sum(f(layers, *one)[0] ** 2))(layers)
    twice = lambda f: lambda *one: jax.grad(lambda signal: dot(slope(f)(signal, one[1]), layers))(one[0])
    assert_close(jax.vmap(twice(recur))(*batch), jax.vmap(twice(by_equinox))(*batch), 1e-10)


@pytest.mark.parametrize(("preprocess", "count"), [(None, 5061), (10.0, 5141)])
def test_number_of_weights(preprocess, count, key):
    assert sum(a.size for a in jax.tree.leaves(LSTM(preprocess=preprocess).init(jnp.zeros(7), key))) == count


def test_preprocessing_by_its_formula(x64):
    p, border = 3.0, jnp.exp(-3.0)
    g = jnp.array([2.0, -0.5, border, -border, border / 2, -border / 4, 0.0])
    expected = [[np.log(2) / 3, np.log(0.5) / 3, -1, -1, -1, -1, -1], [1, -1, 1, -1, 0.5, -0.25, 0]]
    np.testing.assert_allclose(LSTM(preprocess=p)._inputs(g), expected, atol=1e-12)


@pytest.mark.parametrize("g", [0.0, float(np.exp(-10.0)), -1e-30, 1e30])
def test_preprocessing_has_finite_derivatives(g):
    assert jnp.isfinite(jax.jacfwd(LSTM(preprocess=10.0)._inputs)(jnp.array([g]))).all()
    assert jnp.isfinite(jax.jacrev(LSTM(preprocess=10.0)._inputs)(jnp.array([g]))).all()


def test_coordinates_may_change_places_also_across_arrays(x64, key):
    rule = LSTM(units=UNITS)
    x, gradients = rule.init(None, key), jax.random.normal(key, (2, 6))
    order = jnp.array([4, 2, 5, 0, 3, 1])

    def walk(gradients):
        y = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
        split = lambda g: {"a": g[:4].reshape(2, 2), "b": g[4:]}
        state, updates = rule.start(x, y), {}
        for g in gradients:
            updates, state = rule.update(x, split(g), state, y)
        return jnp.concatenate([updates["a"].ravel(), updates["b"]])

    np.testing.assert_allclose(walk(gradients[:, order]), walk(gradients)[order], atol=1e-12)


def test_updates_grow_with_the_scale(key):
    y = jnp.linspace(-1.0, 1.0, 5)
    small, large = LSTM(scale=0.1), LSTM(scale=0.3)
    x = small.init(y, key)
    step = lambda rule: rule.update(x, y, rule.start(x, y), y)[0]
    np.testing.assert_allclose(step(large), 3 * step(small), rtol=1e-5)


def test_the_gradient_of_steps_agrees_with_differences(x64, key):
    rule, y = LSTM(units=UNITS), jnp.zeros(4)
    gradients = jax.random.normal(key, (3, 4))

    def loss(x):
        state, total = rule.start(x, y), jnp.zeros(())
        for g in gradients:
            updates, state = rule.update(x, g, state, y)
            total += jnp.sum(jnp.sin(updates))
        return total

    x = jax.tree.map(lambda a: a.astype(float), rule.init(y, key))
    u = like(x, jax.random.key(5))
    np.testing.assert_allclose(dot(jax.grad(loss)(x), u), directional(loss, x, u), rtol=1e-6)
