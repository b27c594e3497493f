"""The examples run, and find what they say that they find."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_learned_step_sizes_are_the_best_ones(capsys):
    found = runpy.run_path(str(EXAMPLES / "euler_step_size.py"))
    mu, steep = found["MU"], found["L"]
    assert float(found["one"]) == pytest.approx(2 / (mu + steep), rel=1e-3)
    assert float(found["each"]["flat"]) == pytest.approx(1 / mu, rel=1e-3)
    assert float(found["each"]["steep"]) == pytest.approx(1 / steep, rel=1e-3)
    assert len(capsys.readouterr().out.splitlines()) == len(found["rows"])
