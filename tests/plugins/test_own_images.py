"""Few-shot tasks of the user's own files: what is read, and what is said of files that cannot be."""

from pathlib import Path

import numpy as np
import pytest
from metabilevel_tasks.own_images import from_arrays, from_folder, read_arrays, read_folder
from PIL import Image

from metabilevel import InputError
from metabilevel.data import DataError

CLASSES = [f"class {letter}" for letter in "abcdefghij"]
RNG = np.random.default_rng(0)
SMALL = {"ways": 2, "shots": 1, "queries": 2, "network": "conv"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten classes of four pictures of 8 x 9 pixels, each of one colour, PNG; and what is no picture."""
    for c, name in enumerate(CLASSES):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 9, 3), [20 * c, 50 * i, 7], np.uint8)).save(
                tmp_path / "own" / name / f"{i}.png"
            )
        (tmp_path / "own" / name / ".hidden.png").write_bytes(b"")
        (tmp_path / "own" / name / "notes.txt").write_text("no picture")
    (tmp_path / "own" / ".cache").mkdir()
    (tmp_path / "own" / ".cache" / "x.png").write_bytes(b"")
    return tmp_path / "own"


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return {"images": RNG.integers(0, 255, (40, 8, 9), dtype=np.uint8), "labels": np.repeat(CLASSES, 4)}


def test_pictures_are_read_in_the_order_of_their_names(folder):
    images, labels = read_folder(folder)
    assert labels == [name for name in CLASSES for _ in range(4)]
    expected = [[20 * c, 50 * i, 7] for c in range(10) for i in range(4)]
    np.testing.assert_array_equal(images, np.broadcast_to(np.array(expected)[:, None, None], (40, 8, 9, 3)))


def test_pictures_are_resized_and_made_grey(folder):
    Image.fromarray(np.full((30, 20, 3), 90, np.uint8)).save(folder / CLASSES[0] / "4.jpeg")
    images, labels = read_folder(folder, 6, grey=True)
    assert (images.shape, images.dtype, len(labels)) == ((41, 6, 6, 1), np.uint8, 41)
    np.testing.assert_allclose(images[4], 90, atol=2)
    assert read_folder(folder, 6)[0].shape == (41, 6, 6, 3)


def test_folders_and_arrays_are_task_families(folder, tmp_path, arrays, key):
    coloured = from_folder(path=str(folder), **SMALL)
    grey = from_arrays(path=npz(tmp_path / "a.npz", **arrays), pool=5, transductive=False, **SMALL)
    assert from_folder(path=str(folder), train_ways=4, **SMALL).sample(key, "train").query.inputs.shape[0] == 8
    for tasks, channels in ((coloured, 3), (grey, 1)):
        episode = tasks.sample(key, "train")
        assert episode.query.inputs.shape == (4, 8, 9, channels)
        assert [len(members) for members in tasks.classes.values()] == [6, 2, 2]
        assert tasks.subject.network.in_shape == (8, 9, channels)
    assert (grey.subject.pool, grey.subject.protocol) == (5, "non-transductive")
    np.testing.assert_array_equal(grey.images[grey.first[0]][..., 0], arrays["images"][4 * _class(grey, arrays)])


def _class(tasks, arrays) -> int:
    """The class that comes first in the store of `tasks`."""
    (first,) = np.flatnonzero((arrays["images"][::4] == np.asarray(tasks.images[0, :, :, 0])).all((1, 2)))
    return int(first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: (f / "class b" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"class b/9\.png is no picture"),
        (lambda f: (f / "class b" / "9.jpg").write_bytes(b"GIF89a"), r"class b/9\.jpg is no picture"),
        (lambda f: Image.fromarray(np.zeros((8, 9), np.uint16)).save(f / "class b" / "9.png"), "more than 8 bits"),
        (
            lambda f: Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(f / "class b" / "9.png"),
            r"class a/0\.png has 8 x 9 pixels, and .*class b/9\.png has 9 x 9 pixels: give `size`",
        ),
    ],
)
def test_a_picture_that_does_not_fit_is_named(folder, make, message):
    make(folder)
    with pytest.raises(DataError, match=message):
        from_folder(path=str(folder), **SMALL)


def test_a_class_with_too_few_pictures_is_named(folder):
    for i in range(2):
        (folder / "class c" / f"{i}.png").unlink()
    with pytest.raises(InputError, match=r"The class 'class c' of .* has 2 images: too few for 1 shots and 2 queries"):
        from_folder(path=str(folder), **SMALL)


@pytest.mark.parametrize(
    ("where", "message"),
    [("", "has no sub-folder"), ("none", "none does not exist: the folder"), ("file", "file is a file: the folder")],
)
def test_a_folder_without_pictures_is_named(tmp_path, where, message):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path / where)


def test_arrays_that_cannot_be_read_are_named(tmp_path, arrays):
    with pytest.raises(DataError, match=r"a\.npz has no array 'labels'; it has images\."):
        read_arrays(Path(npz(tmp_path / "a.npz", images=arrays["images"])))
    with pytest.raises(DataError, match=r"p\.npz is no \.npz file"):
        read_arrays(Path(npz(tmp_path / "p.npz", images=np.array([{}]), labels=np.array([1]))))
    with pytest.raises(DataError, match=r"absent\.npz does not exist: the \.npz file"):
        read_arrays(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"is a folder: the \.npz file"):
        read_arrays(tmp_path)
    np.save(tmp_path / "single.npy", arrays["images"])
    with pytest.raises(DataError, match=r"single\.npy is no \.npz file"):
        read_arrays(tmp_path / "single.npy")
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 500):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz is no \.npz file"):
            read_arrays(tmp_path / "cut.npz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path = '': the folder with a sub-folder"),
        ({"path": "x", "size": 0}, "size = 0"),
        ({"path": "own", "valid": 0.6, "test": 0.6}, "valid = 0.6, test = 0.6: fractions"),
        ({"path": "own", "dropout": 0.1}, "dropout = 0.1: the network conv drops nothing"),
        ({"path": "own", "ways": 3}, "ways = 3: valid has 2 of all 10 classes"),
    ],
)
def test_wrong_options_are_refused(folder, monkeypatch, options, message):
    monkeypatch.chdir(folder.parent)
    with pytest.raises(InputError, match=message):
        from_folder(**SMALL | options)
