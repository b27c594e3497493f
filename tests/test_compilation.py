"""What is compiled: kept for the next command, counted, and looked at before anything starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
RUN = ("run", "maml", "--tasks", "sinusoid", "--meta-batch", "2", "--steps", "3")
TRAINED = (*RUN, "--outer-learning-rate", "0.01", "--out")


def metabilevel(*arguments, folder, cache):
    """A run of the installed program: its document, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environment["METABILEVEL_COMPILATION_CACHE"] = str(cache)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # what compiles quickly is kept too
    done = subprocess.run(
        [PROGRAM, *arguments, "--json"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


def test_what_is_compiled_is_kept_and_a_damaged_cache_is_done_without(tmp_path):
    cache = tmp_path / "compiled"
    first, said = metabilevel(*RUN, "--dry-run", folder=tmp_path, cache=cache)
    assert not said
    assert first["compilation"]["cached"] == 0
    again, _ = metabilevel(*RUN, "--dry-run", folder=tmp_path, cache=cache)
    assert again["compilation"]["cached"] > 0
    assert again["programs"] == first["programs"]
    for entry in cache.glob("*-cache"):
        entry.write_bytes(entry.read_bytes()[:-50])
    damaged, said = metabilevel(*RUN, "--dry-run", folder=tmp_path, cache=cache)
    assert damaged["compilation"]["cached"] == 0
    assert said.count("Warning") == 1
    assert f"The compiled programs in {cache} cannot be used" in said
    assert "going on without them" in said
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_done_without_and_off_is_off(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    _, said = metabilevel(*TRAINED, "blocked", folder=tmp_path, cache=blocked / "cache")
    assert said.count("Warning") == 1
    document, said = metabilevel(*TRAINED, "off", folder=tmp_path, cache="off")
    assert document["compilation"]["seconds"] > 0
    assert not said
    states = [(tmp_path / each / "checkpoints" / "00000003.ckpt").read_bytes() for each in ("blocked", "off")]
    assert states[0] == states[1]


def test_a_dry_run_says_what_a_run_takes_and_starts_nothing(invoke):
    status, document, _ = invoke(*RUN, "--dry-run", "--json")
    found = json.loads(document)
    assert status == 0
    assert set(found["programs"]) == {"outer loop", "report", "evaluation (test)"}
    assert found["peak"] > max(each["temporaries"] for each in found["programs"].values())
    assert found["operations"]["of_all_steps"] == 3 * found["operations"]["a_step"]
    assert found["entries_of_x"] == 1761
    status, text, _ = invoke(*RUN, "--dry-run")
    assert status == 0
    assert "not started" in text
    assert not list(Path().iterdir())


@pytest.mark.parametrize("other", ["--resume", "--profile"])
def test_a_dry_run_has_nothing_to_resume_or_profile(other, invoke):
    status, _, said = invoke(*RUN, "--dry-run", other)
    assert status == 2
    assert "--dry-run starts nothing" in said


def test_the_precision_of_products_is_measured_kept_and_not_changed(invoke):
    status, _, said = invoke(*TRAINED, "rounded", "--precision", "bfloat16")
    assert status == 0
    assert "Products in bfloat16: a direction is off by 0.0e+00 of its norm in float32." in said
    assert json.loads(Path("rounded/config.json").read_text())["options"]["precision"] == "bfloat16"
    status, _, said = invoke(*TRAINED, "rounded", "--resume")
    assert status == 2
    assert "options.precision was 'bfloat16' and is now 'float32'" in said
