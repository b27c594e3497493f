"""The directory of a population: what was asked for, one directory for each run, and what they came to."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from .files import read_json, sweep, write_json
from .runs import CONFIG, POPULATION, locked, require_unused


@contextmanager
def opened(path: Path, names: Sequence[str], asked: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """The directory `path` for the runs `names`, under a lock while this is entered; `asked` is what is kept of them.

    A population that is gone on with may have more runs than before.

    **Raises:** `RunError` for a directory that another process has, or that holds something else; to `resume`, one
    without a population, or with runs that are not among `names`.
    """
    if resume:
        _require_population(path, names)
    else:
        require_unused(path)
        path.mkdir(parents=True, exist_ok=True)
    with locked(path) as lock:
        try:
            sweep(path)
            write_json(path / POPULATION, {"runs": list(names), **asked})
            yield
        except InputError:
            if not any((path / name).exists() for name in names):  # nothing was begun
                (path / POPULATION).unlink()
            raise
        finally:
            lock.release()


def _require_population(path: Path, names: Sequence[str]) -> None:
    if (path / CONFIG).is_file():
        raise RunError(f"{path} holds a single run: go on with it without --seeds and --sweep.")
    if not (path / POPULATION).is_file():
        raise RunError(f"There is no population in {path}: it holds no {POPULATION}.")
    if missing := [name for name in read_json(path / POPULATION)["runs"] if name not in names]:
        raise RunError(
            f"{path} holds the run {missing[0]!r}, which is not asked for now: give the same --seeds, --seed and "
            "--sweep, or more values."
        )
