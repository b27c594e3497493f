"""A run directory: what was asked for, what came out, and what is needed to go on.

- `config.json`: everything needed to repeat the run
- `metrics.jsonl`: one row a report, only ever added to
- `checkpoints/`: the newest two
- `summary.json`: what the finished run came to
"""

import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from ..errors import RunError
from . import checkpoint, journal
from .checkpoint import Restored
from .config import Config, decode, differences, digest
from .files import read_json, sweep, write_json

PathLike: TypeAlias = str | os.PathLike[str]

CONFIG, METRICS, CHECKPOINTS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "checkpoints", "summary.json", ".lock"
POPULATION = "population.json"  # in a directory whose directories are runs
VERSIONS = "environment.versions."
MINOR = {"environment.git_commit", "environment.devices", "method.version", "tasks.version"}


class Run:
    """One run in its directory, made by `create`, `resume` (both for writing, under a lock) or `open` (for reading).

    As a context manager it frees the lock at the end.
    """

    def __init__(self, path: Path, config: Config, lock: FileLock | None = None):
        self.path = path
        self.config = config
        self._lock = lock

    @classmethod
    def create(cls, path: PathLike, config: Config) -> "Run":
        """A new run in a directory that is made, or is empty.

        **Raises:** `RunError` where the directory holds another run, other files, or another process.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run directory {path} cannot be made: {error.strerror}.") from error
        require_unused(path)
        with locked(path) as lock:
            require_unused(path)
            sweep(path)
            write_json(path / CONFIG, asdict(config))
            return cls(path, cls.open(path).config, lock)

    @classmethod
    def open(cls, path: PathLike) -> "Run":
        """An existing run, to be read.

        **Raises:** `RunError` where there is none, `InputError` that names the place in config.json which is wrong.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            if (path / POPULATION).is_file():
                raise RunError(f"{path} holds a population: give the directory of one of its runs.")
            raise RunError(f"There is no run in {path}: it holds no {CONFIG}.")
        return cls(path, decode(Config, read_json(path / CONFIG), str(path / CONFIG)))

    @classmethod
    def resume(cls, path: PathLike, config: Config) -> "Run":
        """An existing run, to be gone on with; one that was killed before it had a file is begun.

        `config` must be the run's own, but for more steps.

        **Raises:** `RunError` where there is none, where another process has it, or for each option that differs.

        **Warns:** where versions or the commit differ, which may change bits.
        """
        path = Path(path)
        if path.is_dir() and not (path / CONFIG).exists():
            return cls.create(path, config)
        cls.open(path)
        with locked(path) as lock:
            stored = cls.open(path).config
            _compare(path, stored, config)
            for folder in (path, path / CHECKPOINTS):
                sweep(folder)
            if config.steps > stored.steps:
                stored = replace(stored, steps=config.steps)
                write_json(path / CONFIG, asdict(stored))
                (path / SUMMARY).unlink(missing_ok=True)
            return cls(path, stored, lock)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the metrics. The rows of a step come before its `save`."""
        self._require_lock()
        journal.append(self.path / METRICS, row)

    def save(self, step: int, tree: Any) -> Path:
        """A checkpoint of `tree`, which marks how far the metrics are."""
        self._require_lock()
        metadata = {"config": digest(self.config), "metrics_end": journal.mark(self.path / METRICS)}
        return checkpoint.save(self.path / CHECKPOINTS, step, tree, metadata)

    def restore(self, like: Any, within: str = "") -> Restored | None:
        """The newest intact checkpoint, None before the first; `within` as of `checkpoint.restore`.

        A run that was resumed drops the metrics after it.

        **Raises:** `CheckpointError` where none is intact or fits `like`, `RunError` where the run was edited by hand.
        """
        found = None
        if checkpoint.checkpoints(self.path / CHECKPOINTS):
            found = checkpoint.restore(self.path / CHECKPOINTS, like, within)
            if found.metadata["config"] != digest(self.config):
                raise RunError(f"{self.path / CONFIG} was changed since the checkpoint of step {found.step}.")
        if self._lock is not None:
            journal.cut(self.path / METRICS, found.metadata["metrics_end"] if found else 0)
        return found

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary."""
        self._require_lock()
        write_json(self.path / SUMMARY, summary)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows up to now; one that is half written does not count."""
        return journal.read(self.path / METRICS)

    def summary(self) -> dict[str, Any] | None:
        """What `finish` wrote; None of a run that has not come to its end."""
        return read_json(self.path / SUMMARY) if (self.path / SUMMARY).exists() else None

    def close(self) -> None:
        """Frees the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"The run {self.path} is open for reading only.")


@contextmanager
def locked(path: Path) -> Iterator[FileLock]:
    """A lock that stays where the block comes to its end, and is freed where it fails, or where the process ends.

    The file says who holds it.
    """
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
        (path / LOCK).write_text(f"process {os.getpid()} on {platform.node()}")
    except Timeout as error:
        holder = (path / LOCK).read_text() or "another process"
        raise RunError(f"The run directory {path} is in use by {holder}.") from error
    except OSError as error:
        raise RunError(f"The run directory {path} cannot be locked: {error.strerror}.") from error
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def require_unused(path: Path) -> None:
    """Raises a `RunError` where `path` is a directory that holds a run or any other file."""
    items = path.iterdir() if path.is_dir() else ()
    held = sorted(item.name for item in items if item.name != LOCK and ".tmp." not in item.name)
    if CONFIG in held:
        raise RunError(f"{path} holds a run already: go on with it by --resume, or give another directory.")
    if POPULATION in held:
        raise RunError(
            f"{path} holds a population: go on with it by --resume and its --seeds and --sweep, or give another "
            "directory."
        )
    if held:
        raise RunError(f"{path} holds {held[0]!r}, which is no run's: give an empty directory or a new one.")


def _compare(path: Path, stored: Config, given: Config) -> None:
    changed = differences(stored, given)
    changed.pop("environment.date", None)
    if given.steps > stored.steps:
        del changed["steps"]
    minor = {name: values for name, values in changed.items() if name in MINOR or name.startswith(VERSIONS)}
    if major := {name: values for name, values in changed.items() if name not in minor}:
        raise RunError(f"The run in {path} cannot be resumed with other options: {_told(major)}.")
    if minor:
        warnings.warn(f"The rest of the run in {path} may differ in some bits: {_told(minor)}.", stacklevel=3)


def _told(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {old!r} and is now {new!r}" for name, (old, new) in changed.items())
