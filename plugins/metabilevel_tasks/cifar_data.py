"""CIFAR-10 and CIFAR-100: colour photographs of 32 x 32 pixels (Krizhevsky 2009), all of them or a part."""

import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from lzma import LZMAError
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metabilevel import data

BROKEN = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, TypeError, AttributeError, tarfile.TarError,
    zipfile.BadZipFile, zlib.error, LZMAError, pickle.UnpicklingError,
)  # fmt: skip

_ARRAY = {  # the three names of which the pickle of an array is made, as NumPy 1 called them
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Layout:
    """How an official archive is made up: for each part the names of its pickles, and the images a class in all."""

    name: str
    folder: str
    labels: bytes
    classes: int
    parts: dict[str, tuple[tuple[str, ...], int]]


def photographs(classes: Literal[10, 100]) -> dict[str, np.ndarray]:
    """`train` and `test`, uint8 [classes, k, 32, 32, 3] each, by class, in the order of the files.

    All of CIFAR-10 (k = 5,000 and 1,000) or CIFAR-100 (500 and 100) where the official archive is there, else those of
    the packed files where these are; the archive is downloaded where neither is.

    **Raises:** `DataError`, as `data.load` does.
    """
    return _photographs(classes, data.status(_SETS[classes][0]).packed_serves, data.data_folder())


@lru_cache(maxsize=1)  # to decode them takes seconds, and a comparison asks for them again under other settings
def _photographs(classes: Literal[10, 100], packed: bool, folder: Path) -> dict[str, np.ndarray]:
    found = data.load(_SETS[classes][packed])
    for images in found.values():
        images.flags.writeable = False
    return found


def unpickle(archive: tuple[Path, ...], layout: Layout) -> dict[str, np.ndarray]:
    """The parts, as `photographs` gives them, out of an official archive; its pickles may hold nothing but arrays.

    **Raises:** `DataError` that names the archive and what is wrong with it.
    """
    (path,) = archive
    found, member = {}, ""
    try:
        with tarfile.open(path) as opened:
            for part, (names, count) in layout.parts.items():
                pictures, labels = [], []
                for name in names:
                    member = f"{layout.folder}/{name}"
                    stream = opened.extractfile(member)
                    if stream is None:
                        raise ValueError("is no file")
                    content = _Unpickler(io.BytesIO(stream.read()), encoding="bytes").load()
                    pixels = np.asarray(content[b"data"])
                    if (pixels.dtype, pixels.shape) != (np.uint8, (count * layout.classes // len(names), 3072)):
                        raise ValueError(f"holds {pixels.dtype} of shape {pixels.shape}")
                    pictures.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
                    labels.append(content[layout.labels])
                found[part] = _by_class(np.concatenate(pictures), np.concatenate(labels), layout.classes, count)
    except BROKEN as error:
        raise data.DataError(f"{path} is no archive of {layout.name}: {member} {error}") from error
    return found


class _Unpickler(pickle.Unpickler):
    """Refuses a pickle that asks for anything but arrays, which could run whatever it likes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is not a part of an array")
        return _ARRAY[module, name]


def unpack(files: tuple[Path, ...], labels: str, classes: int) -> dict[str, np.ndarray]:
    """The parts, as `photographs` gives them, out of two files with the arrays `residual` and `labels`.

    **Raises:** `DataError` that names the file which cannot be read.
    """
    found = {}
    for part, path in zip(("train", "test"), files, strict=True):
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                label = arrays[labels]
                found[part] = _by_class(decode(arrays["residual"]), label, classes, len(label) // classes)
        except BROKEN as error:
            raise data.DataError(f"{path} has no packed images of CIFAR-{classes}: {error}") from error
    return found


def decode(residual: np.ndarray) -> np.ndarray:
    """Residuals, uint8 [3, n, h, w], to the images that they stand for, uint8 [n, h, w, 3].

    The channels are G, R - G and B - G modulo 256, the last two as -128, ..., 127. A residual is a channel less its
    prediction, modulo 256: with the left neighbour l, the upper u and the upper left d,

        prediction = the median of l, u and l + u - d

    in the interior, l in the first row, u in the first column, and 0 at their corner.
    """
    h, w = residual.shape[2:]
    steps = np.ascontiguousarray(residual.transpose(2, 3, 0, 1)).astype(np.int16)
    channels = np.zeros_like(steps)
    for i in range(h):
        for j in range(w):
            left, upper = channels[i, j - 1], channels[i - 1, j]  # in the first row and column: zeros, not yet set
            if i and j:
                low, high = np.minimum(left, upper), np.maximum(left, upper)
                prediction = np.clip(left + upper - channels[i - 1, j - 1], low, high)
            else:
                prediction = left + upper
            value = prediction + steps[i, j]
            channels[i, j, 0] = value[0] & 255
            channels[i, j, 1:] = ((value[1:] + 128) & 255) - 128
    green = channels[:, :, 0]
    rgb = np.stack([green + channels[:, :, 1], green, green + channels[:, :, 2]], -1)
    return (rgb & 255).astype(np.uint8).transpose(2, 0, 1, 3)


def _by_class(pictures: np.ndarray, labels: Sequence[int] | np.ndarray, classes: int, count: int) -> np.ndarray:
    """[classes, count, 32, 32, 3]; the order within a class is kept."""
    labels = np.asarray(labels)
    found = np.bincount(labels, minlength=classes)
    if len(found) > classes or (found != count).any() or len(labels) != len(pictures):
        raise ValueError(f"has {found.min()} to {found.max()} images a class, where {count} are wanted")
    return pictures[np.argsort(labels, kind="stable")].reshape(classes, count, *pictures.shape[1:])


_CITATION = "Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images"


def _whole(name: str, archive: str, md5: str, layout: Layout, packed: data.DataSet) -> data.DataSet:
    file = data.RemoteFile(archive, f"https://www.cs.toronto.edu/~kriz/{archive}", f"md5:{md5}")
    return data.DataSet(
        name,
        (file,),
        partial(unpickle, layout=layout),
        sha256={},  # the archive is checked whole, and no array of it is kept
        cache=None,
        licence="none stated",
        citation=_CITATION,
        packed=packed,
    )


def _packed(labels: str, classes: int, files: dict[str, str], sha256: dict[str, str]) -> data.DataSet:
    """Two files of images as residuals, which are published nowhere."""
    return data.DataSet(
        "cifar",
        tuple(data.RemoteFile(name, "", f"sha256:{checksum}") for name, checksum in files.items()),
        partial(unpack, labels=labels, classes=classes),
        sha256=sha256,
        cache=None,
        licence="none stated",
        citation=_CITATION,
    )


PACKED10 = _packed(
    "label",
    10,
    {
        "cifar10_train_subset.npz": "8b3844b6e8093d1b2eb79b7d57da30cd10c4cd65c9a15ba6dd4f33751fe6aa5b",
        "cifar10_test_subset.npz": "43601b04a965b1d479e66652a14f9e0100978dcad12b17853f931728644045d0",
    },
    {
        "train": "cee0e10020f72f46a266c5233bdbc5275b497f0ab02c14f745d943161025b91f",
        "test": "3c58b25c6aa6809d449b501a679ec915b93ef7a9c0cd06089b91825c2b4d8825",
    },
)
PACKED100 = _packed(
    "fine",
    100,
    {
        "cifar100_train_subset.npz": "7fea2b625c595f375911e8dfe35dc6af38f0f98c2b56c12723ccc36afccf6204",
        "cifar100_test.npz": "2146b1d12b3eaa0279e1749ee0ff14a4d2d2d2760a7dd3cd3891e90275f946a0",
    },
    {
        "train": "aadaff6414a06428228c9ead0599f2a0cb590904336b9fbca98ac732f5829292",
        "test": "fb98a5141317ce73aa66f69c88c6022b70a368e4be824b5ff89000c3fcdff103",
    },
)
CIFAR10 = _whole(
    "cifar10",
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    Layout(
        "CIFAR-10",
        "cifar-10-batches-py",
        b"labels",
        10,
        {"train": (tuple(f"data_batch_{i}" for i in range(1, 6)), 5000), "test": (("test_batch",), 1000)},
    ),
    PACKED10,
)
CIFAR100 = _whole(
    "cifar100",
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    Layout(
        "CIFAR-100",
        "cifar-100-python",
        b"fine_labels",
        100,
        {"train": (("train",), 500), "test": (("test",), 100)},
    ),
    PACKED100,
)
_SETS = {10: (CIFAR10, PACKED10), 100: (CIFAR100, PACKED100)}
