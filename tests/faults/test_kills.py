"""A run that is killed again and again ends bit for bit as one that nothing happened to.

`make faults` kills a hundred times, the tests a few; METABILEVEL_KILLS says how often. Half of the kills come while a
file is being written, the others at any moment from the start of the program to its end.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metabilevel.storage.runs import Run

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
KILLS = int(os.environ.get("METABILEVEL_KILLS", "3"))
STEPS = 15_000
RUN = [PROGRAM, "run", "maml", "--tasks", "sinusoid", "--learning-rate", "0.01", "--meta-batch", "4"]
RUN += ["--steps", str(STEPS), "--every", "300", "--validation", "20"]


def finished(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, "--out", str(path), "--resume"], capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing happened to, and the seconds that it took."""
    path = tmp_path_factory.mktemp("whole")
    begun = time.perf_counter()
    done = finished(path)
    assert done.returncode == 0, done.stderr
    return path, time.perf_counter() - begun


def require_same(path: Path, whole: Path) -> None:
    """Raises where a finished run differs from the undisturbed one in a bit, or has left a file."""
    assert not list(path.rglob("*.tmp.*"))
    assert len(list(path.rglob("*.ckpt"))) == 2
    for name in ("metrics.jsonl", f"checkpoints/{STEPS:08d}.ckpt", "curves.png"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (Run.open(each).summary() or {} for each in (path, whole))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def being_written(folder: Path) -> set[tuple[str, int]]:
    """The temporary files in a folder that may not be there yet."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as files:
        return {(file.name, file.stat().st_ctime_ns) for file in files if ".tmp." in file.name}
    return set()


def killed(path: Path, draw: random.Random, seconds: float) -> bool:
    """Goes on with the run in `path` and kills it; False where it came to its end before."""
    while_writing, delay, nth = draw.random() < 0.5, draw.uniform(0, seconds), draw.randrange(1, 5)
    begun, seen = time.perf_counter(), set()
    with subprocess.Popen(
        [*RUN, "--out", str(path), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        while running.poll() is None:
            seen |= being_written(path) | being_written(path / "checkpoints")
            if len(seen) >= nth if while_writing else time.perf_counter() - begun > delay:
                running.send_signal(signal.SIGKILL)
                break
    return running.returncode == -signal.SIGKILL


def test_a_run_that_is_killed_at_any_moment_ends_as_an_undisturbed_one(
    whole: tuple[Path, float], tmp_path: Path
) -> None:
    draw, kills = random.Random(0), 0
    for number in itertools.count():
        path = tmp_path / str(number)
        path.mkdir()
        while kills < KILLS and killed(path, draw, whole[1]):
            kills += 1
        done = finished(path)
        assert done.returncode == 0, done.stderr
        require_same(path, whole[0])
        if kills == KILLS:
            return
