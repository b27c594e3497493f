"""Weight decays by implicit differentiation: closed forms, differences, and what the paper says of the series."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from metabilevel_implicit.hyperparameters import decays, penalty

import metabilevel as mb
from metabilevel import InputError

FEATURES = 5
LINEAR = mb.regression(mb.MLP(FEATURES, (), 1))
LOGISTIC = mb.classification(mb.MLP(FEATURES, (), 3, init_weights="zeros"))
TANH = mb.classification(mb.MLP(FEATURES, (4,), 3, "tanh"))
implicit_hpo, t1t2, weight_decay = (mb.load_method(name) for name in ("implicit-hpo", "t1t2", "weight-decay"))


class Regression(mb.TaskDistribution):
    """Few points of a linear function of the first two of `FEATURES` features, with noise."""

    subject: mb.Learner

    def sample(self, key, split):
        def points(key, n):
            k_inputs, k_noise = jax.random.split(key)
            inputs = jax.random.normal(k_inputs, (n, FEATURES))
            return mb.Data(inputs, inputs[:, :1] - 2 * inputs[:, 1:2] + jax.random.normal(k_noise, (n, 1)))

        support, valid, test = jax.random.split(jax.random.key(0), 3)  # one fixed task
        return mb.Episode(points(support, 12), points(test if split == "test" else valid, 400))


def task(learner: mb.Learner, key, n: int = 12) -> mb.Episode:
    """Random points, labelled by a noisy linear function of them."""
    k_inputs, k_truth, k_noise = jax.random.split(key, 3)
    inputs, truth = jax.random.normal(k_inputs, (2 * n, FEATURES)), jax.random.normal(k_truth, (FEATURES, 3))
    outputs = inputs @ truth + jax.random.normal(k_noise, (2 * n, 3))
    targets = outputs[:, :1] if learner is LINEAR else outputs.argmax(-1)
    return mb.Episode(mb.Data(inputs[:n], targets[:n]), mb.Data(inputs[n:], targets[n:]))


def at(method: mb.Method, x, episode: mb.Episode, key, start=None):
    """The direction of `method` for one task, from its own start or from the weights `start`."""
    batch = jax.tree.map(lambda a: a[None], episode)
    carry = method.estimator.init(x, batch, key)
    if start is not None:
        carry = jax.tree.map(lambda a: a[None], start), jnp.ones(1, bool)
    direction, _, info = jax.jit(method.estimator)(x, batch, carry, key)
    return direction, info


def perturbed(method: mb.Method, key):
    """The first decays, each times its own factor."""
    flat, unravel = ravel_pytree(method.init(key))
    return unravel(flat + jax.random.normal(key, flat.shape) / 2)


def close(found, expected, tolerance=1e-6):
    found, expected = ravel_pytree(found)[0], ravel_pytree(expected)[0]
    assert jnp.linalg.norm(expected) > 1e-3
    assert jnp.linalg.norm(found - expected) <= tolerance * jnp.linalg.norm(expected)


@pytest.mark.parametrize("inverse", ["cg", "dense", "neumann"])
def test_ridge_regression_with_a_decay_per_feature_has_a_closed_form(x64, key, inverse):
    terms = 3000 if inverse == "neumann" else FEATURES + 1
    method = implicit_hpo(LINEAR, per="weight", decay=0.1, inverse=inverse, terms=terms, steps=3000)
    episode, x = task(LINEAR, key), perturbed(method, key)
    beside_one = lambda data: jnp.concatenate([data.inputs, jnp.ones((len(data.inputs), 1))], 1)

    def validation_loss(x):
        a, b = beside_one(episode.support), episode.support.targets
        logs = jnp.concatenate([x["head"]["weights"][:, 0], x["head"]["bias"]])
        w = jnp.linalg.solve(2 * a.T @ a / len(a) + jnp.diag(jnp.exp(logs)), 2 * a.T @ b / len(a))
        return jnp.mean((beside_one(episode.query) @ w - episode.query.targets) ** 2)

    direction, info = at(method, x, episode, key)
    close(direction, jax.grad(validation_loss)(x))
    np.testing.assert_allclose(info.loss[0], validation_loss(x), rtol=1e-10)
    assert (info.certificate.result == mb.Result.success).all()


@pytest.mark.parametrize("per", ["net", "leaf", "weight"])
def test_logistic_regression_agrees_with_differences_of_the_solved_problem(x64, key, per):
    method = implicit_hpo(LOGISTIC, per=per, decay=0.1, inverse="cg", terms=40, steps=3000, test_steps=3000)
    episode, x = task(LOGISTIC, key), perturbed(method, key)
    flat, unravel = ravel_pytree(x)
    solved = jax.jit(lambda flat: method.test(unravel(flat), episode, key)["loss"])
    eps = 1e-4
    differences = [(solved(flat + step) - solved(flat - step)) / (2 * eps) for step in eps * jnp.eye(len(flat))]
    close(at(method, x, episode, key)[0], jnp.array(differences))


def test_a_shared_decay_has_the_sum_of_the_hypergradients(x64, key):
    directions = {}
    for per in ("net", "leaf", "weight"):
        method = implicit_hpo(LOGISTIC, per=per, decay=0.1, inverse="cg", terms=40, steps=3000)
        directions[per], _ = at(method, method.init(key), task(LOGISTIC, key), key)
    close(directions["leaf"], jax.tree.map(jnp.sum, directions["weight"]))
    close(directions["net"], ravel_pytree(directions["weight"])[0].sum())


def test_t1t2_takes_the_hessian_for_the_identity(x64, key):
    options = {"per": "weight", "decay": 0.1, "steps": 7}
    method, same = t1t2(LOGISTIC, **options), implicit_hpo(LOGISTIC, inverse="identity", **options)
    episode, x = task(LOGISTIC, key), perturbed(method, key)
    direction, info = at(method, x, episode, key)
    jax.tree.map(np.testing.assert_array_equal, direction, at(same, x, episode, key)[0])
    y = mb.GradientDescent(optax.sgd(0.1), 7).solve(method.problem, x, LOGISTIC.init(key), episode, key)
    slope = jax.grad(lambda y: LOGISTIC.fit(y, episode.query))(y)
    close(direction, jax.tree.map(lambda log, a, g: -jnp.exp(log) * a * g, x, y, slope))
    assert (info.certificate.result == mb.Result.inner_not_stationary).all()


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_steps_from_the_optimum_are_terms_of_the_series(x64, key, steps):
    """Section 3: k unrolled steps from the optimum are the series of terms 0 ... k - 1, scaled by the step size."""
    long = implicit_hpo(LOGISTIC, per="weight", decay=0.1, test_steps=20_000)
    episode, x = task(LOGISTIC, key), perturbed(long, key)
    optimum = long.adapt(x, episode, key)
    series = implicit_hpo(
        LOGISTIC, per="weight", inverse="neumann", terms=steps - 1, scale=0.3, learning_rate=0.3, steps=steps
    )
    unrolled = dataclasses.replace(series, estimator=dataclasses.replace(series.estimator, adjoint=mb.Unroll()))
    close(at(series, x, episode, key, optimum)[0], at(unrolled, x, episode, key, optimum)[0], 1e-10)


def test_shapes_of_the_decays(key):
    weights = TANH.init(key)
    assert decays(TANH, "net", 0.5, key).shape == ()
    leaves, each = decays(TANH, "leaf", 0.5, key), decays(TANH, "weight", 0.5, key)
    assert jax.tree.map(jnp.shape, leaves) == jax.tree.map(lambda _: (), weights)
    assert jax.tree.map(jnp.shape, each) == jax.tree.map(jnp.shape, weights)
    half = sum(jnp.sum(a**2) for a in jax.tree.leaves(weights)) / 4
    for per in ("net", "leaf", "weight"):
        np.testing.assert_allclose(penalty(decays(TANH, per, 0.5, key), weights), half, rtol=1e-5)


def test_weight_decay_is_implicit_hpo_for_every_weight(key):
    same = implicit_hpo(TANH, per="weight", terms=5, optimizer="adam", learning_rate=1e-3, steps=25)
    method, episode = weight_decay(TANH), task(TANH, key)
    x = method.init(key)
    close(at(method, x, episode, key)[0], at(same, x, episode, key)[0], 1e-6)


@pytest.mark.parametrize("inverse", ["cg", "neumann"])
def test_useless_features_are_decayed_away(key, inverse):
    tasks = Regression(LINEAR)
    method = implicit_hpo(LINEAR, per="weight", decay=1e-2, inverse=inverse, terms=6, steps=20)
    x, history = mb.fit(method, tasks, optax.adam(0.05), key=key, steps=100, meta_batch=1, progress=False)
    start, end = (mb.evaluate(method, a, tasks, key=key, episodes=1) for a in (method.init(key), x))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert end[None]["loss"].mean < 0.9 * start[None]["loss"].mean
    logs = x["head"]["weights"][:, 0]
    assert logs[2:].min() > logs[:2].max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inverse": "cg", "scale": 0.1}, r"scale = 0\.1: only the inverse 'neumann' has a scale, not 'cg'"),
        ({"inverse": "neumann", "damping": 0.1}, r"damping = 0\.1: only .* are damped, not 'neumann'"),
        ({"decay": 0.0}, r"decay = 0\.0: a positive number"),
        ({"decay": -1e-3}, r"decay = -0\.001: a positive number"),
        ({"steps": -1}, "steps = -1"),
        ({"terms": -1}, "terms = -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        implicit_hpo(LINEAR, **options)
