"""The kit as a third party uses it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from defects import maml, turned, weight_decay

import metabilevel as mb
from metabilevel import conformance


def halved(learner: mb.Learner, *, rate: float = 0.1) -> mb.Method:
    """Right in all but its scale, of which it claims nothing."""
    right = maml(learner)
    first_order = dataclasses.replace(right, estimator=mb.Nested(right.problem, right.solver, mb.Unroll(True)))
    return turned(first_order, lambda direction: jax.tree.map(lambda a: a / 2, direction))


class Half(mb.AbstractInverse):
    """A fixed approximation of the inverse, which is no defect."""

    def __call__(self, system):
        return system.b / 2, jnp.int32(0), mb.Result.success


def truncated(learner: mb.Learner) -> mb.Method:
    return weight_decay(learner, mb.Implicit(Half()))


def unannotated(learner):
    return maml(learner)


def on_numbers(subject: int) -> mb.Method:
    raise AssertionError("nobody can build it")


test_a_right_method = conformance.checks(unannotated, seeds=(0,))


@pytest.mark.parametrize("factory", [halved, truncated])
def test_an_approximation_is_accused_of_nothing(factory):
    assert [str(each) for each in conformance.run(factory, seeds=(0,)) if each.status == "failed"] == []


def test_what_claims_to_be_the_gradient_is_held_to_it():
    only = ["gradient-quadratic"]
    (demanded,) = conformance.run(halved, direction_is_the_gradient=True, only=only)
    assert demanded.status == "failed"
    (left_out,) = conformance.run(halved, direction_is_the_gradient=False, only=only)
    assert left_out.status == "not applicable"
    (right,) = conformance.run(unannotated, direction_is_the_gradient=True, only=only)
    assert right.status == "passed"


def test_names_of_the_cases_are_those_of_the_checks():
    (mark,) = conformance.checks(unannotated).pytestmark
    assert mark.args == ("check", list(conformance.CHECKS))
    assert all(conformance.CHECKS.values())


def test_a_subject_of_which_the_kit_has_none_is_not_applicable():
    outcomes = conformance.run(on_numbers)
    assert {each.status for each in outcomes} == {"not applicable"}
    assert "tasks=" in outcomes[0].message


def test_tasks_of_ones_own():
    only = ["builds", "runs", "carry-stable", "bad-task-left-out"]
    outcomes = conformance.run(unannotated, tasks=lambda: mb.load_tasks("sinusoid")(shots=3, queries=3), only=only)
    assert {each.name: each.status for each in outcomes} == dict.fromkeys(only, "passed")


def test_a_check_that_there_is_not_is_refused():
    with pytest.raises(mb.InputError, match="Did you mean 'gradient'"):
        conformance.run(unannotated, only=["gradiant"])
