"""LIBSVM's data sets: the official and the packed files, and logistic regression."""

import bz2
from hashlib import md5
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_tasks.libsvm import logistic_loss, sign_accuracy
from metabilevel_tasks.libsvm_data import FEATURES, LIBSVM, PACKED, examples, read, unpack

import metabilevel as mb
from metabilevel import InputError
from metabilevel.data import DataError


@pytest.fixture(scope="module")
def packed(data_files) -> dict[str, np.ndarray]:
    return unpack(tuple(data_files("libsvm", *(file.filename for file in PACKED.files))))


@pytest.fixture
def family(data_files):
    data_files("libsvm", *(file.filename for file in PACKED.files))
    return mb.load_tasks("libsvm")


def official(packed: dict[str, np.ndarray], name: str, part: str) -> bytes:
    """The text of an official file, byte for byte."""
    inputs, labels = packed[f"{name}_{part}_inputs"], packed[f"{name}_{part}_labels"]
    low, high = {"mushrooms": ("1", "2"), "ijcnn1": ("-1", "1")}.get(name, ("-1", "+1"))
    lines = []
    for row, label in zip(inputs.tolist(), labels, strict=True):
        entries = [f"{i}:{value}" for i, value in enumerate(row, 1) if value or (name == "ijcnn1" and i > 10)]
        line = " ".join([high if label else low, *entries])
        lines.append(line.replace(":1.0 ", ":1 ") + "\n" if name == "ijcnn1" else line + " \n")
    return "".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "part", "filename"),
    [("w8a", "test", "w8a.t"), ("mushrooms", "train", "mushrooms"), ("ijcnn1", "train", "ijcnn1.bz2")],
)
def test_packed_and_official_files_hold_the_same(packed, tmp_path, name, part, filename):
    content = official(packed, name, part)
    path = tmp_path / filename
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    (checksum,) = [file.checksum for file in LIBSVM.files if file.filename == filename]
    assert f"md5:{md5(path.read_bytes()).hexdigest()}" == checksum
    found = read((path,))
    assert set(found) == {f"{name}_{part}_inputs", f"{name}_{part}_labels"}
    for key, array in found.items():
        assert array.dtype == packed[key].dtype
        np.testing.assert_array_equal(array, packed[key])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"+1 1:1\n-1 3\n", "not enough values"),
        (b"+1 1:1\n-1 124:1\n", "out of bounds"),
        (b"+1 1:1\n\n", "list index out of range"),
        (b"+1 1:one\n-1\n", "could not convert"),
        (b"+1 1:1\n+1\n", "it has 1 labels, where 2 are wanted"),
        (b"", "it has 0 labels"),
        ("µ".encode(), "ascii"),
    ],
)
def test_a_malformed_official_file_is_named(tmp_path, content, message):
    (tmp_path / "a9a.t").write_bytes(content)
    with pytest.raises(DataError, match=rf"a9a\.t is no LIBSVM file of a9a: .*{message}"):
        read((tmp_path / "a9a.t",))


def test_a_truncated_file_is_named(tmp_path):
    (tmp_path / "ijcnn1.bz2").write_bytes(bz2.compress(b"1 1:1\n")[:-3])
    with pytest.raises(DataError, match=r"ijcnn1\.bz2 is no LIBSVM file"):
        read((tmp_path / "ijcnn1.bz2",))
    (tmp_path / "a9a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a9a\.npz has no packed LIBSVM data"):
        unpack((tmp_path / "a9a.npz",))


def test_missing_data_name_the_command_that_fetches_them(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="metabilevel data fetch libsvm"):
        examples()


@pytest.mark.parametrize(
    ("name", "sizes", "positive"),
    [
        ("a9a", (16_280, 16_280, 16_281), 3846 / 16_281),
        ("w8a", (24_874, 24_874, 14_951), 454 / 14_951),
        ("mushrooms", (2708, 2708, 2708), 0.52),
        ("ijcnn1", (24_995, 24_995, 91_701), 8712 / 91_701),
    ],
)
def test_without_sizes_all_is_used(family, name, sizes, positive):
    tasks = family(name=name)
    parts = (tasks.train, tasks.valid, tasks.test)
    assert tuple(part.inputs.shape for part in parts) == tuple((size, FEATURES[name]) for size in sizes)
    assert tasks.test.targets.mean() == pytest.approx(positive, abs=1e-6 if name != "mushrooms" else 0.02)


def test_the_test_part_of_mushrooms_is_none_of_the_others(family):
    first, second = family(name="mushrooms"), family(name="mushrooms", seed=1)
    rows = lambda part: {row.tobytes() for row in np.asarray(part.inputs)}
    assert rows(first.test) == rows(second.test)
    assert rows(first.train) != rows(second.train)
    together = np.concatenate([part.inputs for part in (first.train, first.valid, first.test)])
    assert len(np.unique(together, axis=0)) == 8124


def test_the_loss_is_that_of_the_two_class_softmax_and_smooth(x64):
    outputs, targets = jnp.array([[-800.0], [0.3], [0.3], [2.0]]), jnp.array([0, 0, 1, 1])
    softmax = mb.classification(mb.MLP(1, (), 2)).loss(jnp.pad(outputs, ((0, 0), (1, 0))), targets)
    np.testing.assert_allclose(logistic_loss(outputs, targets), softmax)
    assert np.isfinite(jax.grad(logistic_loss)(outputs, targets)).all()
    assert sign_accuracy(outputs, targets)["accuracy"] == 0.75


def test_logistic_regression_learns_and_a_batch_has_the_task_many_times(family, key):
    tasks = family(train=2000, valid=1000, test=1000, noise=0.1)
    learner = tasks.subject
    task = jax.tree.map(lambda a: a[1], mb.sample_batch(tasks, key, "test", 2))
    assert task.truth["corrupted"].sum() == 200
    optimizer = optax.adam(0.05)

    def step(state, _):
        params, opt = state
        updates, opt = optimizer.update(jax.grad(learner.fit)(params, task.support), opt)
        return (optax.apply_updates(params, updates), opt), None

    start = learner.init(key)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=200)
    assert learner.test(start, task.query, task.support)[0] == pytest.approx(jnp.log(2))
    assert learner.test(params, task.query, task.support)[1]["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a8a"}, "'name' is 'a8a', and must be one of a9a, w8a, mushrooms, ijcnn1"),
        ({"train": 16_282}, "train = 16282 and valid = 16280: there are 32,561 examples"),
        ({"name": "mushrooms", "test": 2709}, "test = 2709: there are 2,708 test examples"),
    ],
)
def test_what_the_data_do_not_have_is_refused(family, options, message):
    with pytest.raises(InputError, match=message):
        family(**options)
