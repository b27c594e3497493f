"""No method that is shipped is accused of anything, by any check, on any seed."""

import jax
import pytest

import metabilevel as mb
from metabilevel import conformance, registry

METHODS = [entry.name for entry in registry.entries(registry.METHODS)]
ALWAYS = {
    "builds",
    "runs",
    "direction-like-x",
    "carry-stable",
    "info-complete",
    "compiles-once",
    "pure",
    "resumes",
    "jit",
}


@pytest.mark.parametrize("name", METHODS)
def test_a_shipped_method_is_accused_of_nothing(name):
    outcomes = conformance.run(mb.load_method(name))
    jax.clear_caches()  # of no use to the next method, and 4 GB after all of them
    assert [str(outcome) for outcome in outcomes if outcome.status == "failed"] == []
    assert {outcome.name for outcome in outcomes if outcome.status == "passed"} >= ALWAYS
