"""Families of optimizees: values, gradients and minima in closed form, the parts of data sets, the bytes of a run."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_optimizees.landscapes import LANDSCAPES

import metabilevel as mb
from metabilevel.commands.experiment import Experiment
from metabilevel.method import in_chunks
from metabilevel.training import _loop, start

DIGITS = [f"{part}-ubyte.gz" for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")]
SMALL = {
    "quadratics": {},
    "logistic": {},
    "test-functions": {},
    "mnist-training": {"images": 500, "side": 14, "hidden": 4, "batch": 8},
    "cifar-training": {"images": 100, "classes": 2, "filters": 2, "blocks": 1, "batch": 8},
}


@pytest.fixture
def make(data_files):
    """A family by name, skipped where its data are absent."""

    def family(name, **options):
        if name == "mnist-training":
            data_files("mnist", *DIGITS)
        if name == "cifar-training":
            data_files("cifar", "cifar10_train_subset.npz", "cifar10_test_subset.npz")
        return mb.load_tasks(name)(**options)

    return family


@pytest.mark.parametrize("name", SMALL)
def test_a_function_is_its_keys(name, make, key):
    tasks = make(name, **SMALL[name])
    optimizee, other = tasks.subject, jax.random.key(8)

    def values(k_task, k_start, k_loss):
        task = tasks.sample(k_task, "train")
        y = jax.tree.map(lambda a: a + 0.1, optimizee.init(task, k_start))
        return y, (optimizee.loss(y, task, k_loss), optimizee.judge(y, task, k_loss))

    y, said = values(key, key, key)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), y) == jax.tree.map(lambda a: (a.shape, a.dtype), optimizee.shapes)
    jax.tree.map(np.testing.assert_array_equal, (y, said), values(key, key, key))
    assert all(np.isfinite(leaf) and leaf.shape == () for leaf in jax.tree.leaves(said))
    assert values(other, other, other)[1][0] != said[0]


def test_a_run_prints_the_protocol_of_its_optimizee():
    tasks = mb.load_tasks("quadratics")(law="uniform")
    protocol = Experiment.protocol.fget(SimpleNamespace(tasks=tasks))
    assert protocol == tasks.subject.protocol == "|W y - t|^2; W, t ~ U[0, 1); y0 ~ N(0, .01^2)"


@pytest.mark.parametrize(("law", "start"), [("gaussian", 10.0), ("uniform", 10 / 3)])
def test_quadratics(law, start, key, x64):
    tasks = mb.load_tasks("quadratics")(law=law)
    optimizee, task = tasks.subject, tasks.sample(key, "train")
    y = jax.random.normal(key, (10,))
    value, gradient = jax.value_and_grad(optimizee.loss)(y, task, key)
    rest = task.matrix @ y - task.target
    np.testing.assert_allclose([value, *gradient], [rest @ rest, *(2 * task.matrix.T @ rest)])
    assert optimizee.loss(jnp.linalg.solve(task.matrix, task.target), task, key) < 1e-20
    keys = jax.random.split(key, 20_000)
    draw = lambda k: optimizee.loss(optimizee.init(task, k), tasks.sample(k, "test"), k)
    values = jax.vmap(draw)(keys)
    assert abs(values.mean() - start) < (0.01 if law == "uniform" else 0) + 3 * values.std() / len(keys) ** 0.5


def test_logistic_regression_is_convex_with_its_gradient_in_closed_form(key, x64):
    tasks = mb.load_tasks("logistic")(dimension=4, examples=30, penalty=0.1)
    optimizee, rows = tasks.subject, tasks.sample(key, "train")
    assert rows.shape == (30, 4)
    np.testing.assert_allclose(optimizee.loss(optimizee.init(rows, key), rows, key), np.log(2))
    y = jax.random.normal(key, (4,))
    expected = -(rows / (1 + np.exp(rows @ y))[:, None]).mean(0) + 0.1 * y
    np.testing.assert_allclose(jax.grad(optimizee.loss)(y, rows, key), expected)
    assert np.linalg.eigvalsh(jax.hessian(optimizee.loss)(y, rows, key)).min() > 0.1
    newton = lambda y, _: (y - jnp.linalg.solve(jax.hessian(optimizee.loss)(y, rows, key), gradient(y)), None)
    gradient = lambda y: jax.grad(optimizee.loss)(y, rows, key)
    y, _ = jax.lax.scan(newton, jnp.zeros(4), None, 20)
    np.testing.assert_allclose(gradient(y), 0, atol=1e-12)
    loss, metrics = optimizee.judge(y, rows, key)
    assert 0 < loss < np.log(2)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(rows @ y > 0))


@pytest.mark.parametrize(
    ("name", "minimum", "minimisers", "point", "value"),
    [
        ("ackley", 0, [(0, 0)], (1, 1), 22 - 2 + np.e - 20 * np.exp(-0.2) - np.e),
        ("beale", 0, [(3, 0.5)], (0, 0), 1.5**2 + 2.25**2 + 2.625**2),
        ("booth", 0, [(1, 3)], (0, 0), 74),
        ("branin", 1.25 / np.pi, [(np.pi, 2.275), (-np.pi, 12.275), (3 * np.pi, 2.475)], (0, 6), 20 - 1.25 / np.pi),
        ("himmelblau", 0, [(3, 2), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)], (0, 0), 170),
        ("rastrigin", 0, [(0, 0)], (0.5, -0.5), 40.5),
        ("rosenbrock", 0, [(1, 1)], (-1.2, 1), 24.2),
        ("styblinski-tang", -39.16617, [(-2.903534, -2.903534)], (1, -1), -7.5),
    ],
)
def test_test_functions(name, minimum, minimisers, point, value, key, x64):
    function = LANDSCAPES[name].function
    np.testing.assert_allclose(function(jnp.array(point, float)), value)
    tasks = mb.load_tasks("test-functions")(function=name)
    task = tasks.sample(key, "test")
    for minimiser in minimisers:
        x = jnp.array(minimiser, float)
        np.testing.assert_allclose(function(x), minimum, atol=1e-5)
        np.testing.assert_allclose(jax.grad(function)(x), 0, atol=1e-3)  # six digits of some minimisers
        y = (x - tasks.subject.centres[0]) / tasks.subject.radii[0]
        loss, metrics = tasks.subject.judge(y, task, key)
        np.testing.assert_allclose([loss, metrics["excess"]], 0, atol=1e-5)
    keys = jax.random.split(key, 20_000)
    starts = jax.vmap(lambda k: tasks.subject.init(task, k))(keys)
    assert abs(starts).max() <= 1
    losses = jax.vmap(lambda y: tasks.subject.loss(y, task, key))(starts)
    assert losses.min() >= 0
    np.testing.assert_allclose(losses.mean(), 1, rtol=0.1)


@pytest.mark.parametrize("name", ["ackley", "rastrigin", "rosenbrock", "styblinski-tang"])
def test_functions_of_many_dimensions(name, key, x64):
    tasks = mb.load_tasks("test-functions")(function=name, dimension=5)
    optimizee, task = tasks.subject, jnp.int32(0)
    least = (LANDSCAPES[name].minimiser - optimizee.centres[0]) / optimizee.radii[0]
    value, gradient = jax.value_and_grad(optimizee.loss)(least, task, key)
    np.testing.assert_allclose([value, *gradient], 0, atol=1e-7)


def test_all_functions_are_drawn(key):
    tasks = mb.load_tasks("test-functions")()
    assert set(mb.sample_batch(tasks, key, "train", 200).tolist()) == set(range(len(LANDSCAPES)))
    y = jnp.array([0.3, -0.2])
    for i, name in enumerate(LANDSCAPES):
        alone = mb.load_tasks("test-functions")(function=name).subject.loss(y, jnp.int32(0), key)
        np.testing.assert_allclose(tasks.subject.loss(y, jnp.int32(i), key), alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "coordinates"),
    [({}, 15_910), ({"hidden": 40}, 31_810), ({"layers": 2}, 16_330), ({"side": 14}, 4_150)],
)
def test_the_coordinates_of_a_network_on_digits(options, coordinates, make, key):
    tasks = make("mnist-training", **options)
    assert sum(a.size for a in jax.tree.leaves(tasks.subject.shapes)) == coordinates
    y = tasks.subject.init(tasks.sample(key, "train"), key)
    values = np.concatenate([a.ravel() for a in jax.tree.leaves(y)])
    np.testing.assert_allclose([values.mean(), values.std()], [0, 0.01], atol=5e-4)


@pytest.mark.parametrize(
    ("name", "sizes", "tested"), [("mnist-training", (50_000, 10_000, 10_000), 7), ("cifar-training", None, 0)]
)
def test_splits_are_parts_of_the_images_without_a_common_one(name, sizes, tested, make, key):
    tasks = make(name)
    parts = [tasks.sample(key, split) for split in ("train", "valid", "test")]
    assert sizes in (None, tuple(int(part.size) for part in parts))
    ends = np.cumsum([int(part.size) for part in parts])
    assert [int(part.first) for part in parts] == [0, *ends[:-1]]
    assert ends[-1] == len(tasks.subject.images) == len(tasks.subject.labels)
    assert tasks.subject.images.dtype == tasks.subject.labels.dtype == jnp.uint8
    assert tasks.subject.labels[ends[1]] == tested  # the first image of the official test
    # What is drawn of a split are images of it: here those whose labels say so.
    counted = jnp.concatenate([jnp.full(int(part.size), i, jnp.uint8) for i, part in enumerate(parts)])
    marked = dataclasses.replace(tasks.subject, labels=counted)
    for i, part in enumerate(parts):
        drawn = marked._draw(part, key, 5000)
        assert set(drawn.targets.tolist()) == {i}
    fewer = make(name, images=300)
    assert int(fewer.sample(key, "train").size) == 300
    np.testing.assert_array_equal(fewer.subject.images[:300], tasks.subject.images[:300])
    np.testing.assert_array_equal(fewer.subject.images[300:], tasks.subject.images[ends[0] :])


def test_the_loss_of_a_training_is_the_cross_entropy_of_its_minibatch(make, key, x64):
    tasks = make("mnist-training", **SMALL["mnist-training"])
    optimizee, task = tasks.subject, tasks.sample(key, "valid")
    y = jax.tree.map(lambda a: 30 * a, optimizee.init(task, key))
    images, labels = optimizee._draw(task, key, 8)
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
    hidden = 1 / (1 + np.exp(-(images.reshape(8, -1) @ y["body"][0]["weights"] + y["body"][0]["bias"])))
    outputs = hidden @ y["head"]["weights"] + y["head"]["bias"]
    entropy = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(8), labels]
    np.testing.assert_allclose(optimizee.loss(y, task, key), entropy.mean())
    (slope,) = jax.jvp(lambda y: optimizee.loss(y, task, key), (y,), (y,))[1:]
    at = lambda e: optimizee.loss(jax.tree.map(lambda a: (1 + e) * a, y), task, key)
    np.testing.assert_allclose(slope, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6)
    loss, metrics = optimizee.judge(jax.tree.map(jnp.zeros_like, y), task, key)
    np.testing.assert_allclose(loss, np.log(10))
    np.testing.assert_allclose(metrics["accuracy"], 0.1, atol=0.04)


@pytest.mark.parametrize("name", ["mnist-training", "cifar-training"])
def test_the_data_are_neither_carried_by_a_run_nor_a_constant_of_the_program(name, make, key):
    """Of eight times the images nothing grows but the argument that they are."""
    sizes = []
    for images in (100, 800):
        tasks = make(name, **{**SMALL[name], "images": images})
        method = in_chunks(mb.load_method("lstm")(tasks.subject, units=2, layers=1, steps=4, window=2), None)
        state = start(method, tasks, optax.sgd(0.1), key, 3)
        program = _loop.lower(method, tasks, optax.sgd(0.1), 3, state, key, jnp.int32(1))
        assert len(program.as_text()) < size(tasks.subject.images)
        temporaries = program.compile().compiled.memory_analysis().temp_size_in_bytes
        sizes.append((size(state.carry.task), size(state.carry), temporaries))
    assert sizes[0] == sizes[1]
    coordinates = size(tasks.subject.shapes) // 4
    run = 8 + 8 + 4 + 4 * coordinates * (1 + 2 * 2)  # task, key, steps done; y, and the states of two units
    assert sizes[0][:2] == (3 * 8, 3 * run)


def size(tree):
    """Bytes."""
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("quadratics", {"dimension": 0}, "dimension = 0: an integer of 1 or more"),
        ("quadratics", {"law": "cauchy"}, "law.*'cauchy'.*gaussian, uniform"),
        ("logistic", {"examples": 0}, "examples = 0"),
        ("logistic", {"penalty": -1.0}, "penalty = -1.0: a number of 0 or more"),
        ("test-functions", {"dimension": 1}, "dimension = 1: an integer of 2 or more"),
        ("test-functions", {"dimension": 3, "function": "beale"}, "dimension = 3: beale has 2. .* ackley, rastrigin"),
        ("test-functions", {"function": "roastrigin"}, "Did you mean 'rastrigin'"),
        ("mnist-training", {"images": 50_001}, "images = 50001: there are 50,000"),
        ("mnist-training", {"images": 0}, "images = 0"),
        ("mnist-training", {"batch": 0}, "batch = 0"),
        ("mnist-training", {"hidden": 0}, "hidden = 0"),
        ("mnist-training", {"layers": 0}, "layers = 0"),
        ("mnist-training", {"side": 20}, "side.*20.*28, 14"),
        ("mnist-training", {"deviation": -0.1}, "deviation = -0.1"),
        ("cifar-training", {"classes": 11}, "classes = 11: CIFAR-10 has 10"),
        ("cifar-training", {"classes": 1}, "classes = 1"),
        ("cifar-training", {"filters": 0}, "filters = 0"),
        ("cifar-training", {"blocks": 6}, "blocks = 6: nothing is left"),
    ],
)
def test_wrong_options_are_refused_in_one_line(name, wrong, said, make):
    with pytest.raises(mb.InputError, match=said) as caught:
        make(name, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mnist-training", "mnist/train-images-idx3-ubyte.gz"),
        ("cifar-training", "cifar10/cifar-10-python.tar.gz"),
    ],
)
def test_broken_data_are_named(name, path, tmp_path, monkeypatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_bytes(b"cut off")
    with pytest.raises(mb.InputError, match=f"{path} is truncated or altered"):
        mb.load_tasks(name)()
