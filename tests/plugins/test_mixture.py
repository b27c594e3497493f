"""Mixed linear regression: the law of the tasks, and the loss after one inner step, which is known exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_repro.bernacchia import meta_solution

import metabilevel as mb


def test_tasks_have_the_law_that_is_said():
    tasks = mb.sample_batch(mb.load_tasks("mixture")(noise=0.7, spread=0.5), jax.random.key(0), "train", 3000)
    assert (tasks.support.inputs.shape, tasks.query.targets.shape) == ((3000, 30, 60), (3000, 2, 1))
    truth = tasks.support.inputs @ tasks.truth["weights"]
    for value, deviation in [(tasks.support.inputs, 1), (tasks.support.targets - truth, 0.7), (truth, 0.5)]:
        np.testing.assert_allclose([value.mean(), value.std()], [0, deviation], atol=0.02)
    test = mb.load_tasks("mixture")().sample(jax.random.key(0), "test")
    assert (test.support.inputs.shape, test.query.inputs.shape) == ((20, 60), (50, 60))


@pytest.mark.parametrize("rate", [-0.3, 0.0, 0.2])
def test_the_loss_after_one_step_is_the_exact_one(rate):
    """With d = x - w, sigma = noise and p inputs, n shots (the fourth moment of a normal gives p + 1):

    2 E[loss] = sigma^2 (1 + rate^2 p / n) + ((1 - rate)^2 + rate^2 (p + 1) / n) E|d|^2
    """
    p, n, noise, spread = 12, 6, 0.8, 0.5
    tasks = mb.load_tasks("mixture")(inputs=p, shots=n, queries=40, noise=noise, spread=spread)
    method = mb.load_method("maml")(tasks.subject, learning_rate=rate, steps=1)
    x = {"body": {}, "head": {"weights": jnp.full((p, 1), 0.2)}}
    found = mb.evaluate(method, x, tasks, key=jax.random.key(1), episodes=4000, steps=[1])[1]["loss"]
    distance = p * 0.2**2 + spread**2
    expected = noise**2 * (1 + rate**2 * p / n) + ((1 - rate) ** 2 + rate**2 * (p + 1) / n) * distance
    assert abs(found.mean - expected / 2) < 2 * found.ci95 < 0.1 * expected


def test_the_oracle_is_left_with_the_noise():
    tasks = mb.load_tasks("mixture")(noise=0.5)
    found = mb.evaluate(mb.load_method("oracle")(tasks.subject), {}, tasks, key=jax.random.key(1), episodes=500)
    np.testing.assert_allclose(found[None]["loss"].mean, 0.125, rtol=0.03)


@pytest.mark.parametrize("queries", [2, 40])  # less data than inputs, and more
def test_the_meta_solution_is_the_least_one_of_those_that_are_stationary(queries, key, x64):
    tasks = mb.load_tasks("mixture")(inputs=10, train_shots=5, train_queries=queries)
    method = mb.load_method("maml")(tasks.subject, learning_rate=-0.3, steps=1)
    batch = mb.sample_batch(tasks, key, "train", 3)
    x = jax.jit(lambda b: meta_solution(method, tasks, b, key))(batch)
    loss = lambda x: method.score(x, batch, key)["loss"]
    gradient = jax.grad(loss)(x)["head"]["weights"]
    np.testing.assert_allclose(gradient, 0, atol=1e-10)
    hessian = jax.hessian(lambda w: loss({"body": {}, "head": {"weights": w}}))(x["head"]["weights"]).reshape(10, 10)
    values, vectors = np.linalg.eigh(hessian)
    flat = vectors[:, values < 1e-9]
    assert flat.shape[1] == max(0, 10 - 3 * queries)
    np.testing.assert_allclose(flat.T @ x["head"]["weights"], 0, atol=1e-10)


def test_descent_from_zero_goes_to_the_meta_solution(key, x64):
    tasks = mb.load_tasks("mixture")(inputs=6, train_shots=5, train_queries=1)
    method = mb.load_method("maml")(tasks.subject, learning_rate=0.1, steps=1)
    batch = mb.sample_batch(tasks, key, "train", 2)
    gradient = jax.grad(lambda x: method.score(x, batch, key)["loss"])
    step = lambda x, _: (optax.apply_updates(x, jax.tree.map(lambda g: -0.1 * g, gradient(x))), None)
    x, _ = jax.jit(lambda x: jax.lax.scan(step, x, None, 4000))(tasks.subject.init(key))
    expected = meta_solution(method, tasks, batch, key)
    np.testing.assert_allclose(x["head"]["weights"], expected["head"]["weights"], atol=1e-7)
    other = dataclasses.replace(method, solver=mb.GradientDescent(optax.sgd(0.5), 1))
    assert not np.allclose(x["head"]["weights"], meta_solution(other, tasks, batch, key)["head"]["weights"], atol=0.01)


@pytest.mark.parametrize(
    "wrong", [{"inputs": 0}, {"shots": 0}, {"train_queries": -1}, {"noise": -1.0}, {"spread": -0.1}]
)
def test_wrong_options_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(mb.InputError, match=f"{name} = {value}"):
        mb.load_tasks("mixture")(**wrong)
