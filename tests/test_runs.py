"""A run directory belongs to one run and one process, and a killed run goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metabilevel.errors import CheckpointError, InputError, RunError
from metabilevel.plots import curves
from metabilevel.storage.config import Config, Environment, Plugin
from metabilevel.storage.runs import Run

CONFIG = Config(
    command="run",
    method=Plugin("maml", "metabilevel", "0.1.0", {"learning_rate": 0.4, "clip": float("inf"), "steps": 1}),
    tasks=Plugin("sinusoid", "metabilevel", "0.1.0", {"shots": 5}),
    seed=0,
    steps=10,
    meta_batch=25,
    optimizer="adam",
    learning_rate=1.0,
    options={"every": 1, "on_nonfinite": "raise"},
    environment=Environment({"python": "3.11.1", "jax": "0.10.0"}, "abc", "cpu", False, "2026-01-01T00:00:00+00:00"),
)


def walk(run: Run, until: int, kill: bool = False) -> None:
    """A deterministic computation with a row a step and a checkpoint every third."""
    found = run.restore({"x": np.zeros(2)})
    step, x = (found.step, found.tree["x"]) if found else (0, np.zeros(2))
    while step < until:
        step, x = step + 1, np.cos(x + step)
        run.append({"step": step, "x": x[0]})
        if step % 3 == 0:
            run.save(step, {"x": x})
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    run.finish({"x": x})


def child(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, with this module as `t`."""
    start = f"import importlib.util as u; s = u.spec_from_file_location('t', {__file__!r})"
    start += f"; t = u.module_from_spec(s); s.loader.exec_module(t); path = t.Path({str(path)!r})"
    return subprocess.run([sys.executable, "-c", f"{start}; {code}"], capture_output=True, text=True)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with Run.create(whole, CONFIG) as run:
        walk(run, 10)
    done = child(killed, "t.walk(t.Run.create(path, t.CONFIG), 8, kill=True)")
    assert done.returncode == -signal.SIGKILL, done.stderr
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "x"')
    (killed / "checkpoints" / "00000009.ckpt.tmp.77").write_bytes(b"half")
    with Run.resume(killed, CONFIG) as run:
        walk(run, 10)
    assert files(killed) == files(whole)
    assert [row["step"] for row in Run.open(killed).metrics()] == list(range(1, 11))


def test_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path):
    with Run.create(tmp_path, CONFIG) as run:
        run.append({"step": 1})
    with Run.resume(tmp_path, CONFIG) as run:
        assert run.restore(0) is None
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_run_killed_before_its_first_file_begins(tmp_path: Path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json.tmp.5").touch()
    with Run.resume(tmp_path, CONFIG) as run:
        assert run.restore(0) is None
    assert sorted(files(tmp_path)) == ["config.json"]


def test_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path):
    with Run.create(tmp_path, CONFIG) as run:
        walk(run, 10)
    expected = files(tmp_path)
    (tmp_path / "checkpoints" / "00000009.ckpt").write_bytes(b"junk")
    with Run.resume(tmp_path, CONFIG) as run, pytest.warns(UserWarning, match=r"00000009\.ckpt is damaged"):
        walk(run, 10)
    assert files(tmp_path) == expected


def test_second_process_is_refused(tmp_path: Path):
    with Run.create(tmp_path, CONFIG):
        done = child(tmp_path, "t.Run.resume(path, t.CONFIG)")
        assert f"RunError: The run directory {tmp_path} is in use by process {os.getpid()} on " in done.stderr
        with pytest.raises(RunError, match="in use"):
            Run.resume(tmp_path, CONFIG)
        assert Run.open(tmp_path).config.seed == 0
    Run.resume(tmp_path, CONFIG).close()


def test_directory_of_another_run_is_refused(tmp_path: Path):
    Run.create(tmp_path, CONFIG).close()
    before = files(tmp_path)
    with pytest.raises(RunError, match=f"{tmp_path} holds a run already"):
        Run.create(tmp_path, CONFIG)
    assert files(tmp_path) == before


def test_directory_with_other_files_is_refused_and_left_as_it_is(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    for make in (Run.create, Run.resume):
        with pytest.raises(RunError, match=r"holds 'thesis\.tex'"):
            make(tmp_path, CONFIG)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_path_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="cannot be made"):
            Run.create(path, CONFIG)
        with pytest.raises(RunError, match="no run"):
            Run.resume(path, CONFIG)


def test_no_run_to_open_or_resume(tmp_path: Path):
    with pytest.raises(RunError, match=r"There is no run in .*absent"):
        Run.open(tmp_path / "absent")
    with pytest.raises(RunError, match=r"There is no run in .*absent"):
        Run.resume(tmp_path / "absent", CONFIG)
    assert not (tmp_path / "absent").exists()


def test_each_changed_option_is_told(tmp_path: Path):
    Run.create(tmp_path, CONFIG).close()
    changed = replace(
        CONFIG,
        seed=3,
        steps=9,
        method=replace(CONFIG.method, options={"learning_rate": 0.5, "clip": float("inf"), "new": None, "first": True}),
        environment=replace(CONFIG.environment, x64=True, device="gpu", git_commit="def", date="today"),
    )
    with pytest.raises(RunError) as error:
        Run.resume(tmp_path, changed)
    assert str(error.value).partition(": ")[2].rstrip(".").split("; ") == [
        "method.options.learning_rate was 0.4 and is now 0.5",
        "method.options.steps was 1 and is now None",
        "seed was 0 and is now 3",
        "steps was 10 and is now 9",
        "environment.device was 'cpu' and is now 'gpu'",
        "environment.x64 was False and is now True",
        "method.options.first was None and is now True",
    ]


def test_other_versions_are_a_warning(tmp_path: Path):
    Run.create(tmp_path, CONFIG).close()
    environment = replace(
        CONFIG.environment, versions={"python": "3.11.1", "jax": "0.12.0"}, git_commit=None, date="later"
    )
    changed = replace(CONFIG, tasks=replace(CONFIG.tasks, version="0.2.0"), environment=environment)
    with pytest.warns(UserWarning, match="may differ in some bits") as caught:
        Run.resume(tmp_path, changed).close()
    assert str(caught[0].message).partition(": ")[2].rstrip(".").split("; ") == [
        "tasks.version was '0.1.0' and is now '0.2.0'",
        "environment.versions.jax was '0.10.0' and is now '0.12.0'",
        "environment.git_commit was 'abc' and is now None",
    ]


def test_more_steps_are_allowed(tmp_path: Path):
    with Run.create(tmp_path, CONFIG) as run:
        walk(run, 10)
    with Run.resume(tmp_path, replace(CONFIG, steps=20)) as run:
        assert Run.open(tmp_path).summary() is None
        walk(run, 20)
    assert Run.open(tmp_path).config.steps == 20
    assert [row["step"] for row in Run.open(tmp_path).metrics()] == list(range(1, 21))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("method.name", ..., r"config\.json\.method\.name is missing"),
        ("seed", ..., r"config\.json\.seed is missing"),
        ("method.options", [1], r"config\.json\.method\.options is \[1\], and must be an object"),
        ("tasks", "sinusoid", r"config\.json\.tasks is 'sinusoid', and must be an object"),
        ("seed", 1.5, r"config\.json\.seed is 1\.5, and must be an integer"),
        ("seed", True, r"config\.json\.seed is True, and must be an integer"),
        ("learning_rate", "fast", r"config\.json\.learning_rate is 'fast', and must be a number"),
        ("environment.git_commit", 3, r"config\.json\.environment\.git_commit is 3, and must be a text or null"),
        ("environment.versions.jax", 1, r"config\.json\.environment\.versions\.jax is 1, and must be a text"),
        ("stepz", 3, r"config\.json\.stepz is not known"),
    ],
)
def test_config_edited_by_hand(tmp_path: Path, place: str, value: Any, reason: str):
    Run.create(tmp_path, CONFIG).close()
    config = json.loads((tmp_path / "config.json").read_text())
    *folders, name = place.split(".")
    at = config
    for folder in folders:
        at = at[folder]
    at.pop(name) if value is ... else at.update({name: value})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=reason):
        Run.open(tmp_path)


def test_checkpoint_of_other_options_is_refused(tmp_path: Path):
    with Run.create(tmp_path, CONFIG) as run:
        walk(run, 10)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"learning_rate": 0.4', '"learning_rate": 0.5'))
    with pytest.raises(RunError, match=r"config\.json was changed since the checkpoint of step 9"):
        Run.open(tmp_path).restore({"x": np.zeros(2)})


def test_reading_changes_nothing(tmp_path: Path):
    with Run.create(tmp_path, CONFIG) as run:
        walk(run, 10)
    before, reader = files(tmp_path), Run.open(tmp_path)
    found = reader.restore({"x": np.zeros(2)})
    assert found is not None
    assert found.step == 9
    for write in (lambda: reader.append({}), lambda: reader.save(1, 0), lambda: reader.finish({})):
        with pytest.raises(RuntimeError, match="open for reading only"):
            write()
    with pytest.raises(CheckpointError, match="does not fit"):
        reader.restore({"y": np.zeros(2)})
    assert files(tmp_path) == before
    assert reader.config == CONFIG


def test_environment_of_this_process():
    environment = Environment.current()
    assert environment.versions.keys() >= {"python", "metabilevel", "jax", "jaxlib", "equinox", "optax", "numpy"}
    assert (environment.device, environment.x64) == ("cpu", False)


def test_curves(tmp_path: Path):
    rows = [{"step": 1, "loss": 2.0, "note": "text"}, {"step": 2, "loss": float("nan"), "accuracy": 1.0}]
    curves(tmp_path / "curves.png", "Run", rows)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="nothing to draw"):
        curves(tmp_path / "empty.png", "Run", [{"step": 1}])
    assert not (tmp_path / "empty.png").exists()


def test_failed_tasks_are_drawn_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr("metabilevel.plots.draw", lambda path, title, panels: drawn.append([p.title for p in panels]))
    for failed in (0, 3):
        curves(tmp_path, "Run", [{"step": 1, "loss": 2.0, "failed": 0}, {"step": 2, "loss": 1.0, "failed": failed}])
    assert drawn == [["loss"], ["loss", "failed"]]
