"""Few-shot classification of the user's own images: out of an `.npz` file, or out of a folder of pictures."""

import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

import numpy as np
from PIL import Image

from metabilevel import FewShot, InputError, data, few_shot

from . import nets

_ARRAYS = "the .npz file with the arrays images and labels"
_FOLDER = "the folder with a sub-folder of pictures for each class"
_PICTURES = (".png", ".jpg", ".jpeg")
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, zlib.error, Image.DecompressionBombError)
_BROKEN_ARCHIVE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, LZMAError)


def from_arrays(
    *,
    path: str = "",
    ways: int = 5,
    shots: int = 1,
    train_ways: int | None = None,
    train_shots: int | None = None,
    queries: int = 15,
    valid: float = 0.16,
    test: float = 0.2,
    seed: int = 0,
    network: nets.Name = "conv-max-pool",
    dropout: float = 0.0,
    standardise: bool = True,
    transductive: bool = True,
    pool: int | None = None,
) -> FewShot:
    """N-way K-shot classification of the images in an `.npz` file; cross-entropy and accuracy.

    **Arguments:**

    - `path`: of the file, with the arrays `images`, [n, h, w] or [n, h, w, c], uint8 or floating, and `labels`, n
      numbers or texts.
    - `ways`: classes of a task.
    - `shots`: support images of a class.
    - `train_ways`: classes of a training task; as `ways` if none.
    - `train_shots`: support images of a class in training; as `shots` if none.
    - `queries`: query images of a class.
    - `valid`, `test`: fractions of the classes that are kept for validation and for the test; the others train.
    - `seed`: of the split.
    - `network`: conv has strides and a mean over the last map, conv-max-pool has pooling and the whole last map; r2d2
      and resnet12 are the larger nets of Bertinetto et al. and of Lee et al.
    - `dropout`: what r2d2 and resnet12 drop in training.
    - `standardise`: whether every channel has mean 0 and standard deviation 1 over the training classes.
    - `transductive`: whether the queries of a task are normalised together, and so inform one another.
    - `pool`: training has so many tasks, visited again and again with other images; if none, ever new ones.

    **Raises:** `DataError` for a file that cannot be read, `InputError` for what cannot be sampled from it.
    """
    images, labels = read_arrays(_given(path, _ARRAYS))
    return few_shot(
        images, labels, ways=ways, shots=shots, train_ways=train_ways, train_shots=train_shots, queries=queries,
        splits=_fractions(valid, test), seed=seed, network=nets.network(network, dropout), standardise=standardise,
        transductive=transductive, pool=pool,
    )  # fmt: skip


def from_folder(
    *,
    path: str = "",
    size: int | None = None,
    grey: bool = False,
    ways: int = 5,
    shots: int = 1,
    train_ways: int | None = None,
    train_shots: int | None = None,
    queries: int = 15,
    valid: float = 0.16,
    test: float = 0.2,
    seed: int = 0,
    network: nets.Name = "conv-max-pool",
    dropout: float = 0.0,
    standardise: bool = True,
    transductive: bool = True,
    pool: int | None = None,
) -> FewShot:
    """N-way K-shot classification of the pictures in a folder, a sub-folder a class; cross-entropy and accuracy.

    **Arguments:**

    - `path`: of the folder; its sub-folders hold the PNG and JPEG pictures of one class each.
    - `size`: pixels of a side to which every picture is resized; as they are if none.
    - `grey`: whether pictures are made grey, with one channel in place of three.
    - `ways`: classes of a task.
    - `shots`: support images of a class.
    - `train_ways`: classes of a training task; as `ways` if none.
    - `train_shots`: support images of a class in training; as `shots` if none.
    - `queries`: query images of a class.
    - `valid`, `test`: fractions of the classes that are kept for validation and for the test; the others train.
    - `seed`: of the split.
    - `network`: conv has strides and a mean over the last map, conv-max-pool has pooling and the whole last map; r2d2
      and resnet12 are the larger nets of Bertinetto et al. and of Lee et al.
    - `dropout`: what r2d2 and resnet12 drop in training.
    - `standardise`: whether every channel has mean 0 and standard deviation 1 over the training classes.
    - `transductive`: whether the queries of a task are normalised together, and so inform one another.
    - `pool`: training has so many tasks, visited again and again with other images; if none, ever new ones.

    **Raises:** `DataError` for a picture that cannot be read or differs in shape, `InputError` for what cannot be
    sampled from them.
    """
    if size is not None and size < 1:
        raise InputError(f"size = {size}: at least 1 is wanted.")
    images, labels = read_folder(_given(path, _FOLDER), size, grey)
    return few_shot(
        images, labels, ways=ways, shots=shots, train_ways=train_ways, train_shots=train_shots, queries=queries,
        splits=_fractions(valid, test), seed=seed, network=nets.network(network, dropout), standardise=standardise,
        transductive=transductive, pool=pool,
    )  # fmt: skip


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`images` and `labels` of an `.npz` file; nothing that is pickled is read.

    **Raises:** `DataError` that names the file.
    """
    if not path.exists():
        raise data.DataError(f"{path} does not exist: {_ARRAYS} is wanted.")
    if path.is_dir():
        raise data.DataError(f"{path} is a folder: {_ARRAYS} is wanted.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if missing := [name for name in ("images", "labels") if name not in arrays]:
                raise data.DataError(f"{path} has no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}.")
            return arrays["images"], arrays["labels"]
    except data.DataError:
        raise
    except (*_BROKEN_ARCHIVE, TypeError) as error:
        raise data.DataError(f"{path} is no .npz file that can be read: {error}") from error


def read_folder(folder: Path, size: int | None = None, grey: bool = False) -> tuple[np.ndarray, list[str]]:
    """The pictures, uint8 [n, h, w, c], and the names of their sub-folders, both in the order of the names.

    **Raises:** `DataError` that names the picture which cannot be read, or two that differ in shape.
    """
    if not folder.exists():
        raise data.DataError(f"{folder} does not exist: {_FOLDER} is wanted.")
    if not folder.is_dir():
        raise data.DataError(f"{folder} is a file: {_FOLDER} is wanted.")
    paths = [p for p in sorted(folder.glob("[!.]*/[!.]*")) if p.suffix.lower() in _PICTURES]
    if not paths:
        raise data.DataError(f"{folder} has no sub-folder with a PNG or JPEG picture in it.")
    pictures = [_picture(path, size, grey) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            shapes = [
                f"{p} has {a.shape[0]} x {a.shape[1]} pixels" for p, a in ((paths[0], pictures[0]), (path, picture))
            ]
            raise data.DataError(f"{shapes[0]}, and {shapes[1]}: give `size`, to which all are resized.")
    return np.stack(pictures), [path.parent.name for path in paths]


def _picture(path: Path, size: int | None, grey: bool) -> np.ndarray:
    """uint8 [h, w, 1 or 3]."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip them to white
                raise ValueError(f"it has {image.mode!r} pixels, of more than 8 bits a channel")
            image = image.convert("L" if grey else "RGB")
            image = image if size is None else image.resize((size, size), Image.Resampling.LANCZOS)
            pixels = np.asarray(image)
    except _BROKEN as error:
        raise data.DataError(f"{path} is no picture that can be read: {error}.") from error
    return pixels[..., None] if grey else pixels


def _given(path: str, what: str) -> Path:
    if not path:
        raise InputError(f"path = {path!r}: {what} is wanted.")
    return Path(path).expanduser()


def _fractions(valid: float, test: float) -> tuple[float, float, float]:
    if min(valid, test) < 0 or valid + test > 1:
        raise InputError(f"valid = {valid}, test = {test}: fractions of 0 or more, which sum to 1 at most, are wanted.")
    return 1 - valid - test, valid, test
