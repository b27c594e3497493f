"""Files that survive a crash: replaced whole or not at all; JSON in the strict sense."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ComputationError, InputError

_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def replace(path: Path, *parts: bytes) -> None:
    """Puts `parts` into the file `path`. Whenever this stops, `path` holds either what it held or all of the new.

    **Raises:** `ComputationError` where it cannot be written, as on a full disk.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ComputationError(f"{path} could not be written: {error.strerror}. What it held is intact.") from error
    finally:
        with suppress(OSError):  # the error that matters is on its way; what stays is swept
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what a killed `replace` left in `folder`."""
    for stale in folder.glob("*.tmp.*"):
        stale.unlink(missing_ok=True)


def dumps(value: object) -> str:
    """One line of strict JSON, which knows no infinities: non-finite numbers become "nan", "inf" and "-inf"."""
    return json.dumps(plain(value), allow_nan=False)


def loads(text: str) -> Any:
    """The inverse of `dumps`.

    **Raises:** `ValueError` for what is not strict JSON.
    """
    try:
        return _restored(json.loads(text, parse_constant=_refuse))
    except RecursionError as error:
        raise ValueError("too many lists or objects lie one in the other") from error


def write_json(path: Path, value: object) -> None:
    """`value`, indented, in the file `path`."""
    replace(path, (json.dumps(plain(value), allow_nan=False, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    **Raises:** `InputError` that says where the file is not JSON.
    """
    try:
        return loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def plain(value: object) -> Any:
    """`value` in the types of JSON: arrays as lists, tuples as lists, non-finite numbers as texts.

    **Raises:** `TypeError` for what JSON cannot say.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{type(value).__name__} has no place in JSON.")
    return plain(array.tolist())


def _restored(value: Any) -> Any:
    match value:
        case dict():
            return {key: _restored(item) for key, item in value.items()}
        case list():
            return [_restored(item) for item in value]
        case str():
            return _NONFINITE.get(value, value)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _sync_folder(folder: Path) -> None:
    """Makes the new name of a file in `folder` durable, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
