"""Other frameworks' candidates: each a process in a Python of its own, which answers line by line.

The protocol and the files are described beside the peers that come with the library.
"""

import json
import select
import shlex
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs

from ..errors import ComputationError, InputError

REQUIREMENTS = "requirements.txt"  # beside a script that serves peers
FIRST_CALL = 180.0  # seconds, in which a peer must have compiled what it compiles


class Absent(Exception):
    """The `peer` of that name does not take part, or no longer, for the reason that is said."""

    def __init__(self, peer: str, why: str):
        super().__init__(why)
        self.peer = peer


class Peer:
    """A process that computes a value and a gradient at every call.

    `spent` are the seconds of the processor that it has used so far, `resident` the bytes that it has held at most,
    `first` the seconds of its first call.

    **Raises:** `Absent` where it cannot take part.
    """

    def __init__(self, python: Path, script: Path, workload: str, name: str, file: Path):
        self.name, self.spent, self.resident, self.first = name, 0.0, 0, 0.0
        self._result = Path(f"{file}.{name}.npz")
        arguments = [python, script, workload, name, file]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        said = self._answer(FIRST_CALL)
        if "missing" in said:
            self.close()
            raise Absent(name, said["missing"])
        self.versions: dict[str, str] = said["versions"]

    def __call__(self, limit: float | None = None) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Absent(self.name, "its process ended early") from error
        said = self._answer(limit)
        self.spent, self.resident = said["processor"], said["peak"]

    def answer(self, like: Any) -> tuple[float, Any]:
        """Value and gradient, which is shaped as `like`, of a first call.

        **Raises:** `Absent` where that takes too long.
        """
        begun = time.perf_counter()
        self(FIRST_CALL)
        self.first = time.perf_counter() - begun
        with np.load(self._result) as found:
            leaves = [found[f"g.{i}"] for i in range(len(jax.tree.leaves(like)))]
            return float(found["value"]), jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def _answer(self, limit: float | None) -> dict[str, Any]:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], limit)[0]:
            self.close()
            raise Absent(self.name, f"no answer within {limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Absent(self.name, f"its process ended early, with status {self._process.wait()}")
        return json.loads(line)


def offered(script: Path) -> dict[str, list[str]]:
    """The peers that `script` serves, by workload."""
    listed = subprocess.run([sys.executable, script, "--list"], capture_output=True, text=True, check=True)
    return json.loads(listed.stdout)


def write_file(path: Path, x: Any, arrays: Mapping[str, Any]) -> None:
    """What the peers are given: the leaves of `x`, and `arrays` by name."""
    leaves = {f"x.{i}": a for i, a in enumerate(jax.tree.leaves(x))}
    given: dict[str, Any] = {name: _portable(np.asarray(a)) for name, a in {**leaves, **arrays}.items()}
    np.savez(path, **given)


def _portable(a: np.ndarray) -> np.ndarray:
    """Integers as int64, which other frameworks' losses want, and floats as float32."""
    return a.astype(np.int64 if np.issubdtype(a.dtype, np.integer) else np.float32)


def environment() -> Path:
    """The folder of the virtual environment that `install` makes."""
    return platformdirs.user_cache_path("metabilevel") / "peers"


def interpreter(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def find_python(chosen: Path | None) -> Path | None:
    """The Python that the peers run in: `chosen`, or that of the environment, or None where there is none.

    **Raises:** `InputError` where what was chosen is no Python.
    """
    if chosen is None:
        own = interpreter(environment())
        return own if own.is_file() else None
    try:
        subprocess.run([chosen, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"--peers-python: {str(chosen)!r} is no Python that runs.") from error
    return chosen


def install(scripts: Iterable[Path], say: Callable[[str], None]) -> list[dict[str, str]]:
    """Makes the environment, or adds to it what it lacks: each line of `requirements.txt` beside each of the `scripts`
    by a call of pip of its own, so that one that fails costs one peer.

    **Returns:** what is then there, a row for each package with its `version`, and one with the `problem` for each line
    that failed.

    **Raises:** `ComputationError` where no environment can be made.
    """
    folder = environment()
    python = interpreter(folder)
    if not python.is_file():
        say(f"An environment is made in {folder}.")
        try:
            venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ComputationError(f"No environment could be made in {folder}: {error}.") from error
    pip, problems = [python, "-m", "pip"], []
    files = [script.with_name(REQUIREMENTS) for script in dict.fromkeys(scripts)]
    for line in [line for file in files for line in file.read_text().splitlines()]:
        if not (words := shlex.split(line, comments=True)):
            continue
        say(f"pip install {' '.join(words)}")
        done = subprocess.run([*pip, "install", "--quiet", *words], capture_output=True, text=True)
        if done.returncode:
            said = [said for said in done.stderr.splitlines() if said.startswith("ERROR")]
            problems.append({"package": words[-1], "problem": said[0] if said else f"pip ended with {done.returncode}"})
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, text=True, check=True)
    return [{"package": each["name"], "version": each["version"]} for each in json.loads(listed.stdout)] + problems
