"""CIFAR-FS: the archive and the packed files, the published split, and the tasks."""

import io
import pickle
import struct
import tarfile
from json import loads
from pathlib import Path

import jax
import numpy as np
import pytest
from metabilevel_tasks.cifar_data import CIFAR10, CIFAR100, PACKED10, PACKED100, Layout, decode, photographs, unpickle
from metabilevel_tasks.cifar_fs import CLASSES, SPLITS, cifar_fs

from metabilevel import InputError, data
from metabilevel.data import DataError


@pytest.fixture(scope="module")
def packed(data_files) -> np.ndarray:
    data_files("cifar", *(file.filename for file in PACKED100.files))
    return np.concatenate(list(data.load(PACKED100).values()), 1)


def encode(images: np.ndarray) -> np.ndarray:
    """The residuals of which `decode` makes `images`, one by one."""
    r, g, b = np.moveaxis(images.astype(int), -1, 0)
    wrapped = lambda a: (a + 128) % 256 - 128
    channels = np.stack([g, wrapped(r - g), wrapped(b - g)])
    out = np.zeros_like(channels)
    for place in np.ndindex(*channels.shape):
        c, n, i, j = place
        left, upper = channels[c, n, i, j - 1] if j else 0, channels[c, n, i - 1, j] if i else 0
        both = sorted([left, upper, left + upper - channels[c, n, i - 1, j - 1]])[1] if i and j else left + upper
        out[place] = (channels[place] - both) % 256
    return out.astype(np.uint8)


def test_residuals_are_decoded():
    expected = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode(expected)), expected)


class Python2(pickle._Pickler):
    """Writes every text as Python 2 does, with which the official archive was made."""

    def save_text(self, text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        self.write(b"T" + struct.pack("<i", len(content)) + content)

    dispatch = pickle._Pickler.dispatch | {bytes: save_text, str: save_text}


def member(pixels: np.ndarray, labels: list[int]) -> bytes:
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump({"data": pixels, "fine_labels": labels, "filenames": ["a.png"]})
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


SMALL = Layout("CIFAR-100", "cifar-100-python", b"fine_labels", 100, {"train": (("train",), 2), "test": (("test",), 1)})


def official() -> tuple[dict[str, bytes], np.ndarray]:
    """A small archive, in which two and one image a class take the place of 500 and 100; and what it stands for."""
    rng = np.random.default_rng(0)
    expected = rng.integers(0, 256, (100, 3, 32, 32, 3)).astype(np.uint8)
    members = {}
    for name, part in {"train": expected[:, :2], "test": expected[:, 2:]}.items():
        count = part.shape[1]
        order = np.concatenate([rng.permutation(100) for _ in range(count)])
        number = np.repeat(np.arange(count), 100)
        rows = part[order, number].transpose(0, 3, 1, 2).reshape(-1, 3072)
        members[name] = member(rows, order.tolist())
    return members, expected


def test_the_archive_is_read_by_class_and_in_order(tmp_path):
    members, expected = official()
    found = unpickle((archive(tmp_path / "c.tar.gz", members),), SMALL)
    np.testing.assert_array_equal(found["train"], expected[:, :2])
    np.testing.assert_array_equal(found["test"], expected[:, 2:])


def test_an_archive_in_batches_is_read_as_one(tmp_path):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (6, 3072)).astype(np.uint8), [1, 1, 0, 1, 0, 0]
    members = {"one": member(pixels[:3], labels[:3]), "two": member(pixels[3:], labels[3:])}
    layout = Layout("two batches", "cifar-100-python", b"fine_labels", 2, {"train": (("one", "two"), 3)})
    found = unpickle((archive(tmp_path / "c.tar.gz", members),), layout)["train"]
    expected = pixels[[2, 4, 5, 0, 1, 3]].reshape(2, 3, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(found, expected)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, capsys):
    members, _ = official()
    for content in (pickle.dumps(Evil(), protocol=2), pickle.dumps({b"data": Path("x")}, protocol=2)):
        path = archive(tmp_path / "c.tar.gz", members | {"test": content})
        with pytest.raises(DataError, match=r"c\.tar\.gz is no archive of CIFAR-100: .*/test asks for"):
            unpickle((path,), SMALL)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda m: {"train": m["train"]}, "'cifar-100-python/test'"),
        (lambda m: m | {"test": m["train"]}, r"test holds uint8 of shape \(200, 3072\)"),
        (lambda m: m | {"test": b""}, "test Ran out of input"),
        (lambda m: m | {"test": pickle.dumps({})}, "b'data'"),
        (lambda m: m | {"test": member(np.zeros((100, 3072), np.uint8), [0] * 100)}, "0 to 100 images a class"),
        (lambda m: m | {"test": member(np.zeros((100, 3072)), list(range(100)))}, "test holds float64"),
    ],
)
def test_a_wrong_archive_is_named(tmp_path, changed, message):
    members, _ = official()
    with pytest.raises(DataError, match=rf"c\.tar\.gz is no archive of CIFAR-100: .*{message}"):
        unpickle((archive(tmp_path / "c.tar.gz", changed(members)),), SMALL)


def test_a_truncated_archive_is_named(tmp_path):
    whole = archive(tmp_path / "c.tar.gz", official()[0]).read_bytes()
    for length in np.linspace(0, 0.95 * len(whole), 12).astype(int):
        (tmp_path / "cut.tar.gz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar\.gz is no archive"):
            unpickle((tmp_path / "cut.tar.gz",), SMALL)


def test_truncated_packed_files_are_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.npz has no packed images of CIFAR-100"):
        PACKED100.build((tmp_path / "a.npz", tmp_path / "b.npz"))


@pytest.mark.parametrize("classes", [10, 100])
def test_missing_data_name_the_command_that_fetches_them(tmp_path, monkeypatch, classes):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=rf"cifar-{classes}-python(.|\n)*metabilevel data fetch cifar{classes}$"):
        photographs(classes)


@pytest.mark.parametrize(("classes", "packed", "whole"), [(10, PACKED10, CIFAR10), (100, PACKED100, CIFAR100)])
def test_the_whole_archive_goes_before_a_part_of_it(data_files, monkeypatch, classes, packed, whole):
    data_files("cifar", *(file.filename for file in packed.files))
    loaded = []
    monkeypatch.setattr(data, "load", lambda dataset: loaded.append(dataset) or {})
    photographs(classes)
    monkeypatch.setattr(data, "status", lambda dataset: data.Status(dataset.name, (), None))
    photographs(classes)
    assert loaded == [packed, whole]


def test_classes_and_split_are_the_published_ones(data_files):
    (listed,) = data_files("splits", "cifar_fs.json")
    for part, classes in loads(listed.read_text()).items():
        assert sorted(fine for _, fine in classes) == SPLITS["valid" if part == "val" else part]
    (test,) = data_files("cifar", "cifar100_test.npz")
    assert np.load(test)["fine_names"].tolist() == CLASSES


def test_tasks_say_how_many_images_a_class_has_and_are_standardised(packed, key):
    tasks = cifar_fs()
    assert tasks.subject.protocol == "transductive; 240 images a class"
    assert (tasks.images.dtype, tasks.images.nbytes) == (np.uint8, packed.nbytes)
    episode = tasks.sample(key, "test")
    assert (episode.support.inputs.shape, episode.query.inputs.shape) == ((25, 32, 32, 3), (75, 32, 32, 3))
    train = packed[[CLASSES.index(name) for name in SPLITS["train"]]]
    np.testing.assert_allclose(tasks.mean, train.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(tasks.std, train.std((0, 1, 2, 3), dtype=float), rtol=1e-5)
    known = {image.tobytes(): c for c, each in enumerate(packed) for image in each}
    classes = [known[np.rint(i * tasks.std + tasks.mean).astype(np.uint8).tobytes()] for i in episode.query.inputs]
    assert len(set(classes)) == 5
    assert {CLASSES[c] for c in classes} <= set(SPLITS["test"])
    assert classes == np.repeat(classes[::15], 15).tolist()


@pytest.mark.parametrize(
    ("network", "features"), [("conv", 64), ("conv-max-pool", 256), ("r2d2", 8064), ("resnet12", 2560)]
)
def test_networks_fit_the_photographs(packed, key, network, features):
    tasks = cifar_fs(network=network, dropout=0.1 if network in ("r2d2", "resnet12") else 0.0)
    inputs = jax.eval_shape(lambda: tasks.sample(key, "train").query.inputs)
    params = jax.eval_shape(tasks.subject.init, key)
    assert jax.eval_shape(tasks.subject.network.body, params["body"], inputs, key).shape == (75, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.2}, "dropout = 0.2: the network conv-max-pool drops nothing"),
        ({"ways": 17}, "ways = 17: valid has 16 of all 100 classes"),
        ({"queries": 236}, "images: too few for 5 shots and 236 queries"),
    ],
)
def test_what_the_data_do_not_have_is_refused(packed, options, message):
    with pytest.raises(InputError, match=message):
        cifar_fs(**options)
