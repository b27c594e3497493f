"""Checkpoints of a pytree: written atomically, verified when read, and free of pickled code.

A file is an `envelope`. Its header holds the step, the caller's metadata, and the path, the kind and the size of each
leaf; its body is the bytes of the leaves, one after the other.
"""

import re
import warnings
from collections.abc import Mapping
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .envelope import seal, unseal
from .leaves import decode, encode, flatten, kind

FORMAT = ("checkpoint", 1)
KEPT = 2


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    tree: Any
    metadata: dict[str, Any]


def save(folder: Path, step: int, tree: Any, metadata: Mapping[str, Any]) -> Path:
    """Writes `tree` (arrays, typed keys, Python numbers, None) to `folder`, and keeps the newest two checkpoints.

    Files of later steps, which a run that went on from an earlier one has left behind, go too.

    **Raises:** `TypeError` that names a leaf of another kind; `ComputationError` where it cannot be written.
    """
    leaves = flatten(tree)[0]
    kinds = [(name, kind(name, leaf)) for name, leaf in leaves.items()]
    parts = [encode(leaf) for leaf in leaves.values()]
    fields = {"step": step, "metadata": metadata, "leaves": kinds, "sizes": [len(part) for part in parts]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step:08d}.ckpt"
    seal(path, *FORMAT, fields, b"".join(parts))
    held = checkpoints(folder)
    newest = held[: held.index(path) + 1][-KEPT:]
    for other in set(held) - set(newest):
        other.unlink()
    return path


def restore(folder: Path, like: Any, within: str = "") -> Restored:
    """The newest intact checkpoint of `folder`: its tree bit for bit as it was saved, in the structure of `like`.

    `within` is the path of a part of what was saved, such as `.x`: that part alone is read and must fit.

    **Raises:** `CheckpointError` where none is intact, or where the tree has another structure, shape or dtype than
    `like`; it names the first leaf that differs.

    **Warns:** where a damaged one is passed over.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            header, body = unseal(path, *FORMAT)
        except (OSError, ValueError) as error:
            warnings.warn(f"The checkpoint {path} is damaged ({error}); the one before it is tried.", stacklevel=2)
        else:
            return Restored(header["step"], _filled(path, header, body, like, within), header["metadata"])
    state = f"damaged: {', '.join(path.name for path in paths)}" if paths else "it holds none"
    raise CheckpointError(f"No checkpoint can be restored from {folder} ({state}).")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, from the oldest to the newest."""
    return sorted((path for path in folder.glob("*.ckpt") if re.fullmatch(r"\d+", path.stem)), key=_step)


def _step(path: Path) -> int:
    return int(path.stem)


def _filled(path: Path, header: dict[str, Any], body: bytes, like: Any, within: str) -> Any:
    """The leaves in `body` of the part at `within`, in the structure of `like`, which must be the one of that part."""
    wanted, structure = flatten(like, within)
    held = [leaf for leaf in header["leaves"] if leaf[0].startswith(within)]
    for was, now in zip_longest(held, [[name, kind(name, leaf)] for name, leaf in wanted.items()]):
        if was != now:
            has, asked = (" of ".join(each) if each else "no further leaf" for each in (was, now))
            raise CheckpointError(f"{path} does not fit: it holds {has}, where {asked} is wanted.")
    stream = BytesIO(body)
    data = {name: stream.read(size) for (name, _), size in zip(header["leaves"], header["sizes"], strict=True)}
    return structure.unflatten(decode(data[name], leaf) for name, leaf in wanted.items())
