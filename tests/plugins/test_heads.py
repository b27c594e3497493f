"""Heads in closed form: each solves the inner problem that it states, and its gradient is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_fewshot.ridge import logistic_regression, ridge_regression
from problems import assert_close, directional, dot, like

import metabilevel as mb

NAMES = ["r2d2", "lrd2", "metaoptnet", "protonet", "nil"]


class Blobs(mb.TaskDistribution):
    """Classes are clusters of points; test tasks have fewer of them."""

    subject: mb.Learner
    ways: int = 4

    def sample(self, key, split):
        ways = self.ways if split == "train" else self.ways - 1
        k_centres, *keys = jax.random.split(key, 3)
        centres, labels = jax.random.normal(k_centres, (ways, 6)), jnp.repeat(jnp.arange(ways), 3)
        draw = lambda k: mb.Data(centres[labels] + 0.8 * jax.random.normal(k, (len(labels), 6)), labels)
        return mb.Episode(*map(draw, keys))


def blobs():
    return Blobs(mb.classification(mb.MLP(6, (10,), 4, "tanh")))


def setting(name, **options):
    tasks = blobs()
    method = mb.load_method(name)(tasks.subject, **options)
    return method, method.init(jax.random.key(0)), mb.sample_batch(tasks, jax.random.key(1), "train", 3)


def direction(method, x, batch):
    return method.estimator(x, batch, method.estimator.init(x, batch, jax.random.key(2)), jax.random.key(2))


@pytest.mark.parametrize(("n", "d"), [(5, 40), (40, 5), (7, 7)])
def test_ridge_is_the_primal_solution_whichever_system_is_smaller(n, d, x64):
    inputs, targets = np.random.default_rng(0).normal(size=(n, d)), np.random.default_rng(1).normal(size=(n, 3))
    primal = np.linalg.solve(inputs.T @ inputs + 0.3 * np.eye(d), inputs.T @ targets)
    np.testing.assert_allclose(
        ridge_regression(jnp.asarray(inputs), jnp.asarray(targets), jnp.asarray(0.3)), primal, atol=1e-8
    )


def test_newton_steps_converge_to_the_logistic_regression(x64):
    rng = np.random.default_rng(0)
    inputs, labels = jnp.asarray(rng.normal(size=(12, 5))), jax.nn.one_hot(jnp.arange(12) % 3, 3)

    def loss(w):
        return jnp.sum(optax.sigmoid_binary_cross_entropy(inputs @ w, labels)) + 0.5 * jnp.sum(w**2) / 2

    gradients = [
        jnp.abs(jax.grad(loss)(logistic_regression(inputs, labels, jnp.asarray(0.5), k))).max() for k in (1, 3, 8)
    ]
    assert gradients[0] > 10 * gradients[1]
    assert gradients[2] < 1e-12


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in NAMES[:4]] + [("nil", {"train": "nil"})])
def test_the_direction_is_the_gradient_of_the_reported_loss(name, options, x64):
    method, x, batch = setting(name, **options)
    v = like(x, jax.random.key(3))
    loss = jax.jit(lambda x: direction(method, x, batch)[2].loss.mean())
    np.testing.assert_allclose(dot(direction(method, x, batch)[0], v), directional(loss, x, v), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("r2d2", {}), ("metaoptnet", {}), ("metaoptnet", {"solver": "interior-point"}), ("protonet", {})],
)
def test_the_head_solves_the_inner_problem_that_is_stated(name, options, x64):
    residuals = direction(*setting(name, **options))[2].certificate.inner_residual
    np.testing.assert_allclose(residuals, 0, atol=1e-6)


def test_a_short_logistic_regression_says_that_it_is_not_converged(x64):
    short, long = (direction(*setting("lrd2", iterations=k))[2].certificate.inner_residual for k in (1, 10))
    assert (short > 1e-2).all()
    assert (long < 1e-10).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_task_may_have_fewer_classes_than_in_training(name):
    method, x, _ = setting(name)
    scores = mb.evaluate(method, x, blobs(), key=jax.random.key(4), episodes=200)[None]
    assert np.isfinite(scores["loss"].mean)
    assert scores["accuracy"].mean > 0.6  # chance is a third


def test_duplicates_in_the_support_set_are_no_singularity():
    method, x, batch = setting("r2d2", ridge=1e-3)
    batch = batch._replace(support=jax.tree.map(lambda a: jnp.repeat(a[:, ::3], 3, 1), batch.support))
    gradient, _, info = direction(method, x, batch)
    assert info.finite.all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_ridge_fits_regression_too():
    tasks = mb.load_tasks("sinusoid")(network="tanh-64-64", shots=10)
    method = mb.load_method("r2d2")(tasks.subject, ridge=1e-3)
    x, _ = mb.fit(method, tasks, optax.adam(3e-3), key=jax.random.key(0), steps=300, meta_batch=8)
    assert mb.evaluate(method, x, tasks, key=jax.random.key(1), episodes=100)[None]["loss"].mean < 0.5


def test_the_ridge_head_of_metaoptnet_is_that_of_r2d2_with_a_fixed_ridge():
    options = {"ridge": 0.3, "scale": 5.0}
    fixed, x, batch = setting("metaoptnet", head="ridge", **options)
    learned, start, _ = setting("r2d2", **options)
    gradient = direction(learned, start, batch)[0]
    del gradient["log_ridge"]
    assert_close(direction(fixed, x, batch)[0], gradient, 1e-6)


def test_nil_takes_the_body_that_anil_trains():
    method, x, batch = setting("nil", learning_rate=0.2, steps=3)
    trained = mb.load_method("anil")(blobs().subject, learning_rate=0.2, steps=3)
    assert_close(direction(method, x, batch)[0], direction(trained, x, batch)[0], 0.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("r2d2", {"ridge": 0.0}, "ridge = 0.0: a positive"),
        ("lrd2", {"ridge": -1.0}, "ridge = -1.0: a positive"),
        ("lrd2", {"iterations": 0}, "iterations = 0: a positive"),
        ("metaoptnet", {"c": 0.0}, "c = 0.0: a positive"),
        ("metaoptnet", {"c": -2.0}, "c = -2.0: a positive"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(mb.InputError, match=message):
        setting(name, **options)


@pytest.mark.parametrize("name", ["lrd2", "metaoptnet", "protonet"])
def test_heads_of_classes_refuse_regression(name, key):
    tasks = mb.load_tasks("sinusoid")()
    method = mb.load_method(name)(tasks.subject)
    with pytest.raises(mb.InputError, match="targets of these tasks are float32"):
        mb.fit(method, tasks, optax.sgd(0.1), key=key, steps=1, meta_batch=2)
