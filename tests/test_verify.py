"""A run whose first steps are repeated: the same bits, rounding, or something else."""

import json
from pathlib import Path

import pytest

from metabilevel.commands.verify import compare

RUN = ("run", "maml", "--tasks", "sinusoid", "--meta-batch", "2", "--steps", "4", "--every", "2")


def test_a_run_is_repeated_and_compared(invoke):
    assert invoke(*RUN, "--out", "run")[0] == 0
    metrics = Path("run/metrics.jsonl")
    status, text, _ = invoke("verify", "run", "--reports", "9")
    assert (status, text) == (0, "The first 4 steps, 2 reports, are the same, bit for bit.\n")
    first, second = map(json.loads, metrics.read_text().splitlines())
    second["loss"] *= 1 + 1e-5
    metrics.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    status, text, _ = invoke("verify", "run", "--json")
    assert (status, json.loads(text)["identical"]) == (0, True)
    status, text, _ = invoke("verify", "run", "--reports", "2")
    assert status == 0
    assert "differ by 1.0e-05 at most (loss, step 4)" in text
    status, _, said = invoke("verify", "run", "--reports", "2", "--tolerance", "1e-6")
    assert status == 1
    assert "loss at step 4 is off by 1.0e-05 of its size, and 1e-06 is allowed" in said
    metrics.unlink()
    status, _, said = invoke("verify", "run")
    assert status == 2
    assert "has reported nothing yet" in said


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, ("a", 0.0)),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 4.0}, ("b", 0.5)),
        ({"a": float("nan"), "seconds": 1.0}, {"a": float("nan"), "seconds": 9.0}, ("a", 0.0)),
        ({"a": 1.0}, {"a": float("nan")}, ("a", float("inf"))),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}, ("b", float("inf"))),
    ],
)
def test_what_differs_most_is_named(old, new, expected):
    assert compare(old, new) == expected
