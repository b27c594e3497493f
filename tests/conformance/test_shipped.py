"""No method that is shipped is accused of anything, by any check, on any seed."""

import jax
import pytest

import metabilevel as mb
from metabilevel import conformance, registry

METHODS = [entry.name for entry in registry.entries(registry.METHODS)]
DEAR = {"jit", "float32", "uphill"}  # what is compiled for each alone is half of all; `make conformance` runs it too
ALWAYS = {"builds", "runs", "direction-like-x", "carry-stable", "info-complete", "compiles-once", "pure", "resumes"}


def outcomes_of(name: str, checks: set[str]) -> list[conformance.Outcome]:
    found = conformance.run(mb.load_method(name), only=[check for check in conformance.CHECKS if check in checks])
    jax.clear_caches()  # of no use to the next method, and 4 GB after all of them
    assert [str(outcome) for outcome in found if outcome.status == "failed"] == []
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_shipped_method_is_accused_of_nothing(name):
    outcomes = outcomes_of(name, conformance.CHECKS.keys() - DEAR)
    assert {outcome.name for outcome in outcomes if outcome.status == "passed"} >= ALWAYS


@pytest.mark.thorough
@pytest.mark.parametrize("name", METHODS)
def test_nor_by_the_checks_that_take_long(name):
    assert any(outcome.status == "passed" for outcome in outcomes_of(name, DEAR))
