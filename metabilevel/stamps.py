"""What the conformance kit last said of an installed method: a record for each, which shows where the code has changed.

    <folder of stamps>/<distribution>%3A<method>.json     the folder: METABILEVEL_STAMPS, else in the user's data folder

A plugin is not imported in order to read its stamp, nor to find out whether it has changed since.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import platformdirs

from . import __version__
from .errors import InputError
from .registry import Entry
from .storage.config import decode
from .storage.files import read_json, write_json

FOLDER = "METABILEVEL_STAMPS"


@dataclass(frozen=True)
class Stamp:
    """A method that failed no check.

    `checks` counts those that it passed; `metabilevel` is the version of the kit; `digest` is that of the source.
    """

    name: str
    distribution: str
    version: str
    metabilevel: str
    date: str
    checks: int
    digest: str

    def holds(self, entry: Entry) -> bool:
        """Whether neither `entry` nor metabilevel has another version or source by now."""
        now = entry.version, __version__, digest(entry)
        return now == (self.version, self.metabilevel, self.digest)


def stamps_folder() -> Path:
    """`METABILEVEL_STAMPS`, or else a folder in the platform's folder of the user's data."""
    chosen = os.environ.get(FOLDER)
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("metabilevel") / "stamps"


def require_folder() -> None:
    """Makes the folder of stamps.

    **Raises:** `InputError` where it cannot be written to.
    """
    folder = stamps_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
        reason = "no permission"
    except OSError as error:
        writable, reason = False, str(error.strerror)
    if not writable:
        raise InputError(f"{folder} cannot keep a stamp: {reason}. Name another folder in {FOLDER}.")


def path_of(entry: Entry) -> Path:
    """Where the stamp of `entry` lies, if it has one."""
    return stamps_folder() / f"{quote(entry.qualified, safe='')}.json"


def read(entry: Entry) -> Stamp | None:
    """The stamp of `entry`, whether it holds or not.

    **Raises:** `InputError` for a file that is no stamp.
    """
    path = path_of(entry)
    return decode(Stamp, read_json(path), str(path)) if path.exists() else None


def keep(entry: Entry, checks: int, source: str) -> Path:
    """Stamps `entry`, whose source had the digest `source` when it passed `checks` checks and failed none."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    stamp = Stamp(entry.name, entry.distribution, entry.version, __version__, date, checks, source)
    write_json(path_of(entry), asdict(stamp))
    return path_of(entry)


def discard(entry: Entry) -> None:
    """Takes the stamp of `entry` away, if it has one."""
    path_of(entry).unlink(missing_ok=True)


def digest(entry: Entry) -> str:
    """sha256 of the source of the top-level package or module that `entry` is in; "" where that is not found."""
    spec = find_spec(entry.module.partition(".")[0])  # which imports nothing: the name has no dots
    total = hashlib.sha256()
    for root, path in _sources(spec) if spec else []:
        total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest() if spec else ""


def _sources(spec: ModuleSpec) -> list[tuple[Path, Path]]:
    """Every source file, with the folder that its name counts from."""
    if spec.submodule_search_locations is not None:
        roots = sorted(map(Path, spec.submodule_search_locations))
        return [(root, path) for root in roots for path in sorted(root.rglob("*.py"))]
    return [(Path(spec.origin).parent, Path(spec.origin))] if spec.origin and spec.has_location else []
