"""Rows of JSON, one a line, that are only ever added: the metrics of a run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ComputationError, InputError
from .files import dumps, loads


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one row.

    **Raises:** `ComputationError` where it cannot be written, as on a full disk.
    """
    _write(path, f"{dumps(row)}\n".encode())


def mark(path: Path) -> int:
    """Makes all rows durable and returns where they end, for `cut` to go back to."""
    return _write(path, b"", durable=True)


def cut(path: Path, end: int) -> None:
    """Drops what stands behind `end`, which is 0 or a `mark`.

    **Raises:** `InputError` where no row ends there.
    """
    rows = path.read_bytes() if path.exists() else b""
    if len(rows) < end or (end > 0 and rows[end - 1 : end] != b"\n"):
        raise InputError(f"{path} was changed by hand: its rows do not end where they did at the checkpoint.")
    if len(rows) > end:
        os.truncate(path, end)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows; one that is half written does not count.

    **Raises:** `InputError` that names the line which is no row.
    """
    *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(loads(line.decode()))
        except ValueError as error:
            raise InputError(f"{path}, line {number}, cannot be read: {error}.") from error
    return rows


def _write(path: Path, data: bytes, durable: bool = False) -> int:
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise ComputationError(f"{path} could not be written: {error.strerror}.") from error
