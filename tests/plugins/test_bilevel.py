"""The problems of the public bilevel benchmark: their definitions, beside plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_bilevel.quadratics import mean_form, value_function
from metabilevel_tasks.libsvm_data import PACKED
from problems import assert_close, directional

import metabilevel as mb
from metabilevel import InputError

SMALL = {"train": 50, "valid": 30, "inner_dimension": 6, "outer_dimension": 3}


@pytest.fixture
def quadratics(x64):
    return mb.load_tasks("bilevel-quadratics")(**SMALL)


@pytest.fixture
def ijcnn1(data_files):
    data_files("libsvm", *(file.filename for file in PACKED.files))
    return mb.load_tasks("bilevel-ijcnn1")


@pytest.fixture
def cleaning(data_files):
    data_files("mnist", "train-images-idx3-ubyte.gz")
    return mb.load_tasks("bilevel-cleaning")


def losses(tasks: mb.TaskDistribution, x, y, key, split="train"):
    """G and F with its metrics, of all examples."""
    problem, task = tasks.subject.problem, tasks.sample(key, split)
    return problem.inner_loss(x, y, task, key), *problem.objective(x, y, task, key)


def points(tasks: mb.TaskDistribution, key):
    """x and y at random, shaped as they start."""
    x = tasks.subject.init(key)
    y = tasks.subject.problem.init(x, tasks.sample(key, "train"), key)
    draw = lambda a, n: jax.random.normal(jax.random.fold_in(key, n), a.shape)
    return draw(x, 0), draw(y, 1)


def assert_means_of_blocks(tasks: mb.TaskDistribution, batch: int, key):
    """The weighted means of what the oracles see of each block are what they see of the whole."""
    oracles = mb.Oracles(tasks.subject.problem, tasks.sample(key, "train"), mb.Minibatches(batch))
    (x, y), v = points(tasks, key), points(tasks, jax.random.fold_in(key, 3))[1]
    inner = lambda at: oracles.inner_products(x, y, v, at)
    outer = lambda at: oracles.outer_gradients(x, y, at)
    for part, oracle in (("inner", inner), ("outer", outer)):
        weights = oracles.weights(part)
        assert len(weights) > 1
        assert weights[-1] < weights[0], "the last block ought to be a shorter one"
        rows = [oracle(mb.Sample(jnp.int32(block), key)) for block in range(len(weights))]
        mean = jax.tree.map(lambda *a, weights=weights: sum(w * b for w, b in zip(weights, a, strict=True)), *rows)
        assert_close(mean, oracle(mb.Sample(None, key)), 1e-12)


# quadratics


def test_quadratics_are_means_of_rank_one_terms(quadratics, key):
    x, y = points(quadratics, key)
    found = losses(quadratics, x, y, key)
    for part, value in zip(quadratics.task[:2], found, strict=False):
        (a, b, c, e), linear = jax.tree.map(np.asarray, part)
        each = [
            y @ np.outer(a[i], a[i]) @ y / 2 + x @ np.outer(b[i], b[i]) @ x / 2 + x @ np.outer(c[i], e[i]) @ y
            + linear[i, :6] @ y + linear[i, 6:] @ x
            for i in range(len(a))
        ]  # fmt: skip
        assert float(value) == pytest.approx(np.mean(each), rel=1e-12)


def test_their_hessians_have_the_spectra_that_were_asked_for(x64):
    tasks = mb.load_tasks("bilevel-quadratics")(
        train=200_000, valid=200_000, inner_dimension=4, outer_dimension=3, mu=0.1, cross=0.3
    )
    for part in tasks.task[:2]:
        m, linear = mean_form(part)
        np.testing.assert_allclose(np.linalg.eigvalsh(m[:4, :4]), np.geomspace(0.1, 1, 4), rtol=0.02)
        np.testing.assert_allclose(np.linalg.eigvalsh(m[4:, 4:]), [0, 0.1, 1], rtol=0.02, atol=1e-12)
        singular = np.linalg.svd(m[4:, :4], compute_uv=False)[::-1]
        np.testing.assert_allclose(singular, np.geomspace(0.1, 0.3, 3), rtol=0.05)
        assert float(jnp.abs(linear).max()) < 0.02
        np.testing.assert_allclose(part.targets.std(0), 1, rtol=0.02)


def test_their_examples_are_kept_as_factors():
    task = mb.load_tasks("bilevel-quadratics")(train=64, valid=64).task
    assert sum(a.size for a in jax.tree.leaves(task.support)) == 64 * 3 * 110


def test_their_value_function_is_that_of_a_linear_solve(quadratics, key):
    x, _ = points(quadratics, key)
    h, task = value_function(quadratics.task), quadratics.task
    problem, solver = quadratics.subject.problem, quadratics.subject.solver
    y = solver.solve(problem, x, None, task, key)
    assert_close(jax.grad(problem.inner_loss, 1)(x, y, task, key), jnp.zeros(6), 1e-12)
    at = lambda x: problem.outer_loss(x, solver.solve(problem, x, None, task, key), task, key)
    assert float(h(x)) == pytest.approx(float(at(x)), rel=1e-12)
    for direction in jnp.eye(3):
        slope = float(directional(at, x, direction))
        assert float(h.gradient(x) @ direction) == pytest.approx(slope, rel=1e-7)
    best = h.minimiser
    assert_close(h.gradient(best), jnp.zeros(3), 1e-12)
    assert float(h.gap(x)) == pytest.approx(float(h(x) - h(best)), rel=1e-10)
    assert all(h(best + step) > h(best) for step in 0.1 * jnp.concatenate([jnp.eye(3), -jnp.eye(3)]))


def test_blocks_of_quadratics_make_the_whole(quadratics, key):
    assert_means_of_blocks(quadratics, 16, key)


def test_quadratics_start_where_the_benchmark_does(quadratics, key):
    x = quadratics.subject.init(key)
    np.testing.assert_array_equal(x, [-2, -2, -2])
    np.testing.assert_array_equal(quadratics.subject.problem.init(x, quadratics.task, key), np.zeros(6))


# ijcnn1


def test_ijcnn1_is_all_of_it(ijcnn1, key):
    tasks = ijcnn1()
    assert tasks.task.support.inputs.shape == (49_990, 22)
    assert tasks.task.query.inputs.shape == (91_701, 22)
    assert set(np.unique(tasks.task.query.targets)) == {-1, 1}
    assert (tasks.task.query.targets > 0).mean() == pytest.approx(8712 / 91_701, abs=1e-6)


def test_its_losses_are_logistic_and_penalised(ijcnn1, key, x64):
    tasks = ijcnn1(train=40, valid=30)
    x, y = points(tasks, key)
    g, f, _ = losses(tasks, x, y, key)
    mean = lambda part: np.log1p(np.exp(-np.asarray(part.targets) * (np.asarray(part.inputs) @ np.asarray(y)))).mean()
    assert float(f) == pytest.approx(mean(tasks.task.query), rel=1e-12)
    penalty = sum(np.exp(a) * b**2 / 2 for a, b in zip(x.tolist(), y.tolist(), strict=True))
    assert float(g) == pytest.approx(mean(tasks.task.support) + penalty, rel=1e-12)


def test_it_starts_at_random_but_always_there(ijcnn1, key):
    tasks, other = ijcnn1(train=1, valid=1), ijcnn1(train=1, valid=1, seed=1)
    start = lambda tasks, key: tasks.subject.init(key)
    x = start(tasks, key)
    np.testing.assert_array_equal(x, start(tasks, jax.random.key(0)))
    assert not jnp.array_equal(x, start(other, key))
    assert (x < 0).all()
    assert float(jnp.exp(x).mean()) == pytest.approx(0.5, abs=0.2), "uniform numbers"


def test_its_inner_solver_reaches_the_minimum(ijcnn1, key, x64):
    tasks = ijcnn1(train=2000, valid=1000)
    problem, solver = tasks.subject.problem, tasks.subject.solver
    x = tasks.subject.init(key)
    y = solver.solve(problem, x, problem.init(x, tasks.task, key), tasks.task, key)
    assert float(jnp.linalg.norm(solver.residual(problem, x, y, tasks.task, key))) < 1e-5


def test_blocks_of_ijcnn1_make_the_whole_but_for_the_penalty_which_each_has(ijcnn1, key, x64):
    assert_means_of_blocks(ijcnn1(train=40, valid=30), 16, key)


# data cleaning


def test_cleaning_resamples_labels_and_standardises_pixels(cleaning, key):
    tasks = cleaning(corruption=0.5, train=4000, valid=1000)
    (pixels, number), labels = tasks.task.support
    np.testing.assert_array_equal(number, np.arange(4000))
    varied = np.asarray(pixels.std(0)) > 0
    np.testing.assert_allclose(pixels.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(pixels.std(0)[varied], 1, rtol=1e-3)
    assert 0.05 < 1 - varied.mean() < 0.2, "the border of MNIST is always black"
    assert tasks.task.truth["corrupted"].mean() == pytest.approx(0.45, abs=0.03), "a tenth is right by chance"
    assert np.bincount(labels, minlength=10).min() > 300
    test = tasks.sample(key, "test")
    assert test.query.inputs.shape == (10_000, 784)
    assert tasks.sample(key, "valid").query.inputs.shape == (1000, 784)
    assert cleaning(corruption=0.0, train=500, valid=10).task.truth["corrupted"].sum() == 0


def test_a_minibatch_finds_its_weights(cleaning, key, x64):
    tasks = cleaning(train=40, valid=30)
    x, y = points(tasks, key)
    y = y / 100  # few examples: a pixel that is nearly always black has large values
    g, f, metrics = losses(tasks, x, y, key)

    def each(pixels, labels):
        logits = np.asarray(pixels) @ np.asarray(y)
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels], logits.argmax(1)

    (pixels, _), labels = tasks.task.support
    weighted = each(pixels, labels)[0] / (1 + np.exp(-np.asarray(x)))
    assert float(g) == pytest.approx(weighted.mean() + 0.2 * (np.asarray(y) ** 2).sum(), rel=1e-12)
    entropies, guessed = each(*tasks.task.query)
    assert float(f) == pytest.approx(float(entropies.mean()), rel=1e-12)
    assert float(metrics["error"]) == pytest.approx((guessed != np.asarray(tasks.task.query.targets)).mean())
    assert_means_of_blocks(tasks, 16, key)


def test_cleaning_starts_where_the_benchmark_does(cleaning, key):
    tasks = cleaning(train=20, valid=10)
    x = tasks.subject.init(key)
    np.testing.assert_array_equal(x, np.full(20, -2))
    np.testing.assert_array_equal(tasks.subject.problem.init(x, tasks.task, key), np.zeros((784, 10)))
    solved = tasks.subject.solver.solve(tasks.subject.problem, x, jnp.zeros((784, 10)), tasks.task, key)
    residual = tasks.subject.solver.residual(tasks.subject.problem, x, solved, tasks.task, key)
    assert float(jnp.linalg.norm(residual)) < 1e-4


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train = 0: an integer of 1 or more"),
        ({"outer_dimension": 0}, "outer_dimension = 0: an integer of 1"),
        ({"mu": 0.0}, r"mu = 0\.0: an eigenvalue above 0"),
        ({"mu": 1.1}, r"mu = 1\.1: an eigenvalue above 0 and up to 1"),
        ({"cross": 0.0}, r"cross = 0\.0: a number above 0"),
        ({**SMALL, "cross": 10.0}, "no minimum.* Take another seed, more examples or less cross"),
    ],
)
def test_quadratics_refuse(options, message):
    with pytest.raises(InputError, match=message):
        mb.load_tasks("bilevel-quadratics")(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 49_991}, "train = 49991: ijcnn1 has 49,990 such examples"),
        ({"valid": 0}, "valid = 0: an integer of 1 or more"),
        ({"seed": -1}, "seed = -1: an integer of 0 or more"),
    ],
)
def test_ijcnn1_refuses(ijcnn1, options, message):
    with pytest.raises(InputError, match=message):
        ijcnn1(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": 1.5}, r"corruption = 1\.5: a probability"),
        ({"train": 59_000, "valid": 1001}, "train = 59000 and valid = 1001: there are 60,000"),
        ({"train": 0}, "train = 0: an integer of 1 or more"),
    ],
)
def test_cleaning_refuses(cleaning, options, message):
    with pytest.raises(InputError, match=message):
        cleaning(**options)


@pytest.mark.parametrize(("family", "method"), [("bilevel-quadratics", "soba"), ("bilevel-quadratics", "saba")])
def test_single_loop_methods_lower_the_value_function(family, method, key, x64):
    tasks = mb.load_tasks(family)(**{**SMALL, "train": 640, "valid": 320})
    chosen = mb.load_method(method)(tasks.subject, learning_rate=0.1, batch=32)
    h = value_function(tasks.task)
    x, _ = mb.fit(chosen, tasks, optax.sgd(0.1), key=key, steps=2000, meta_batch=1, progress=False)
    assert h.gap(x) < 0.05 * h.gap(tasks.subject.init(key))
