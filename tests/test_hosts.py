"""Several processes that share one run, on loopback: what they compute, and how they end."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import pytest

from metabilevel.commands.devices import place_of
from metabilevel.commands.experiment import Experiment
from metabilevel.errors import ComputationError, InputError
from metabilevel.hosts import Group, Place, gather, reach
from metabilevel.storage.runs import CHECKPOINTS, METRICS, Run

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
MAML = "run", "maml", "--tasks", "sinusoid", "--meta-batch", "4", "--learning-rate", ".01", "--every", "1"
PATIENCE = 120  # seconds that anything may take on a busy machine


def restored(path: str) -> list[Any]:
    """The leaves of the x of a run's last checkpoint."""
    return jax.tree.leaves(Experiment.restored(path)[1])


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def together(*arguments: str, processes: int = 2) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    group = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
    start = lambda number: subprocess.Popen(
        [PROGRAM, *arguments, *group, "--process-id", str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return [start(number) for number in range(processes)]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, standard output and standard error of each."""
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def until(reached: Callable[[], bool], processes: list[subprocess.Popen[str]]) -> None:
    latest = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > latest or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            raise AssertionError(ends(processes))
        time.sleep(0.02)


@pytest.mark.filterwarnings("always:The rest of the run")
def test_two_processes_compute_what_one_does_and_one_goes_on(invoke):
    leader, follower = ends(together(*MAML, "--steps", "3", "--out", "shared", "--json"))
    assert leader[0] == 0, leader
    assert follower == (0, "", "")
    assert leader[1].count("\n") == 1
    assert Run.open("shared").config.environment.devices == 2
    status, _, said = invoke(*MAML, "--steps", "5", "--out", "shared", "--resume")
    assert (status, "environment.devices was 2 and is now 1" in said) == (0, True), said
    assert invoke(*MAML, "--steps", "5", "--out", "alone")[0] == 0
    shared, alone = Run.open("shared"), Run.open("alone")
    for row, wanted in zip(shared.metrics(), alone.metrics(), strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    for a, b in zip(*(restored(path) for path in ("shared", "alone")), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_leaves_a_checkpoint(lost, invoke):
    processes = together(*MAML, "--steps", "1000000", "--out", "run")
    rows = Path("run", METRICS)
    until(lambda: rows.exists() and rows.read_text().count("\n") > 2, processes)
    processes[lost].kill()
    found = ends(processes)
    assert found[lost][0] == -signal.SIGKILL
    status, output, said = found[1 - lost]
    assert (status, output) == (1, "")
    assert said.startswith(f"Error: Process {lost} on ")
    assert said.count("\n") == 1
    status, _, said = invoke("evaluate", "run", "--episodes", "4", "--json")
    assert status == 0, said


def test_a_signal_to_any_stops_all_with_a_checkpoint(invoke):
    processes = together(*MAML, "--steps", "1000000", "--out", "run")
    rows = Path("run", METRICS)
    until(lambda: rows.exists() and rows.read_text().count("\n") > 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    found = ends(processes)
    assert [status for status, _, _ in found] == [143, 143]
    step = int(found[0][2].split("Interrupted at step ")[1].split()[0])
    assert Path("run", CHECKPOINTS, f"{step:08d}.ckpt").is_file()
    assert Run.open("run").metrics()[-1]["step"] == step


def test_what_only_one_process_finds_ends_the_others(invoke):
    Path("full").mkdir()
    Path("full", "thesis.tex").touch()
    (status, _, said), (other, _, told) = ends(together(*MAML, "--steps", "1", "--out", "full"))
    assert (status, other) == (2, 1)
    assert "thesis.tex" in said
    assert "Process 0 on" in told
    assert "thesis.tex" in told


def meeting(
    asked: tuple[Mapping[str, Any], ...], numbers: tuple[int, ...] = (0, 1), processes: tuple[int, ...] = (2, 2)
) -> Any:
    """What each of the processes gets that meet with these numbers, each `asked` for something: an error, or a port."""
    port = free_port()

    def lost(message: str) -> NoReturn:
        raise AssertionError(message)

    def meet(number: int, of: int, asked: Mapping[str, Any]) -> Any:
        group = Group(Place("127.0.0.1", port, of, number), lost)
        try:
            return (reach if number else gather)(group, asked, 3)
        except (InputError, ComputationError) as error:
            return error
        finally:
            group.close()

    with ThreadPoolExecutor() as threads:
        return list(threads.map(meet, numbers, processes, asked))


def test_processes_that_were_asked_for_the_same_meet():
    first, second = meeting(({"steps": 5}, {"steps": 5}))
    assert isinstance(first, int)
    assert first == second


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"asked": ({"steps": 5, "seed": 0}, {"steps": 6})}, "steps is 5 in process 0 and 6 there; seed is 0"),
        ({"asked": ({}, {}), "processes": (2, 3)}, "told of 2 processes, and process 1 on .* of 3"),
        ({"asked": ({}, {}, {}), "numbers": (0, 1, 1), "processes": (3, 3, 3)}, "two have the number 1"),
    ],
)
def test_processes_that_do_not_fit_are_all_refused(others, message):
    for each in meeting(**others):
        with pytest.raises(InputError, match=message):
            raise each


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}\n",
        b"[" * 10**5 + b"\n",
        b'{"number": [1], "processes": 2, "host": "h", "asked": {}}\n',
    ],
)
def test_a_stranger_is_not_listened_to(said):
    port = free_port()
    leader, other = (Group(Place("127.0.0.1", port, 2, number), pytest.fail) for number in (0, 1))
    with closing(leader), closing(other), ThreadPoolExecutor() as threads:
        gathered = threads.submit(gather, leader, {}, PATIENCE)
        stranger = socket.socket()
        while stranger.connect_ex(("127.0.0.1", port)):
            pass
        stranger.sendall(said)
        stranger.close()
        assert reach(other, {}, PATIENCE) == gathered.result()


def test_one_that_is_started_again_takes_its_old_place():
    port = free_port()
    place = lambda number: Place("127.0.0.1", port, 3, number)
    with ThreadPoolExecutor() as threads:
        leader = Group(place(0), pytest.fail)
        gathered = threads.submit(gather, leader, {}, PATIENCE)
        killed = socket.socket()
        while killed.connect_ex(("127.0.0.1", port)):
            pass
        killed.sendall(b'{"number": 1, "processes": 3, "host": "h", "asked": {}}\n')
        killed.close()
        others = [Group(place(number), pytest.fail) for number in (1, 2)]
        ports = list(threads.map(lambda other: reach(other, {}, PATIENCE), others))
        assert ports == [gathered.result()] * 2
        for each in (leader, *others):
            each.close()


def test_who_does_not_come_is_named_and_so_is_who_is_not_there():
    for number, message in [
        (0, "Process 1 of 2 did not come to 127.0.0.1"),
        (1, "No coordinator .*127.0.0.1:.*refused"),
    ]:
        [error] = meeting(({},), numbers=(number,), processes=(2,))
        with pytest.raises(ComputationError, match=message):
            raise error


def test_slurm_says_who_is_who(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NUM_NODES": "2",
    }.items():
        monkeypatch.setenv(name, value)
    place = place_of(None, None, None, 1)
    assert (place.host, place.processes, place.number, place.local_devices) == ("node3", 8, 5, [1])
    assert place_of(("here", 99), 2, 1, 1) == Place("here", 99, 2, 1, [1])


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="--processes is missing"):
        place_of(("here", 99), None, 0, 1)
    with pytest.raises(InputError, match="from 0 to 1"):
        place_of(("here", 99), 2, 2, 1)
