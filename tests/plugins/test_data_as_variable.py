"""Data as the outer variable: exact hypergradients, feasible weights, and what is learned."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_implicit.weights import capped, detection
from problems import assert_close, directional, dot, like

import metabilevel as mb

N = 24  # training examples


class Blobs(mb.TaskDistribution):
    """One task of three clusters of points in the plane; the first training labels are wrong."""

    subject: mb.Learner
    wrong: int = N // 3

    def sample(self, key, split):
        centres = jnp.asarray([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]])

        def draw(seed):
            labels = jnp.arange(N) % 3
            return mb.Data(centres[labels] + 0.5 * jax.random.normal(jax.random.key(seed), (N, 2)), labels)

        clean, wrong = draw(0), jnp.arange(N) < self.wrong
        support = clean._replace(targets=jnp.where(wrong, (clean.targets + 1) % 3, clean.targets))
        return mb.Episode(support, draw(2 if split == "test" else 1), {"corrupted": wrong})


@pytest.fixture
def tasks():
    return Blobs(mb.classification(mb.MLP(2, (), 3)))


@eqx.filter_jit
def direction(method, tasks, x):
    batch, key = mb.sample_batch(tasks, jax.random.key(1), "train", 1), jax.random.key(2)
    return method.estimator(x, batch, method.estimator.init(x, batch, key), key)


def point(method):
    """An x away from the start, where the projection has weights at 0, at 1 and between."""
    start = method.init(jax.random.key(0))
    return jax.tree.map(lambda a, b: a + 0.7 * b, start, like(start, jax.random.key(3)))


CLEANING = {"examples": N, "steps": 4, "adjoint": "unroll"}
EXACT = [
    ("distillation", {}),
    ("distillation", {"soft_labels": True, "learn_rate": True, "per_class": 2, "batch": 5}),
    ("distillation", {"optimizer": "momentum", "decay": 0.1}),
    ("hypercleaning", CLEANING),
    ("hypercleaning", CLEANING | {"constraint": "l1-ball", "optimizer": "adam"}),
    ("reweighting", {"batch": None}),
    ("reweighting", {"batch": 7}),
    ("learned-schedules", {"steps": 7, "batch": 5}),
    ("learned-schedules", {"steps": 4, "batch": None, "learn": "all", "init_scale": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), EXACT)
def test_the_direction_is_the_gradient_of_the_reported_loss(name, options, tasks, x64):
    method = mb.load_method(name)(tasks.subject, **options)
    x = point(method)
    v = like(x, jax.random.key(4))
    found, expected = direction(method, tasks, x)[0], lambda x: direction(method, tasks, x)[2].loss.mean()
    np.testing.assert_allclose(dot(found, v), directional(expected, x, v), rtol=1e-5)
    assert abs(dot(found, v)) > 1e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("distillation", {}),
        ("distillation", {"soft_labels": True}),
        ("hypercleaning", {"examples": N}),
        ("hypercleaning", {"examples": N, "constraint": "l1-ball", "radius": 10.0}),
    ],
)
def test_at_the_minimum_implicit_is_a_long_unroll(name, options, tasks, x64):
    make = lambda adjoint: mb.load_method(name)(
        tasks.subject, adjoint=adjoint, inverse="dense", decay=0.1, learning_rate=0.5, steps=800, **options
    )
    unrolled, implicit = make("unroll"), make("implicit")
    x = point(unrolled)
    assert_close(direction(implicit, tasks, x)[0], direction(unrolled, tasks, x)[0], 1e-8)


@pytest.mark.parametrize("radius", [0.5, 3.0, 6.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_capped_is_the_projection(radius, seed, x64):
    x = 1.5 * jax.random.normal(jax.random.key(seed), (12,))
    w = capped(x, radius)
    assert w.min() >= 0
    assert w.max() <= 1
    assert w.sum() <= radius + 1e-12
    # the nearest point w of a convex set, and no other, has (x - w) v <= (x - w) w for all v of the set
    best = jnp.sort(jnp.maximum(x - w, 0))[::-1]
    filled = jnp.clip(radius - jnp.arange(len(x)), 0, 1)
    assert best @ filled <= (x - w) @ w + 1e-10
    v, u = like(x, jax.random.key(7)), like(x, jax.random.key(8))
    slope = jax.grad(lambda x: capped(x, radius) @ u)(x)
    np.testing.assert_allclose(slope @ v, directional(lambda x: capped(x, radius) @ u, x, v), rtol=1e-6, atol=1e-9)


def test_precision_recall_and_f1():
    found, wrong = jnp.asarray([1, 1, 1, 0, 0], bool), jnp.asarray([1, 0, 0, 1, 0], bool)
    scores = detection(found, wrong)
    np.testing.assert_allclose([scores[k] for k in ("precision", "recall", "f1")], [1 / 3, 1 / 2, 2 / 5], rtol=1e-6)
    assert all(score == 0 for score in detection(found & False, wrong & False).values())


@pytest.mark.parametrize(
    "options", [{}, {"constraint": "l1-ball", "radius": N * 2 / 3, "threshold": 1e-3}, {"adjoint": "unroll"}]
)
def test_hypercleaning_finds_the_wrong_labels(options, tasks):
    method = mb.load_method("hypercleaning")(tasks.subject, examples=N, learning_rate=0.5, **options)
    x, _ = mb.fit(method, tasks, optax.adam(0.1), key=jax.random.key(0), steps=150, meta_batch=1)
    found = mb.evaluate(method, x, tasks, key=jax.random.key(0), episodes=1)[None]
    assert found["precision"].mean == found["recall"].mean == found["f1"].mean == 1


def test_three_points_are_distilled(tasks):
    tasks = Blobs(tasks.subject, wrong=0)
    method = mb.load_method("distillation")(tasks.subject, learn_rate=True)
    x, _ = mb.fit(method, tasks, optax.adam(0.05), key=jax.random.key(0), steps=200, meta_batch=1)
    accuracy = lambda x: mb.evaluate(method, x, tasks, key=jax.random.key(0), episodes=1)[None]["accuracy"].mean
    assert accuracy(x) >= 0.95
    assert accuracy(method.init(jax.random.key(0))) < 0.8
    assert x["inputs"].shape == (3, 2)


def test_a_schedule_without_momentum_is_plain_descent(tasks):
    method = mb.load_method("learned-schedules")(tasks.subject, learning_rate=0.2, momentum=1e-9, steps=3, batch=None)
    x, task, key = method.init(jax.random.key(0)), tasks.sample(jax.random.key(1), "train"), jax.random.key(2)
    start = method.problem.begin(x, task, key)[1]
    expected = start
    for _ in range(3):
        slope = jax.grad(tasks.subject.fit)(expected, task.support)
        expected = jax.tree.map(lambda a, g: a - 0.2 * g, expected, slope)
    assert_close(method.adapt(x, task, key), expected, 1e-5)


def test_reweighting_learns_that_a_large_loss_means_a_wrong_label(tasks):
    method = mb.load_method("reweighting")(tasks.subject, hidden=20)
    x, _ = mb.fit(method, tasks, optax.adam(0.01), key=jax.random.key(0), steps=400, meta_batch=1)
    net = mb.MLP(1, (20,), 1)
    small, large = net.head(x["head"], net.body(x["body"], jnp.asarray([[0.1], [3.0]])))[:, 0]
    assert small > large + 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("distillation", {"learn_rate": True, "adjoint": "implicit"}, "a minimum does not depend on the rate"),
        ("distillation", {"learn_rate": True, "optimizer": "adam"}, "only the rate of the optimizer 'sgd'"),
        ("distillation", {"learn_rate": True, "learning_rate": -0.1}, "its logarithm is learned"),
        ("distillation", {"per_class": 0}, "per_class = 0"),
        ("distillation", {"batch": 0}, "batch = 0"),
        ("hypercleaning", {"examples": 0}, "examples = 0"),
        ("hypercleaning", {"examples": 5}, "examples = 5: the support set has 24"),
        ("hypercleaning", {"radius": 5.0}, "radius = 5.0"),
        ("hypercleaning", {"constraint": "l1-ball", "radius": -1.0}, "radius = -1.0"),
        ("learned-schedules", {"momentum": 1.0}, "momentum = 1.0"),
        ("learned-schedules", {"learning_rate": 0.0}, "learning_rate = 0.0"),
        ("learned-schedules", {"init_scale": -1.0}, "init_scale = -1.0"),
        ("learned-schedules", {"batch": 0}, "batch = 0"),
        ("reweighting", {"batch": 0}, "batch = 0"),
        ("reweighting", {"hidden": 0}, "widths = 0"),
    ],
)
def test_wrong_options_are_refused(name, options, message, tasks):
    train = lambda method: mb.fit(method, tasks, optax.sgd(0.1), key=jax.random.key(0), steps=1, meta_batch=1)
    with pytest.raises(mb.InputError, match=message):
        train(mb.load_method(name)(tasks.subject, **options))
