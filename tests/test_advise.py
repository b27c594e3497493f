"""Advice on problems of which the right advice is known."""

import dataclasses
import json
import math
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, quadratic

import metabilevel as mb
from metabilevel.advice import reference
from metabilevel.advice.advice import Advice, Row, front, recommend
from metabilevel.advice.candidates import ROWS, TANGENTS, candidates
from metabilevel.cli import main

KEY = jax.random.key(0)
EXAMPLE = Path(__file__).parents[1] / "examples" / "ridge_penalty.py"
N = 30
CURVATURES = jnp.linspace(0.3, 1.0, N)
TARGET = jax.random.normal(jax.random.key(1), (N,))


class Case(NamedTuple):
    problem: mb.BilevelProblem
    x: Any
    solver: mb.AbstractInnerSolver


def bowl(x: Any, y: Any, task: Any, key: Any) -> Any:
    return CURVATURES @ y**2 / 2 + jnp.sum(jnp.tanh(x) * y) + jnp.sum(jnp.cos(y)) / 10


outer = lambda x, y, task, key: jnp.sum((y - TARGET) ** 2)
zeros = lambda x, task, key: jnp.zeros(N)

CASES = {
    # y is solved, after so many steps that going back along them costs much
    "solved": Case(
        mb.BilevelProblem(zeros, bowl, outer), jnp.linspace(-1, 1, N), mb.GradientDescent(optax.sgd(0.9), 3000)
    ),
    # x is where y starts, and how far it goes: few steps, far from the solution
    "start and rate": Case(
        mb.BilevelProblem(
            lambda x, task, key: x["start"], lambda x, y, task, key: bowl(jnp.ones(N), y, task, key), outer
        ),
        {"start": jnp.ones(N), "rate": jnp.array(0.1)},
        mb.Descent(lambda x, i: x["rate"], steps=7),
    ),
    # the inner loss has a saddle, and few steps have not left it
    "saddle": Case(
        mb.BilevelProblem(
            lambda x, task, key: jnp.array([1.0, 1.0, 1e-3]),
            lambda x, y, task, key: (y[0] ** 2 + 2 * y[1] ** 2 - y[2] ** 2) / 2 - x @ y[:2] * (1 + y[2]),
            lambda x, y, task, key: jnp.sum((y - 1) ** 2),
        ),
        jnp.array([0.5, 0.3]),
        mb.GradientDescent(optax.sgd(0.1), 12),
    ),
    # a constrained minimum, whose residual has a derivative that is not symmetric
    "box": Case(
        mb.BilevelProblem(zeros, lambda x, y, task, key: bowl(x * jnp.ones(N), y, task, key) - TARGET @ y, outer),
        jnp.array([0.3]),
        mb.ProjectedGradient(lambda y: jnp.clip(y, -0.5, 0.5), learning_rate=0.9, steps=100),
    ),
}


@cache
def advised(name: str, **options: Any) -> Advice:
    case = CASES[name]
    return mb.advise(case.problem, case.x, None, key=KEY, solver=case.solver, **options)


def row_of(advice: Advice, name: str) -> Row:
    return next(row for row in advice.rows if row.estimator == name)


def error_of(advice: Advice, name: str) -> float:
    error = row_of(advice, name).error
    assert error is not None
    return error


def test_a_long_solve_that_converges_wants_implicit_differentiation():
    advice = advised("solved")
    assert row_of(advice, advice.recommended or "").family.startswith("implicit")
    assert "has converged" in advice.remarks[0]
    assert error_of(advice, "Implicit(ConjugateGradient(20))") < 1e-4
    assert error_of(advice, "Unroll()") < 1e-4


def test_what_the_solution_does_not_depend_on_is_no_matter_for_implicit_differentiation():
    advice = advised("start and rate")
    assert row_of(advice, advice.recommended or "").family in ("unrolled", "forward mode")
    assert "has not converged" in advice.remarks[0]
    for name in ("Implicit(ConjugateGradient(5))", "Implicit(Dense())", "StopGradient()"):
        assert row_of(advice, name).note == "sees nothing of x"
        assert error_of(advice, name) == 1
    assert 0.01 < error_of(advice, "Unroll(first_order=True)") < 1
    assert row_of(advice, "Unroll(window=2)").note == "sees nothing of x['start']"


def test_a_saddle_is_no_place_for_conjugate_gradients():
    advice = advised("saddle")
    assert row_of(advice, advice.recommended or "").family in ("unrolled", "forward mode")
    for name in ("ConjugateGradient(3)", "Dense()"):
        assert row_of(advice, f"Implicit({name})").certificate == "negative_curvature"


def test_a_residual_that_is_no_gradient_has_inverses_of_its_own():
    advice = advised("box")
    assert "not known to be symmetric" in row_of(advice, "Implicit(ConjugateGradient(20))").note
    assert row_of(advice, "Implicit(Nystrom(20))").error is None
    for name in ("GMRES(20)", "BiCGSTAB(20)", "Dense()", "ConjugateGradient(20, normal=True)"):
        assert error_of(advice, f"Implicit({name})") < 1e-3
    assert "has converged" in advice.remarks[0]


@pytest.mark.parametrize("name", CASES)
def test_lines_are_python(name):
    case, advice = CASES[name], advised(name)
    given: dict[str, Any] = {"mb": mb, "jnp": jnp, **case._asdict(), "task": None, "key": KEY}
    for row in advice.rows:
        if row.family == "evolution strategies":
            assert isinstance(eval(row.line, given), mb.EvolutionStrategies)
        else:
            adjoint = eval(row.line.partition("adjoint=")[2][:-1], given)
            assert isinstance(adjoint, mb.AbstractAdjoint)
            assert row.estimator.replace(" ", "") in row.line.replace("mb.", "").replace(" ", "")
    found = eval(advice.line, given)[1]
    exact = mb.ForwardMode().hypergradient(case.problem, case.solver, case.x, None, KEY)[1]
    assert_close(found, exact, 1e-4)


def test_notes_say_what_a_solver_does_not_have():
    said = lambda *given: {each.name: each.unfit for each in candidates(*given)}
    large = said(mb.GradientDescent(optax.sgd(0.1), 10), TANGENTS + 1, ROWS + 1)
    assert large["ForwardMode()"] == "x has 101 entries, a tangent each"
    assert "1,001 entries" in large["Implicit(Dense())"]
    assert "relative error would be about 35" in said(mb.GradientDescent(optax.sgd(0.1), 10), 10_000, 3)[SAMPLED]
    assert [name for name, unfit in said(mb.GradientDescent(optax.sgd(0.1), 10), 3, 3).items() if unfit] == [
        "Implicit(BiCGSTAB(3))",
        "Implicit(ConjugateGradient(3, normal=True))",
    ]
    formula = said(mb.ClosedForm(lambda x, task: x), 3, 3)
    assert not formula["Unroll()"] + formula["Implicit(ConjugateGradient(3))"]
    for name in ('Unroll(checkpoint="sqrt")', "Unroll(first_order=True)", "Unroll(window=1)", SAMPLED):
        assert formula[name]
    once = said(mb.GradientDescent(optax.sgd(0.1), 1), 3, 3)
    assert "1 inner step there" in once['Unroll(checkpoint="step")']
    assert not once["Unroll(mixed_mode=True)"]


SAMPLED = "EvolutionStrategies, 8 pairs"


def ran(name: str, error: float, seconds: float, size: int, certificate: str = "success") -> Row:
    return Row(name, "", "", error, 1.0, error, None, seconds, 1.0, size, certificate)


def test_the_fastest_that_is_good_enough_is_recommended():
    rows = [
        ran("exact", 0.0, 3.0, 900),
        ran("lean", 1e-3, 1.05, 10),
        ran("fast", 1e-3, 1.0, 100),
        ran("rough", 0.1, 0.2, 1),
        ran("doubtful", 1e-3, 0.1, 1, "negative_curvature"),
        ran("broken", math.inf, 0.1, 0),
        Row("unfit", "", "", note="no"),
    ]
    choose = lambda tolerance: (recommend(rows, tolerance)[0] or rows[-1]).estimator
    assert choose(0.01) == "lean"  # about as fast
    assert choose(0.5) == "rough"
    assert choose(1e-6) == "exact"
    assert choose(1e-9) == "exact"
    assert front(rows[:4], 0.01) == ("exact", "lean", "fast", "rough")
    assert front(rows, 0.01) == ("exact", "doubtful")
    assert recommend([ran("rough", 0.1, 0.2, 1)], 0.01) == (
        ran("rough", 0.1, 0.2, 1),
        "No estimator has an error below 0.01 and a certificate with nothing against it: rough is nearest, with "
        "1.0e-01.",
    )
    assert recommend(rows[5:], 0.01) == (None, "No estimator gave a finite hypergradient.")


QUADRATIC, MATRIX, AIM = quadratic(4)


def referred(problem: mb.BilevelProblem, x: Any, steps: int = 5, target: Any = "path") -> reference.Reference:
    return reference.refer(problem, mb.GradientDescent(optax.sgd(0.5), steps), x, None, KEY, target)


@pytest.mark.parametrize("target", ["path", "solution"])
def test_references_are_those_of_the_path_and_of_the_solution(target):
    x = np.arange(1.0, 5.0)
    found = referred(QUADRATIC, jnp.asarray(x), 5, target)
    y, slope = np.zeros(4), np.zeros((4, 4))
    for _ in range(5):
        y, slope = y - 0.5 * (MATRIX @ y - x), slope - 0.5 * (MATRIX @ slope - np.eye(4))
    inverse = np.linalg.inv(MATRIX)
    np.testing.assert_allclose(found.path, slope.T @ (y - AIM), rtol=1e-10)
    assert found.solution is not None
    np.testing.assert_allclose(found.solution, inverse @ (inverse @ x - AIM), rtol=1e-8)
    assert found.dtype == "float64"
    assert found.disagreement < 1e-8
    assert not found.doubtful


def test_a_reference_that_differences_contradict_is_doubtful():
    hidden = dataclasses.replace(QUADRATIC, outer_loss=lambda x, y, task, key: jnp.sum(y * jax.lax.stop_gradient(x)))
    assert referred(hidden, jnp.ones(4)).doubtful


def test_random_numbers_and_stated_types_keep_single_precision():
    drawn = dataclasses.replace(QUADRATIC, init=lambda x, task, key: jax.random.normal(key, (4,)))
    assert referred(drawn, jnp.ones(4)).dtype == "float32"
    stated = dataclasses.replace(
        QUADRATIC, outer_loss=lambda x, y, task, key: jnp.sum(jnp.square(y - AIM), dtype=jnp.float32)
    )
    found = referred(stated, jnp.ones(4))
    assert found.dtype == "float32"
    assert not found.doubtful
    start = dataclasses.replace(QUADRATIC, init=lambda x, task, key: jnp.zeros(4, jnp.float32))
    assert referred(start, jnp.ones(4)).dtype == "float64"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance = 0"),
        ({"budget_bytes": 0}, "budget_bytes = 0"),
        ({"x": {}}, "x holds no entry"),
    ],
)
def test_what_cannot_be_advised_on_is_refused(options, message):
    given: dict[str, Any] = {"x": jnp.ones(4), "solver": mb.GradientDescent(optax.sgd(0.5), 2), **options}
    x = given.pop("x")
    with pytest.raises(mb.InputError, match=message):
        mb.advise(QUADRATIC, x, None, key=KEY, **given)


@pytest.mark.parametrize(
    ("inner", "message"), [(lambda x, y: x @ y * 0, "is zero at this x"), (lambda x, y: x @ jnp.sqrt(y), "4 of the 4")]
)
def test_no_reference_no_advice(inner, message):
    problem = dataclasses.replace(QUADRATIC, inner_loss=lambda x, y, task, key: y @ y + inner(x, y))
    with pytest.raises(mb.ComputationError, match=message):
        referred(problem, jnp.ones(4))


def test_an_estimator_that_raises_is_listed_with_its_error():
    problem = dataclasses.replace(QUADRATIC, outer_loss=lambda x, y, task, key: jnp.sum((y - AIM) ** 2))
    solver = mb.Trajectory(mb.GradientDescent(optax.sgd(0.5), 4))
    advise = partial(mb.advise, problem, jnp.ones(4), None, key=KEY, solver=solver)
    with pytest.raises(
        mb.InputError, match=r"a budget of 1 bytes: every estimator takes more\. The least is \d+ bytes"
    ):
        advise(budget_bytes=1)
    advice = advise()
    note = row_of(advice, "Implicit(GMRES(4))").note
    assert note.startswith("InputError: Implicit: the residual of Trajectory")
    assert "no derivative of a solved problem" in " ".join(advice.remarks)
    assert row_of(advice, advice.recommended or "").family in ("unrolled", "forward mode")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["metabilevel", "advise", str(EXAMPLE), "--budget", "4KiB", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    document = json.loads((tmp_path / "advice.json").read_text())
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    assert f"    {document['line']}\n" in shown
    assert document["reason"] in shown
    for row in document["rows"]:
        assert (row["error"] is None) == bool(row["bytes"] is None or row["bytes"] > 4096)
        assert row["estimator"].partition(",")[0] in shown
    assert document["recommended"] in {row["estimator"] for row in document["rows"] if row["error"] is not None}
