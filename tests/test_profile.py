"""Profiles: every operation has its phase, shares add up, and the run is the same."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabilevel.profiling import BACKWARD, OTHER, PHASES, phase_of, read_program

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))


@pytest.mark.parametrize(
    ("path", "phase"),
    [
        ("jit(_loop)/while/body/drawing/vmap(jit(_uniform))/add", "drawing tasks"),
        ("jit(_loop)/while/body/while/body/vmap(jvp(inner_solve))/while/body/transpose(jvp())/mul", "inner solve"),
        ("jit(_loop)/while/body/vmap(transpose(jvp(inner_solve)))/while/body/mul", BACKWARD + "inner solve"),
        ("jit(_loop)/transpose(jvp(inner_solve))/while/body/outer_loss/mul", BACKWARD + "outer loss"),
        ("jit(_loop)/while/body/outer_update/my_outer_update_rule/mul", "outer update"),
        ("jit(_loop)/while/body/drawings/add", None),
        ("jit(_loop)/while/body/add", None),
    ],
)
def test_the_phase_is_the_innermost_named_scope(path, phase):
    assert phase_of(path) == phase


def test_operations_are_read_from_a_compiled_program(optimised):
    def fn(x):
        with jax.named_scope("inner_solve"):
            y = jnp.sort(x)
        with jax.named_scope("outer_loss"):
            return jnp.cumsum(y)

    operations = read_program(jax.jit(jax.vmap(fn)).lower(jnp.ones((4, 1000))).compile().as_text())
    sorts = [o for o in operations.values() if o.phase == "inner solve" and o.bytes]
    assert {o.bytes for o in sorts} == {4 * 1000 * 4}
    assert {o.shape for o in sorts} == {"f32[4,1000]"}
    assert any(o.source.startswith("tests/test_profile.py:") for o in sorts)
    assert any(o.phase == "outer loss" for o in operations.values())


def run(folder, *options):
    arguments = [
        "run",
        "maml",
        "--tasks",
        "sinusoid",
        "--learning-rate",
        ".01",
        "--inner-steps",
        "3",
        "--meta-batch",
        "2",
    ]
    command = [PROGRAM, *arguments, "--steps", "4", "--every", "2", "--out", str(folder), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_profiled_run_is_the_same_run(tmp_path):
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    before, after = run(plain), run(profiled, "--profile")
    assert before["evaluation"] == after["evaluation"]
    for name in ("metrics.jsonl", "checkpoints/00000004.ckpt"):
        assert (plain / name).read_bytes() == (profiled / name).read_bytes()

    found = json.loads((profiled / "profile.json").read_text())
    assert found == after["profile"]
    assert found["start"] == 4
    phases = {row["phase"]: row for row in found["phases"]}
    known = {*PHASES.values(), *(BACKWARD + phase for phase in PHASES.values()), OTHER}
    assert (
        {"drawing tasks", "inner solve", "backward: inner solve", "outer loss", "outer update"}
        <= phases.keys()
        <= known
    )
    np.testing.assert_allclose(sum(row["share"] for row in phases.values()), 1)
    np.testing.assert_allclose(sum(row["seconds"] for row in phases.values()), found["seconds"])
    forward, direction, whole = found["temporaries"].values()
    assert 0 < forward < direction <= whole
    sizes = [buffer["bytes"] for buffer in found["buffers"]]
    assert sizes == sorted(sizes, reverse=True)
    assert list((profiled / "profile").rglob("*.xplane.pb"))
    assert list((profiled / "profile").rglob("*.trace.json.gz"))
