"""One file that is written whole or not at all, and in which a flipped bit anywhere is found.

    magic | length of the header, 8 bytes | header, JSON | sha256 of the header | body

The magic is a line that says what the file is, and the version of its format. The header holds what the caller says,
and the sha256 of the body.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import dumps, loads, replace


def seal(path: Path, kind: str, version: int, fields: Mapping[str, Any], body: bytes) -> None:
    """Writes `fields` and `body` to `path`.

    **Raises:** `ComputationError` where it cannot be written.
    """
    header = dumps({**fields, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    length = len(header).to_bytes(8, "little")
    replace(path, _magic(kind, version), length, header, hashlib.sha256(header).digest(), body)


def unseal(path: Path, kind: str, version: int) -> tuple[dict[str, Any], bytes]:
    """Fields and body of an intact file.

    **Raises:** `OSError`; `ValueError` that says what is wrong with it.
    """
    magic, content = _magic(kind, version), path.read_bytes()
    if not content.startswith(magic):
        line = content[: len(magic) + 8].partition(b"\n")[0]
        if line.startswith(magic.rstrip(b"0123456789\n")):
            raise ValueError(f"it is of the format {line.decode(errors='replace')!r}, not {magic.decode().strip()!r}")
        raise ValueError(f"it does not begin as {kind} files do")
    start = len(magic) + 8
    stop = start + int.from_bytes(content[len(magic) : start], "little")
    header, checksum, body = content[start:stop], content[stop : stop + 32], content[stop + 32 :]
    if checksum != hashlib.sha256(header).digest():
        raise ValueError("its header is truncated or altered: the checksum fails")
    fields = loads(header.decode())
    if not isinstance(fields, dict) or fields.get("sha256") != hashlib.sha256(body).hexdigest():
        raise ValueError("its body is truncated or altered: the checksum fails")
    return fields, body


def _magic(kind: str, version: int) -> bytes:
    return f"metabilevel {kind} {version}\n".encode()
