"""One data set cut in three: the idx files, the cut, the wrong labels, and what is learned from it."""

import gzip
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_tasks.cifar_data import PACKED10, PACKED100, photographs
from metabilevel_tasks.mnist_data import FASHION_MNIST, MNIST, read_idx
from metabilevel_tasks.splits import Examples, hold_out

import metabilevel as mb
from metabilevel import InputError, data
from metabilevel.data import DataError


@pytest.fixture
def files(data_files):
    """Images, uint8 [n, h, w, c], and labels of a family, by the name of the part."""

    def grey(dataset: data.DataSet):
        data_files(dataset.name, *(file.filename for file in dataset.files))
        arrays, parts = data.load(dataset), ("train", "test")
        return {p: arrays[f"{p}_images"][..., None] for p in parts}, {p: arrays[f"{p}_labels"] for p in parts}

    def colour(classes: Literal[10, 100], packed: data.DataSet):
        data_files(packed.name, *(file.filename for file in packed.files))
        parts = photographs(classes)
        labels = {part: np.repeat(np.arange(classes), images.shape[1]) for part, images in parts.items()}
        return {part: images.reshape(-1, 32, 32, 3) for part, images in parts.items()}, labels

    family = {
        "mnist": lambda: grey(MNIST),
        "fashion-mnist": lambda: grey(FASHION_MNIST),
        "cifar10": lambda: colour(10, PACKED10),
        "cifar100": lambda: colour(100, PACKED100),
    }
    return lambda name: family[name]()


@pytest.fixture
def mnist(data_files):
    data_files("mnist", *(file.filename for file in MNIST.files))
    return mb.load_tasks("mnist")


def rows(part: mb.Data) -> list[bytes]:
    return [image.tobytes() for image in np.asarray(part.inputs)]


def test_an_idx_file_is_read(tmp_path):
    expected = np.random.default_rng(0).integers(0, 256, (3, 4, 300)).astype(np.uint8)
    sizes = b"".join(size.to_bytes(4) for size in expected.shape)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes + expected.tobytes()))
    np.testing.assert_array_equal(read_idx(tmp_path / "a.gz"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with nothing"),
        (b"\0\0\x08", "it begins with 00 00 08"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "it begins with 00 00 0d 01"),
        (b"\0\0\x08\3\0\0\0\1", "buffer is smaller"),
        (b"\0\0\x08\1\0\0\0\2a", "cannot reshape array of size 1"),
        (b"\0\0\x08\1\0\0\0\2abc", "cannot reshape array of size 3"),
    ],
)
def test_a_malformed_idx_file_is_named(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=rf"a\.gz is no gzipped idx file of unsigned bytes: .*{message}"):
        read_idx(tmp_path / "a.gz")


def test_a_truncated_idx_file_is_named(tmp_path):
    whole = gzip.compress(b"\0\0\x08\1\0\0\1\0" + bytes(range(256)))
    for length in range(0, len(whole), 20):
        (tmp_path / "cut.gz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.gz is no gzipped idx file"):
            read_idx(tmp_path / "cut.gz")


def test_missing_data_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="metabilevel data fetch mnist"):
        mb.load_tasks("mnist")()


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        ("mnist", 0.1307, 0.3081),
        ("fashion-mnist", 0.2860, 0.3530),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ],
)
def test_images_are_those_of_the_files_and_standardised(files, family, mean, std):
    tasks, images, labels = mb.load_tasks(family)(train=300, valid=200, test=100), *files(family)
    statistics = [(images["train"] / 255).mean((0, 1, 2)), (images["train"] / 255).std((0, 1, 2))]
    np.testing.assert_allclose(statistics, np.reshape([mean, std], (2, -1)), atol=6e-5 if "mnist" in family else 3e-3)
    for part, origin in {"train": "train", "valid": "train", "test": "test"}.items():
        known = {image.tobytes(): label for image, label in zip(images[origin], labels[origin], strict=True)}
        inputs, targets = getattr(tasks, part)
        pixels = (np.asarray(inputs) * std + mean) * 255
        np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
        assert [known[image.tobytes()] for image in np.rint(pixels).astype(np.uint8)] == targets.tolist()


def test_the_query_is_for_validation_or_for_the_test_and_the_support_is_one(mnist, key):
    tasks = mnist(train=30, valid=20, test=10)
    train, valid, test = (
        tasks.sample(k, s) for k, s in zip(jax.random.split(key, 3), ("train", "valid", "test"), strict=True)
    )
    for episode in (train, valid, test):
        assert episode.id is None
        np.testing.assert_array_equal(episode.support.inputs, tasks.train.inputs)
        np.testing.assert_array_equal(episode.support.targets, tasks.train.targets)
    assert [rows(e.query) == rows(tasks.valid) for e in (train, valid, test)] == [True, True, False]
    assert rows(test.query) == rows(tasks.test)
    assert tasks.subject.protocol == (
        "no batch statistics; 30 training and 20 validation examples of 60,000, 10 test examples of 10,000"
    )


def cut(*, train=30, valid=20, test=10, seed=0, noise=0.0):
    """The cut of 4,000 training and 100 test examples whose inputs are their numbers, the latter from 4,000."""
    number = np.arange(4100)
    training, testing = (Examples(number[part], number[part] % 10) for part in (slice(4000), slice(4000, None)))
    learner = mb.classification(mb.MLP(1, (), 10))
    prepare = lambda numbers: jnp.asarray(numbers, float)[:, None]
    return hold_out(
        learner, training, testing, classes=10, train=train, valid=valid, test=test, seed=seed, noise=noise,
        prepare=prepare,
    )  # fmt: skip


def numbers(part: mb.Data) -> list[int]:
    return part.inputs[:, 0].astype(int).tolist()


def test_parts_have_no_example_in_common_and_keep_their_labels():
    tasks = cut(train=3000, valid=1000, test=100)
    assert sorted(numbers(tasks.train) + numbers(tasks.valid)) == list(range(4000))
    assert sorted(numbers(tasks.test)) == list(range(4000, 4100))
    for part in (tasks.train, tasks.valid, tasks.test):
        assert numbers(part) != sorted(numbers(part))
        np.testing.assert_array_equal(part.targets, part.inputs[:, 0] % 10)


def test_the_cut_is_the_seeds():
    same, again, other, longer = cut(seed=1), cut(seed=1), cut(seed=2), cut(seed=1, train=40, noise=0.5)
    for part in ("train", "valid", "test"):
        drawn, again_drawn, other_drawn, longer_drawn = (
            numbers(getattr(tasks, part)) for tasks in (same, again, other, longer)
        )
        assert drawn == again_drawn == longer_drawn[: len(drawn)]
        assert set(drawn) != set(other_drawn)
    np.testing.assert_array_equal(longer.valid.targets, same.valid.targets)
    assert cut(noise=0.5).corrupted.tolist() != cut(noise=0.5, seed=1).corrupted.tolist()


@pytest.mark.parametrize("noise", [0.0, 0.25, 1.0])
def test_so_many_training_labels_are_wrong_and_the_truth_says_which(key, noise):
    clean, noisy = cut(train=2000), cut(train=2000, noise=noise)
    truth = noisy.sample(key, "train").truth
    assert ("corrupted" in truth) == (noise > 0)
    corrupted = truth.get("corrupted", jnp.zeros(2000, bool))
    assert corrupted.sum() == noise * 2000
    np.testing.assert_array_equal(noisy.train.targets != clean.train.targets, corrupted)
    if noise:
        shifts = np.bincount((noisy.train.targets - clean.train.targets)[corrupted] % 10, minlength=10)
        assert np.abs(shifts[1:] / corrupted.sum() - 1 / 9).max() < 0.05
        assert f"2,000 training (labels {noise:g} wrong) and" in noisy.subject.note


def test_a_batch_has_the_task_many_times(mnist, key):
    tasks = mnist(train=30, valid=20, test=10)
    batch = jax.jit(lambda k: mb.sample_batch(tasks, k, "train", 3))(key)
    assert [a.shape for a in jax.tree.leaves(batch)] == [
        (3, 30, 28, 28, 1), (3, 30), (3, 20, 28, 28, 1), (3, 20)
    ]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b), batch, tasks.sample(key, "train"))


@pytest.mark.parametrize("network", ["linear", "mlp", "conv"])
def test_no_networks_output_depends_on_the_other_examples(mnist, key, network):
    learner = (tasks := mnist(train=5, valid=5, test=5, network=network)).subject
    params = learner.init(key)
    assert set(params) == {"body", "head"}
    assert not learner.network.batch_statistics
    together = learner.predict(params, tasks.train.inputs)
    alone = learner.predict(params, tasks.train.inputs[:1])
    assert together.shape == (5, 10)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_softmax_regression_learns_from_a_thousand_images(mnist, key):
    tasks = mnist()
    learner, task = tasks.subject, tasks.sample(key, "test")
    optimizer = optax.adam(3e-3)

    def step(state, _):
        params, opt = state
        updates, opt = optimizer.update(jax.grad(learner.fit)(params, task.support), opt)
        return (optax.apply_updates(params, updates), opt), None

    start = learner.init(key)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=200)
    assert learner.test(start, task.query, task.support)[0] == pytest.approx(jnp.log(10))
    assert learner.test(params, task.query, task.support)[1]["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, "train = 0: an integer of 1 or more"),
        ({"test": 0}, "test = 0: an integer of 1 or more"),
        ({"seed": -1}, "seed = -1: an integer of 0 or more"),
        ({"train": 50_000, "valid": 10_001}, "train = 50000 and valid = 10001: there are 60,000 examples for both"),
        ({"test": 10_001}, "test = 10001: there are 10,000 test examples"),
        ({"noise": 1.01}, "noise = 1.01: a fraction"),
        ({"noise": -0.1}, "noise = -0.1: a fraction"),
        ({"network": "lenet"}, "'network' is 'lenet', and must be one of linear, mlp, conv"),
    ],
)
def test_what_the_data_do_not_have_is_refused(mnist, options, message):
    with pytest.raises(InputError, match=message):
        mnist(**options)
