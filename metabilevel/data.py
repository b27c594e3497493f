"""The store of data sets: official files by their checksums, and the arrays made of them.

    <data folder>/<data set>/<file>         the data folder: METABILEVEL_DATA, else the platform's user cache

A data set is a value, declared beside the tasks that use it (entry-point group `metabilevel.data`), in a module that
does not import jax. What lies in the folder is the user's: it is never changed or deleted, and a file that is not
what it should be is an error, not a reason to download it again.
"""

import hashlib
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import platformdirs

from .downloads import download
from .errors import ComputationError, InputError
from .storage.files import replace

Arrays: TypeAlias = dict[str, np.ndarray]


class DataError(InputError):
    """A data set is missing, is corrupt or cannot be had; the message names the file and says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its authors publish it; `checksum` is `"<algorithm>:<hexadecimal digits>"`.

    The `url` is "" of a file that is published nowhere in this form.
    """

    filename: str
    url: str
    checksum: str


@dataclass(frozen=True)
class DataSet:
    """Official files and the arrays made of them.

    **Arguments:**

    - `name`: on the command line, and of the folder, which has underscores for hyphens.
    - `files`: what is downloaded.
    - `build(paths of the files) -> {name: array}`: raises `DataError` that names the file which it cannot read.
    - `sha256`: the `digest` of every array by its name. So what `build` gives can be checked, and a cache is right or
      wrong whoever wrote it, with whatever compression.
    - `cache`: the name of an `.npz` file that keeps the arrays, or None where building them is quick.
    - `packed`: a part of it in files of another form, which a task family takes where those alone are there.
    """

    name: str
    files: tuple[RemoteFile, ...]
    build: Callable[[tuple[Path, ...]], Arrays]
    sha256: dict[str, str]
    cache: str | None
    licence: str
    citation: str
    packed: "DataSet | None" = None

    @property
    def folder(self) -> Path:
        return data_folder() / self.name.replace("-", "_")


@dataclass(frozen=True)
class FileStatus:
    """One file. `"present"` says that it is there, unchecked; `problem` says what is wrong with a `"corrupt"` one."""

    path: Path
    state: Literal["missing", "present", "verified", "corrupt"]
    size: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Status:
    """The official files of a data set, and its cache and its packed part where it has them."""

    name: str
    files: tuple[FileStatus, ...]
    cache: FileStatus | None
    packed: "Status | None" = None

    @property
    def ready(self) -> bool:
        """Whether `load` does without the network."""
        used = self.files if self.cache is None or self.cache.state == "missing" else (self.cache,)
        return all(file.state in ("present", "verified") for file in used)

    @property
    def packed_serves(self) -> bool:
        """Whether the packed part is taken in place of the data set."""
        return not self.ready and self.packed is not None and self.packed.ready


def data_folder() -> Path:
    """`METABILEVEL_DATA`, or else a folder in the platform's user cache."""
    chosen = os.environ.get("METABILEVEL_DATA")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("metabilevel") / "data"


def status(dataset: DataSet) -> Status:
    """Which files are there; none is opened."""
    return _survey(dataset, check=False)


def verify(dataset: DataSet) -> Status:
    """Which files are there and are what they should be; all are read."""
    return _survey(dataset, check=True)


def fetch(dataset: DataSet) -> Status:
    """Makes `load` do without the network, and downloads nothing where it does already.

    **Raises:** `DataError`, as `load` does.
    """
    load(dataset)
    return status(dataset)


def load(dataset: DataSet) -> Arrays:
    """The arrays of a data set: out of its cache, else of its files, which are downloaded where they are missing.

    **Raises:** `DataError` if something there is not what it should be, or if what is missing cannot be downloaded.
    """
    if dataset.cache and os.path.lexists(dataset.folder / dataset.cache):
        return _read_cache(dataset, dataset.folder / dataset.cache)
    arrays = dataset.build(files(dataset))
    if difference := _difference(dataset, arrays):
        raise DataError(f"The files of {dataset.name} are right, but were read wrongly: {difference}.")
    if dataset.cache:
        _write_cache(dataset.folder / dataset.cache, arrays)
    return arrays


def files(dataset: DataSet) -> tuple[Path, ...]:
    """The paths of the official files, each of them checked, after downloading those that are missing.

    **Raises:** `DataError`, as `load` does.
    """
    paths = {file: dataset.folder / file.filename for file in dataset.files}
    missing = [file for file, path in paths.items() if not os.path.lexists(path)]
    for file in dataset.files:
        if file not in missing:
            _check(dataset, file)
    for file in missing:
        remedy = f"Put it at {paths[file]} by hand, or name the folder where it lies in METABILEVEL_DATA"
        if not file.url:
            raise DataError(f"{paths[file]} is not there, and is published nowhere in this form.\n{remedy}.")
        try:
            download(file.url, paths[file], file.checksum)
        except InputError as error:
            raise DataError(f"{error}\n{remedy}, or try again: metabilevel data fetch {dataset.name}") from error
    return tuple(paths.values())


def digest(array: np.ndarray) -> str:
    """sha256 of an array's type, shape and values."""
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def _survey(dataset: DataSet, check: bool) -> Status:
    def examine(path: Path, read: Callable[[], object]) -> FileStatus:
        if not os.path.lexists(path):
            return FileStatus(path, "missing")
        size = path.lstat().st_size
        if not check:
            return FileStatus(path, "present", size)
        try:
            read()
        except DataError as error:
            return FileStatus(path, "corrupt", size, str(error))
        return FileStatus(path, "verified", size)

    official = tuple(examine(dataset.folder / file.filename, partial(_check, dataset, file)) for file in dataset.files)
    cache = dataset.folder / dataset.cache if dataset.cache else None
    kept = cache and examine(cache, partial(_read_cache, dataset, cache))
    return Status(dataset.name, official, kept, dataset.packed and _survey(dataset.packed, check))


def _check(dataset: DataSet, file: RemoteFile) -> None:
    path = dataset.folder / file.filename
    algorithm, _, expected = file.checksum.partition(":")
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
            size = stream.tell()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if found != expected:
        raise _altered(dataset, path, f"its {size:,} bytes have {algorithm} {found}, not {expected}")


def _read_cache(dataset: DataSet, path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(f"{name}.npy") for name in dataset.sha256}
        arrays = {n: np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False) for n, raw in members.items()}
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, LZMAError) as e:
        raise _altered(dataset, path, f"{type(e).__name__}: {e}") from e
    if difference := _difference(dataset, arrays):
        raise _altered(dataset, path, difference)
    return arrays


def _write_cache(path: Path, arrays: Arrays) -> None:
    """Keeps `arrays`. Where that cannot be done, as in a read-only folder, they are built again next time."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    try:
        replace(path, stream.getvalue())
    except (OSError, ComputationError) as error:
        warnings.warn(f"{path} is not kept, and will be made again: {error}", stacklevel=3)


def _difference(dataset: DataSet, arrays: Arrays) -> str:
    for name, expected in dataset.sha256.items():
        if (found := digest(arrays[name])) != expected:
            return f"array {name!r} has sha256 {found}, not {expected}"
    return ""


def _altered(dataset: DataSet, path: Path, how: str) -> DataError:
    advice = f"Nothing was changed. Move it away, then: metabilevel data fetch {dataset.name}"
    return DataError(f"{path} is truncated or altered: {how}.\n{advice}")
