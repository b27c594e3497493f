"""CIFAR-100: 100 classes of 600 colour photographs of 32 x 32 pixels (Krizhevsky 2009), or a part of it."""

import io
import pickle
import tarfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from metabilevel import data

CLASSES = 100
_PARTS = {"train": 500, "test": 100}  # images a class in each file of the archive
_BROKEN = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, TypeError, AttributeError, tarfile.TarError,
    zipfile.BadZipFile, zlib.error, LZMAError, pickle.UnpicklingError,
)  # fmt: skip

_ARRAY = {  # the three names of which the pickle of an array is made, as NumPy 1 called them
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def images() -> np.ndarray:
    """uint8 [100, k, 32, 32, 3], by class, in the official order, training images first.

    All 600 of a class where the official archive is there, else the 240 of the packed files where these are; the
    archive is downloaded where neither is.

    **Raises:** `DataError`, as `data.load` does.
    """
    packed = data.status(PACKED).ready and not data.status(CIFAR100).ready
    return data.load(PACKED if packed else CIFAR100)["images"]


def unpickle(archive: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """`images`, as `images()` gives them, out of the official archive; its pickles may hold nothing but arrays.

    **Raises:** `DataError` that names the archive and what is wrong with it.
    """
    (path,) = archive
    parts, member = [], ""
    try:
        with tarfile.open(path) as opened:
            for part, count in _PARTS.items():
                member = f"cifar-100-python/{part}"
                stream = opened.extractfile(member)
                if stream is None:
                    raise ValueError("is no file")
                content = _Unpickler(io.BytesIO(stream.read()), encoding="bytes").load()
                pixels = np.asarray(content[b"data"])
                if (pixels.dtype, pixels.shape) != (np.uint8, (count * CLASSES, 3072)):
                    raise ValueError(f"holds {pixels.dtype} of shape {pixels.shape}")
                pictures = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                parts.append(_by_class(pictures, content[b"fine_labels"], count))
    except _BROKEN as error:
        raise data.DataError(f"{path} is no archive of CIFAR-100: {member} {error}") from error
    return {"images": np.concatenate(parts, 1)}


class _Unpickler(pickle.Unpickler):
    """Refuses a pickle that asks for anything but arrays, which could run whatever it likes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is not a part of an array")
        return _ARRAY[module, name]


def unpack(files: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """`images`, as `images()` gives them, out of files with the arrays `residual` and `fine`.

    **Raises:** `DataError` that names the file which cannot be read.
    """
    parts = []
    for path in files:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                fine = arrays["fine"]
                parts.append(_by_class(decode(arrays["residual"]), fine, len(fine) // CLASSES))
        except _BROKEN as error:
            raise data.DataError(f"{path} has no packed images of CIFAR-100: {error}") from error
    return {"images": np.concatenate(parts, 1)}


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


def _by_class(pictures: np.ndarray, fine: Any, count: int) -> np.ndarray:
    """[100, count, 32, 32, 3]; the order within a class is kept."""
    fine = np.asarray(fine)
    found = np.bincount(fine, minlength=CLASSES)
    if (found != count).any() or len(fine) != len(pictures):
        raise ValueError(f"has {found.min()} to {found.max()} images a class, where {count} are wanted")
    return pictures[np.argsort(fine, kind="stable")].reshape(CLASSES, count, *pictures.shape[1:])


CITATION = "Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images"
CIFAR100 = data.DataSet(
    name="cifar100",
    files=(
        data.RemoteFile(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "md5:eb9058c3a382ffc7106e4002c42a8d85",
        ),
    ),
    build=unpickle,
    sha256={},  # the archive is checked whole, and no array of it is kept
    cache=None,
    licence="none stated",
    citation=CITATION,
)
PACKED = data.DataSet(
    name="cifar",
    files=tuple(
        data.RemoteFile(name, "", f"sha256:{sha256}")
        for name, sha256 in {
            "cifar100_train_subset.npz": "7fea2b625c595f375911e8dfe35dc6af38f0f98c2b56c12723ccc36afccf6204",
            "cifar100_test.npz": "2146b1d12b3eaa0279e1749ee0ff14a4d2d2d2760a7dd3cd3891e90275f946a0",
        }.items()
    ),
    build=unpack,
    sha256={"images": "a1ba6fdd0235d0353a0bc0975bffef46941b63944c3f49c44574f992b749e4f3"},
    cache=None,
    licence="none stated",
    citation=CITATION,
)
