"""`hypergradient` and `solve` against closed forms and finite differences, in a grid of solvers and adjoints."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, directional, dot, like, quadratic

import metabilevel as mb

SOLVERS = {
    "sgd": mb.GradientDescent(optax.sgd(0.3), steps=7),
    "momentum": mb.GradientDescent(optax.sgd(0.1, momentum=0.8), steps=6),
    "negative-rate": mb.GradientDescent(optax.sgd(-0.2), steps=3),
    "adabelief": mb.GradientDescent(optax.adabelief(0.05), steps=5),
    "no-steps": mb.GradientDescent(optax.sgd(0.3), steps=0),
    "closed-form": mb.ClosedForm(lambda x, task: jnp.tanh(x["w"] * task)),
}
EXACT = [mb.Unroll(checkpoint=c, mixed_mode=m) for c in (None, "step", "sqrt", 3) for m in (False, True)]
EXACT += [mb.Unroll(checkpoint="sqrt", mixed_mode=True, offload=True)]


NONLINEAR = mb.BilevelProblem(
    init=lambda x, task, key: x["w"] * 0.5,
    inner_loss=lambda x, y, task, key: jnp.sum(jnp.cos(y * task) + x["reg"] * y**2 + x["w"] * y**3 / 5),
    outer_loss=lambda x, y, task, key: jnp.sum(jnp.sin(y) * x["w"]) + x["reg"] ** 2,
)


def point(key):
    return {"w": jax.random.normal(key, (3,)), "reg": jnp.asarray(0.3)}, jnp.array([0.5, -1.0, 2.0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_unroll_gives_the_gradient_of_finite_differences(solver, x64, key):
    x, task = point(key)
    value = lambda x, a: mb.hypergradient(NONLINEAR, x, task, key=key, solver=SOLVERS[solver], adjoint=a)
    results = [value(x, adjoint) for adjoint in EXACT]
    v = like(x, key)
    slope = directional(lambda x: value(x, EXACT[0])[0], x, v)
    np.testing.assert_allclose(dot(results[0][1], v), slope, rtol=1e-7)
    for _, grad, info in results:
        assert_close(grad, results[0][1], 1e-10)
        assert info.certificate.result == mb.Result.success
        assert info.certificate.linear_residual is None


def test_offloaded_states_are_in_the_memory_of_the_host():
    x, task = point(jax.random.key(0))
    adjoint, solver, steps = mb.Unroll(checkpoint="step", offload=True), SOLVERS["adabelief"], 5
    gradient = lambda x: adjoint.hypergradient(NONLINEAR, solver, x, task, jax.random.key(1))[1]
    kept = re.findall(rf"f32(<host>)?\[{steps},[\d,]+\]", str(jax.make_jaxpr(gradient)(x)))
    assert kept
    assert set(kept) == {"<host>"}
    with pytest.raises(mb.InputError, match="a checkpoint is wanted"):
        mb.Unroll(offload=True)


def test_unroll_tends_to_the_closed_form(x64, key):
    problem, a, target = quadratic()
    x = jnp.arange(1.0, 5.0)
    value, grad, info = mb.hypergradient(
        problem, x, None, key=key, solver=mb.GradientDescent(optax.sgd(1.0), 200), adjoint=mb.Unroll()
    )
    y = np.linalg.solve(a, x)
    np.testing.assert_allclose(info.inner, y, rtol=1e-9)
    np.testing.assert_allclose(grad, np.linalg.solve(a, y - target), rtol=1e-9)
    np.testing.assert_allclose(value, np.sum((y - target) ** 2) / 2, rtol=1e-9)
    np.testing.assert_allclose(info.metrics["size"], np.sum(y**2), rtol=1e-9)
    assert info.certificate.inner_residual < 1e-9


def test_the_certificate_shows_an_inner_solve_that_stopped_short(x64, key):
    problem, a, _ = quadratic()
    x = jnp.arange(1.0, 5.0)
    info = mb.hypergradient(problem, x, None, key=key, solver=mb.GradientDescent(optax.sgd(0.5), 2))[2]
    np.testing.assert_allclose(info.certificate.inner_residual, np.linalg.norm(a @ info.inner - x), rtol=1e-12)
    assert info.certificate.inner_residual > 0.1


def test_first_order_and_stop_gradient_drop_what_they_say(x64, key):
    problem = mb.BilevelProblem(lambda x, t, k: x, lambda x, y, t, k: y**3, lambda x, y, t, k: x * y)
    x, solver = jnp.asarray(0.5), mb.GradientDescent(optax.sgd(0.1), 1)
    y = 0.5 - 0.1 * 3 * 0.5**2
    gradient = lambda adjoint: mb.hypergradient(problem, x, None, key=key, solver=solver, adjoint=adjoint)[1]
    np.testing.assert_allclose(gradient(mb.StopGradient()), y)
    np.testing.assert_allclose(gradient(mb.Unroll(first_order=True)), y + 0.5)
    np.testing.assert_allclose(gradient(mb.Unroll()), y + 0.5 * (1 - 0.1 * 6 * 0.5))


def test_float32_stays_float32(key):
    x, task = point(key)
    value, grad, info = mb.hypergradient(NONLINEAR, x, task, key=key, solver=SOLVERS["sgd"])
    assert {a.dtype.name for a in jax.tree.leaves((value, grad, info.inner))} == {"float32"}


def test_a_gradient_that_is_not_finite_says_so(key):
    problem = dataclasses.replace(NONLINEAR, outer_loss=lambda x, y, t, k: jnp.sum(jnp.log(-(y**2))))
    x, task = point(key)
    with pytest.warns(mb.HypergradientWarning, match="not finite"):
        info = mb.hypergradient(problem, x, task, key=key, solver=SOLVERS["sgd"])[2]
    assert info.certificate.result == mb.Result.nonfinite
    assert not info.finite


def test_info_prints_its_numbers(key):
    problem, _, _ = quadratic()
    _, _, info = mb.hypergradient(problem, jnp.ones(4), None, key=key, solver=SOLVERS["no-steps"])
    said = repr(info)
    assert f"loss={float(f'{info.loss.item():.4g}')}," in said
    assert "inner_residual=2.0," in said
    assert "finite=True" in said
    assert "nothing speaks against it" in said
    assert "inner=f32[4]" in said
    assert len(said) < 500
    traced = []
    jax.jit(lambda info: traced.append(repr(info)))(info)
    assert "inner_residual=f32[]" in traced[0]


def test_an_outer_loss_without_a_slope_is_refused(key):
    tasks = mb.load_tasks("sinusoid")()
    method = mb.load_method("maml")(tasks.subject)
    count = lambda x, y, task, key: jnp.mean(jnp.abs(tasks.subject.predict(y, task.query.inputs)) > 1, dtype=float)
    counting = dataclasses.replace(method, problem=dataclasses.replace(method.problem, outer_loss=count))
    with pytest.raises(mb.InputError, match="outer_loss has the derivative zero everywhere"):
        mb.fit(counting, tasks, optax.sgd(0.1), key=key, steps=1, meta_batch=2)
    good, task = point(key)
    rounded = dataclasses.replace(NONLINEAR, outer_loss=lambda x, y, t, k: jnp.round(y.sum()))
    with pytest.raises(mb.InputError, match="0/1 losses"):
        mb.hypergradient(rounded, good, task, key=key, solver=mb.GradientDescent(optax.sgd(0.1), 2))


@pytest.mark.parametrize(
    ("changes", "x", "message"),
    [
        ({}, {"w": jnp.arange(3), "reg": 0.1}, r"x\['w'\] holds int32, which has no gradient"),
        ({}, {"w": jnp.ones(3), "reg": "much"}, r"x\['reg'\] is str, not an array"),
        ({"inner_loss": lambda x, y, t, k: y}, None, "inner_loss must give one floating scalar"),
        ({"outer_loss": lambda x, y, t, k: (y.sum(), 3)}, None, "outer_loss must give a scalar, or"),
        ({"outer_loss": lambda x, y, t, k: (y.sum(), {}, 3)}, None, "outer_loss must give a scalar, or"),
        ({"outer_loss": lambda x, y, t, k: (y.sum(), {"loss": y.sum()})}, None, "names of the library's own"),
        ({"outer_loss": lambda x, y, t, k: (y.sum(), {"a": {"b": y}})}, None, "metric 'a' of type dict"),
        ({"init": lambda x, t, k: jnp.arange(3)}, None, "init gives y of type int32"),
    ],
)
def test_wrong_problems_are_named_before_compilation(changes, x, message, key):
    good, task = point(key)
    problem = dataclasses.replace(NONLINEAR, **changes)
    with pytest.raises(TypeError, match=message):
        mb.hypergradient(problem, good if x is None else x, task, key=key, solver=SOLVERS["sgd"])


@pytest.mark.parametrize("warm_start", [True, False])
def test_solve_finds_the_minimum_of_the_closed_form(warm_start, x64, key):
    problem, a, target = quadratic()
    solver = mb.GradientDescent(optax.sgd(1.0), 3 if warm_start else 60)
    solution = mb.solve(
        problem, jnp.zeros(4), None, key=key, solver=solver, optimizer=optax.adam(0.1), steps=600, warm_start=warm_start
    )
    np.testing.assert_allclose(solution.inner, target, atol=1e-4)
    np.testing.assert_allclose(solution.x, a @ target, atol=1e-4)
    assert solution.result == mb.Result.success
    assert [row["step"] for row in solution.history] == list(range(1, 601))
    assert solution.history[-1]["loss"] < 1e-7 < 1e-2 < solution.history[0]["loss"]
    assert solution.certificate.inner_residual < 1e-3


def test_a_warm_start_reaches_further_with_the_same_steps(x64, key):
    problem, _, _ = quadratic()
    residual = {
        warm: mb.solve(
            problem, jnp.ones(4), None, key=key, solver=mb.GradientDescent(optax.sgd(0.5), 1),
            optimizer=optax.sgd(0.0), steps=30, warm_start=warm,
        ).certificate.inner_residual
        for warm in (True, False)
    }  # fmt: skip
    assert residual[True] < 1e-3 < 0.1 < residual[False]


def test_solve_keeps_the_last_finite_x(key):
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: y**2, lambda x, y, t, k: jnp.where(x > 0.55, jnp.nan, -x)
    )
    solver, optimizer = mb.GradientDescent(optax.sgd(0.1), 1), optax.sgd(0.1)
    with pytest.warns(mb.HypergradientWarning, match="not finite"):
        solution = mb.solve(problem, 0.0, None, key=key, solver=solver, optimizer=optimizer, steps=20)
    assert solution.result == mb.Result.nonfinite
    np.testing.assert_allclose(solution.x, 0.6, rtol=1e-6)
    assert np.isnan(solution.history[-1]["loss"])


def test_negative_outer_steps_are_refused(key):
    with pytest.raises(mb.InputError, match="steps = -1"):
        mb.solve(quadratic()[0], jnp.ones(4), None, key=key, solver=SOLVERS["sgd"], optimizer=optax.sgd(1.0), steps=-1)


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_mixed_mode_takes_what_a_problem_closes_over(checkpoint, x64, key):
    problem = mb.BilevelProblem(
        lambda x, t, k: jnp.zeros(2),
        lambda x, y, t, k: jnp.sum((y - x) ** 4 * t),
        lambda x, y, t, k: jnp.sum((y - t) ** 2),
    )
    solver, task = mb.GradientDescent(optax.sgd(0.1), 3), jnp.array([1.0, 2.0])
    solve = lambda adjoint: mb.solve(
        problem, jnp.ones(2), task, key=key, solver=solver, adjoint=adjoint, optimizer=optax.sgd(0.1), steps=3
    )
    plain, mixed = solve(mb.Unroll()), solve(mb.Unroll(checkpoint=checkpoint, mixed_mode=True))
    np.testing.assert_allclose(mixed.x, plain.x, rtol=1e-12)


def test_a_task_may_hold_anything(key):
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: jnp.sum(t["f"](y) * t["w"]), lambda x, y, t, k: jnp.sum(y**2)
    )
    task = {"name": "a task", "f": jnp.tanh, "w": 2.0, "labels": jnp.arange(3)}
    value, _, _ = mb.hypergradient(problem, jnp.ones(2), task, key=key, solver=SOLVERS["sgd"])
    assert jnp.isfinite(value)


def test_a_start_that_depends_on_x_is_taken_anew():
    """A warm start would lose it: x is then the start of the first solve alone."""
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: jnp.sum((jnp.tanh(y) - 1) ** 2),
        outer_loss=lambda x, y, task, key: jnp.sum((y - 2.0) ** 2),
    )
    given = {"solver": mb.GradientDescent(optax.sgd(0.1), steps=3), "optimizer": optax.sgd(0.1), "steps": 20}
    solve = lambda **chosen: mb.solve(problem, jnp.zeros(2), None, key=jax.random.key(0), **given, **chosen)
    anew, cold = solve(), solve(warm_start=False)
    np.testing.assert_array_equal(anew.x, cold.x)
    assert anew.history[-1]["loss"] < 0.1 < anew.history[0]["loss"]
    assert not np.allclose(solve(warm_start=True).x, cold.x)


def test_what_cannot_move_is_refused():
    problem, _, _ = quadratic()
    with pytest.warns(mb.HypergradientWarning), pytest.raises(mb.InputError, match="no step would move"):
        mb.solve(
            problem, jnp.ones(4), None, key=jax.random.key(0), solver=mb.GradientDescent(optax.sgd(0.1), steps=3),
            adjoint=mb.StopGradient(), optimizer=optax.sgd(0.1), steps=2,
        )  # fmt: skip
