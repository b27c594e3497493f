"""20 newsgroups: the archive and the packed file, the values of words, and the sparse linear network."""

import io
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_tasks.newsgroups import SparseLinear, weighted
from metabilevel_tasks.newsgroups_data import PACKED, counts, read, unpack

import metabilevel as mb
from metabilevel import InputError
from metabilevel.data import DataError

POSTS = {  # two groups; "Only" and "bee" are not among the training words
    "20news-bydate-train/sci.med/10": "Bee_2 a CAT, cat's\ncat",
    "20news-bydate-train/sci.med/9": "ant",
    "20news-bydate-train/alt.x/3": "caf\xe9 ant ant",
    "20news-bydate-test/sci.med/4": "Only a bee, cat! ant cat",
    "20news-bydate-test/alt.x/5": "ant",
}


@pytest.fixture(scope="module")
def packed(data_files) -> dict[str, np.ndarray]:
    return unpack(tuple(data_files("newsgroups", "news20_counts.npz")))


@pytest.fixture
def family(data_files):
    data_files("newsgroups", *(file.filename for file in PACKED.files))
    return mb.load_tasks("newsgroups")


def archive(path: Path, posts: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        opened.addfile(folder := tarfile.TarInfo("20news-bydate-train"))
        folder.type = tarfile.DIRTYPE
        for name, text in posts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode("latin-1"))
            opened.addfile(info, io.BytesIO(text.encode("latin-1")))
    return path


def dense(rows: dict[str, np.ndarray], words: int) -> np.ndarray:
    matrix = np.zeros((len(rows["columns"]), words))
    np.add.at(matrix, (np.arange(len(matrix))[:, None], rows["columns"]), rows["values"])
    return matrix


def test_the_archive_is_read_in_the_order_of_groups_and_numbers(tmp_path):
    arrays = read((archive(tmp_path / "a.tar.gz", POSTS),))
    expected = {  # ant, bee_2, café, cat
        "train_starts": [0, 2, 4, 5],
        "train_words": [0, 2, 1, 3, 0],
        "train_counts": [2, 1, 1, 3, 1],
        "train_labels": [0, 1, 1],
        "test_starts": [0, 1, 3],
        "test_words": [0, 0, 3],
        "test_counts": [1, 1, 2],
        "test_labels": [0, 1],
    }
    assert {name: array.tolist() for name, array in arrays.items()} == expected


def test_the_packed_file_has_the_documented_size_and_the_arrays_of_an_archive(packed, tmp_path):
    assert (len(packed["train_words"]), packed["train_words"].max() + 1) == (1_787_565, 130_107)
    assert (len(packed["train_labels"]), len(packed["test_labels"])) == (11_314, 7532)
    made = read((archive(tmp_path / "a.tar.gz", POSTS),))
    assert {name: array.dtype for name, array in made.items()} == {name: a.dtype for name, a in packed.items()}
    for part in ("train", "test"):
        starts, words = packed[f"{part}_starts"], packed[f"{part}_words"]
        inside = np.setdiff1d(np.arange(1, len(words)), starts)
        assert (words[inside] > words[inside - 1]).all()
        assert words.min() >= 0


def test_a_wrong_archive_or_packed_file_is_named(tmp_path):
    whole = archive(tmp_path / "a.tar.gz", POSTS)
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:150])
    with pytest.raises(DataError, match=r"cut\.tar\.gz is no archive of 20 newsgroups"):
        read((tmp_path / "cut.tar.gz",))
    train = archive(tmp_path / "train.tar.gz", {name: text for name, text in POSTS.items() if "train" in name})
    with pytest.raises(DataError, match=r"train\.tar\.gz is no .*: it has no posts of 20news-bydate-test"):
        read((train,))
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.npz has no packed posts"):
        unpack((tmp_path / "a.npz",))


def test_missing_data_name_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="metabilevel data fetch newsgroups"):
        counts()


def test_values_are_the_documented_ones_and_the_longest_posts_are_cut(tmp_path):
    arrays = read((archive(tmp_path / "a.tar.gz", POSTS),))
    common, rare = 1 + np.log(4 / 3), 1 + np.log(4 / 2)  # words in 2 and in 1 of 3 posts
    two, three = 1 + np.log(2), 1 + np.log(3)
    table = np.array([  # columns by frequency: ant, bee_2, café, cat
        [two * common, 0, rare, 0], [0, rare, 0, three * rare], [common, 0, 0, 0],
        [common, 0, 0, 0], [common, 0, 0, two * rare],
    ])  # fmt: skip
    every = np.arange(5)
    normed = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
    found = weighted(arrays, 4, 10).padded(every)
    assert found["columns"].shape == found["values"].shape == (5, 32)
    np.testing.assert_allclose(dense(found, 4), normed(table), rtol=1e-6)
    np.testing.assert_allclose(dense(weighted(arrays, 1, 10).padded(every), 1), [[1], [0], [1], [1], [1]])
    largest = np.where(table == table.max(1, keepdims=True), table, 0)
    np.testing.assert_allclose(dense(weighted(arrays, 4, 1).padded(every), 4), normed(largest), rtol=1e-6)


def test_the_sparse_network_is_the_dense_one(x64, key):
    rng = np.random.default_rng(0)
    rows = {"columns": jnp.asarray(rng.integers(0, 9, (5, 64))), "values": jnp.asarray(rng.normal(size=(5, 64)))}
    matrix, network = dense(jax.tree.map(np.asarray, rows), 9), SparseLinear(9, 3)
    init = jax.tree.map(lambda a: (a.shape, bool(a.any())), network.init(key), is_leaf=lambda a: hasattr(a, "shape"))
    assert init == {"body": {"weights": ((9, 3), False)}, "head": {"bias": ((3,), False)}}
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=(2, *a.shape))), network.init(key))

    def derivatives(outputs, params):
        loss = lambda p: jnp.sum(jnp.sin(outputs(p)))
        hessian_product = jax.jvp(jax.grad(loss), (params,), (jax.tree.map(jnp.cos, params),))[1]
        return outputs(params), jax.grad(loss)(params), hessian_product

    ours = lambda p: network.head(p["head"], network.body(p["body"], rows))
    theirs = lambda p: matrix @ p["body"]["weights"] + p["head"]["bias"]
    found, expected = (jax.jit(jax.vmap(lambda p, f=f: derivatives(f, p)))(params) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)
    assert [len(features) for features in network.activations(jax.tree.map(lambda a: a[0], params)["body"], rows)] == [
        5
    ]


def test_posts_are_those_of_the_file(packed, family):
    tasks = family(words=300, train=10, valid=10, test=10)
    rows = weighted(packed, 300, 512)
    everything = dense(jax.tree.map(np.asarray, rows.padded(np.arange(11_314 + 7532))), 300)
    labels = np.concatenate([packed["train_labels"], packed["test_labels"]])
    for part, origin in {"train": range(11_314), "valid": range(11_314), "test": range(11_314, 18_846)}.items():
        inputs, targets = getattr(tasks, part)
        for row, target in zip(dense(jax.tree.map(np.asarray, inputs), 300), targets, strict=True):
            same = np.flatnonzero(np.abs(everything - row).max(1) < 1e-6)
            assert {(number in origin, label) for number, label in zip(same, labels[same], strict=True)} >= {
                (True, int(target))
            }


def test_softmax_regression_learns_from_sparse_posts(family, key):
    tasks = family(words=5000, noise=0.1)
    assert tasks.subject.protocol.endswith("1,000 validation examples of 11,314, 2,000 test examples of 7,532")
    learner, task = tasks.subject, jax.tree.map(lambda a: a[1], mb.sample_batch(tasks, key, "test", 2))
    assert task.support.inputs["columns"].shape == task.support.inputs["values"].shape
    assert task.truth["corrupted"].sum() == 100
    optimizer = optax.adam(0.1)

    def step(state, _):
        params, opt = state
        updates, opt = optimizer.update(jax.grad(learner.fit)(params, task.support), opt)
        return (optax.apply_updates(params, updates), opt), None

    start = learner.init(key)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=30)
    assert learner.test(start, task.query, task.support)[0] == pytest.approx(jnp.log(20))
    assert learner.test(params, task.query, task.support)[1]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": 0}, "words = 0: an integer of 1 or more"),
        ({"words": 130_108}, "words = 130108: there are 130,107 words"),
        ({"longest": 0}, "longest = 0: an integer of 1 or more"),
        ({"train": 11_000}, "train = 11000 and valid = 1000: there are 11,314 examples"),
        ({"test": 7533}, "test = 7533: there are 7,532 test examples"),
    ],
)
def test_what_the_data_do_not_have_is_refused(family, options, message):
    with pytest.raises(InputError, match=message):
        family(**options)
