"""Implicit hypergradients against closed forms, and what their certificates hold against them."""

import dataclasses
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from problems import assert_close, directional, dot, like, quadratic

import metabilevel as mb

KEY = jax.random.key(0)
EXACT = {
    "cg": mb.ConjugateGradient(2000),
    "normal-cg": mb.ConjugateGradient(20_000, normal=True),
    "dense": mb.Dense(),
    "nystrom": mb.Nystrom(100, 1e-9),
    "gmres": mb.GMRES(200),
    "bicgstab": mb.BiCGSTAB(2000),
    "lineax": mb.Lineax(lineax.LU()),
}
# G = y^T A y / 2 - y^T C x, F = |y - t|^2 / 2 + |x|^2, from a start that the task holds
QUADRATIC = mb.BilevelProblem(
    init=lambda x, task, key: task["start"],
    inner_loss=lambda x, y, task, key: y @ task["a"] @ y / 2 - y @ task["c"] @ x,
    outer_loss=lambda x, y, task, key: jnp.sum((y - task["t"]) ** 2) / 2 + x @ x,
)
STAY = mb.GradientDescent(optax.sgd(0.0), 0)
LENIENT = {"tolerance": np.inf, "linear_tolerance": np.inf}


def spectrum(kappa: float, n: int, seed: int = 0):
    """A task of QUADRATIC that starts at its solution, with a condition number; x, and its exact hypergradient."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    a = basis @ np.diag(np.geomspace(1, kappa, n)) @ basis.T
    c, t, x = rng.normal(size=(n, 3)), rng.normal(size=n), rng.normal(size=3)
    solved = np.linalg.solve(a, c @ x)
    task = jax.tree.map(jnp.asarray, {"a": a, "c": c, "t": t, "start": solved})
    return task, jnp.asarray(x), 2 * x + c.T @ np.linalg.solve(a, solved - t)


@pytest.mark.parametrize("n", [1, 2, 100])
@pytest.mark.parametrize("name", EXACT)
def test_quadratics_have_their_closed_form(name, n, x64):
    tolerance = 1e-5 if name == "nystrom" else 1e-6
    for kappa in (1.0, 10.0, 1e4):
        task, x, exact = spectrum(kappa, n)
        found = mb.hypergradient(QUADRATIC, x, task, key=KEY, solver=STAY, adjoint=mb.Implicit(EXACT[name]))
        np.testing.assert_allclose(found[1], exact, rtol=0, atol=tolerance * np.abs(exact).max())
        assert found[2].certificate.result == mb.Result.success
        assert found[2].certificate.linear_residual < tolerance


@pytest.mark.parametrize("terms", [0, 1, 7, 40])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_neumann_is_its_partial_sum(terms, scale, x64):
    problem, a, t = quadratic(5)
    x = jnp.arange(1.0, 6.0)
    y = np.linalg.solve(a, x)
    rest, v = y - t, np.zeros(5)
    for _ in range(terms + 1):
        v, rest = v + scale * rest, rest - scale * a @ rest
    solver = mb.GradientDescent(optax.sgd(0.8), 500)
    found = mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=mb.Implicit(mb.Neumann(terms, scale)))
    np.testing.assert_allclose(found[1], v, rtol=1e-10)
    np.testing.assert_allclose(found[2].certificate.linear_residual, np.linalg.norm(rest) / np.linalg.norm(y - t),
                               rtol=1e-7, atol=1e-15)  # fmt: skip
    if (terms, scale) == (0, 1.0):
        identity = mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=mb.Implicit(mb.Identity()))
        np.testing.assert_allclose(found[1], identity[1], rtol=1e-14)


def test_neumann_estimates_its_scale(x64):
    task, x, exact = spectrum(50.0, 20)
    _, gradient, info = mb.hypergradient(
        QUADRATIC, x, task, key=KEY, solver=STAY, adjoint=mb.Implicit(mb.Neumann(1500))
    )
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)
    assert info.certificate.result == mb.Result.success


def test_unrolled_steps_from_the_optimum_are_a_neumann_series(x64):
    task, x, _ = spectrum(5.0, 8)
    rate, k = 0.2, 6
    unrolled = mb.hypergradient(QUADRATIC, x, task, key=KEY, solver=mb.GradientDescent(optax.sgd(rate), k))[1]
    series = mb.hypergradient(QUADRATIC, x, task, key=KEY, solver=STAY, adjoint=mb.Implicit(mb.Neumann(k - 1, rate)))[1]
    np.testing.assert_allclose(unrolled, series, rtol=1e-10)


def logistic(seed: int = 0):
    """Logistic regression with a penalty exp(x_j) for every feature, judged on other examples."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=6)
    inputs = jnp.asarray(rng.normal(size=(80, 6)))
    labels = jnp.asarray((inputs @ w + rng.normal(size=80) > 0) * 2.0 - 1)
    loss = lambda y, rows: jnp.mean(jax.nn.softplus(-labels[rows] * (inputs[rows] @ y)))
    return mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(6),
        inner_loss=lambda x, y, task, key: loss(y, slice(40)) + jnp.sum(jnp.exp(x) * y**2) / 2,
        outer_loss=lambda x, y, task, key: loss(y, slice(40, 80)),
    )


def ridge(seed: int = 0):
    """Least squares with a penalty exp(x_j) for every feature, judged on other examples."""
    rng = np.random.default_rng(seed)
    inputs, targets = jnp.asarray(rng.normal(size=(40, 6))), jnp.asarray(rng.normal(size=40))
    loss = lambda y, rows: jnp.mean((inputs[rows] @ y - targets[rows]) ** 2) / 2
    return mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(6),
        inner_loss=lambda x, y, task, key: loss(y, slice(20)) + jnp.sum(jnp.exp(x) * y**2) / 2,
        outer_loss=lambda x, y, task, key: loss(y, slice(20, 40)),
    )


def newton(problem, x):
    """y(x), by Newton's method."""
    gradient = lambda y: jax.grad(problem.inner_loss, 1)(x, y, None, KEY)
    step = lambda _, y: y - jnp.linalg.solve(jax.jacobian(gradient)(y), gradient(y))
    return jax.lax.fori_loop(0, 30, step, problem.init(x, None, KEY))


@pytest.mark.parametrize("make", [logistic, ridge])
@pytest.mark.parametrize("name", ["cg", "dense", "gmres"])
def test_penalties_of_every_feature(make, name, x64):
    problem, x = make(), jnp.linspace(-3.0, 0.0, 6)
    y = newton(problem, x)
    hessian, cross = (jax.jacobian(jax.grad(problem.inner_loss, 1), i)(x, y, None, KEY) for i in (1, 0))
    exact = -cross.T @ jnp.linalg.solve(hessian, jax.grad(problem.outer_loss, 1)(x, y, None, KEY))
    solver = mb.GradientDescent(optax.sgd(0.5), 3000)
    gradient = mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=mb.Implicit(EXACT[name]))[1]
    assert_close(gradient / jnp.abs(exact).max(), exact / jnp.abs(exact).max(), 1e-6)
    v = like(x, KEY)
    slope = directional(jax.jit(lambda x: problem.outer_loss(x, newton(problem, x), None, KEY)), x, v)
    np.testing.assert_allclose(dot(gradient, v), slope, rtol=1e-6)


@pytest.mark.parametrize("solver", ["projected", "jaxopt"])
def test_a_constrained_minimum_has_its_fixed_points_derivative(solver, x64):
    """Two coordinates are held at their bound, where y does not follow x."""
    problem, a, t = quadratic(4)
    x = jnp.array([0.2, 3.0, -0.1, 4.0])
    solved = np.linalg.solve(a, x)
    low, high = -10.0, np.sort(solved)[1] * 0.5 + np.sort(solved)[2] * 0.5
    if solver == "projected":
        solver = mb.ProjectedGradient(lambda y: jnp.clip(y, low, high), learning_rate=0.5, steps=2000)
    else:
        box = lambda y, bounds: jnp.clip(y, *bounds)
        solver = mb.JaxoptSolver(
            "ProjectedGradient", projection=box, maxiter=5000, tol=1e-12,
            hyperparams=lambda x, task: {"hyperparams_proj": (low, high)},
        )  # fmt: skip
    _, gradient, info = mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=mb.Implicit(mb.Dense()))
    y = info.inner
    free = np.flatnonzero(np.asarray(y) < high - 1e-6)
    assert 0 < len(free) < 4
    exact = np.zeros(4)
    exact[free] = np.linalg.solve(a[np.ix_(free, free)], (y - t)[free])
    np.testing.assert_allclose(gradient, exact, atol=1e-6)
    with pytest.raises(mb.InputError, match="GMRES"):
        mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=mb.Implicit(mb.ConjugateGradient(9)))


def test_a_reduced_objective_is_derived_in_all_that_it_depends_on(x64):
    """In x, in the task, and in what the functions close over; once, and twice."""

    def value(adjoint, x, task, closed):
        problem = mb.BilevelProblem(
            init=lambda x, task, key: jnp.zeros(()),
            inner_loss=lambda x, y, task, key: task * closed * y**2 / 2 - x * y + 0.1 * y**4,
            outer_loss=lambda x, y, task, key: (y - 1) ** 2 / 2 + x * y,
        )
        return mb.reduced(problem, mb.GradientDescent(optax.sgd(0.2), 300), adjoint)(x, task, KEY)

    at = (jnp.array(0.7), jnp.array(1.0), jnp.array(1.1))
    found, wanted = (
        [jax.jit(of(lambda *a, adjoint=adjoint: value(adjoint, *a), argnums=(0, 1, 2)))(*at) for of in
         (jax.grad, jax.hessian)]
        for adjoint in (mb.Implicit(mb.Dense()), mb.Unroll())
    )  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), found, wanted)


@pytest.mark.parametrize("middle", ["implicit", "unroll"])
def test_three_levels(middle, x64):
    """z = A^-1 y; the middle minimises y^T B y / 2 + |z|^2 / 2 - x^T (y + z); the top |y - c|^2 / 2 + |x|^2."""
    n = 4
    draw = lambda seed: quadratic(n, seed)[1]
    a, b, c = draw(1), draw(2), np.random.default_rng(3).normal(size=n)
    lowest = mb.BilevelProblem(
        init=lambda xy, task, key: jnp.zeros(n),
        inner_loss=lambda xy, z, task, key: z @ jnp.asarray(a) @ z / 2 - z @ xy[1],
        outer_loss=lambda xy, z, task, key: xy[1] @ jnp.asarray(b) @ xy[1] / 2 + z @ z / 2 - xy[0] @ (z + xy[1]),
    )
    implicit, descent = mb.Implicit(mb.ConjugateGradient(50)), mb.GradientDescent(optax.sgd(0.8), 200)
    value = mb.reduced(lowest, descent, implicit if middle == "implicit" else mb.Unroll())
    top = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(n),
        inner_loss=lambda x, y, task, key: value((x, y), task, key),
        outer_loss=lambda x, y, task, key: jnp.sum((y - c) ** 2) / 2 + x @ x,
    )
    x = jnp.asarray(np.random.default_rng(5).normal(size=n))
    inverse = np.linalg.inv(a)
    slope = np.linalg.solve(b + inverse @ inverse, inverse + np.eye(n))
    solver = mb.GradientDescent(optax.sgd(0.2), 300)
    gradient = mb.hypergradient(top, x, None, key=KEY, solver=solver, adjoint=implicit, strict=True)[1]
    exact = 2 * x + slope.T @ (slope @ x - c)
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)


def test_it_vmaps_over_tasks(x64):
    problem, a, t = quadratic(4)
    shifted = mb.BilevelProblem(
        problem.init, lambda x, y, task, key: problem.inner_loss(x + task, y, None, key), problem.outer_loss
    )
    solver, x = mb.GradientDescent(optax.sgd(0.8), 200), jnp.ones(4)
    estimator = mb.Nested(shifted, solver, mb.Implicit(mb.ConjugateGradient(9)))
    tasks = jax.random.normal(KEY, (7, 4))
    direction, _, info = estimator(x, tasks, None, KEY)
    each = [np.linalg.solve(a, np.linalg.solve(a, x + task) - t) for task in tasks]
    np.testing.assert_allclose(direction, np.mean(each, 0), rtol=1e-8)
    assert info.certificate.iterations.shape == info.certificate.linear_residual.shape == (7,)
    assert (info.certificate.result == mb.Result.success).all()


def test_warm_slots_come_to_the_implicit_gradient_of_every_task(x64):
    """Two steps a visit; the task of an unknown slot starts anew at each, and its certificate says what that is."""
    problem, a, t = quadratic(4)
    shifted = mb.BilevelProblem(
        problem.init, lambda x, y, task, key: problem.inner_loss(x + task["shift"], y, None, key), problem.outer_loss
    )
    solver, x = mb.GradientDescent(optax.sgd(0.8), 2), jnp.ones(4)
    adjoint = mb.Implicit(mb.ConjugateGradient(9))
    estimator = mb.WarmStarted(shifted, solver, adjoint, slots=3, slot=lambda task: task["slot"])
    shifts = jax.random.normal(KEY, (3, 4))
    run = jax.jit(lambda tasks, carry: estimator(x, tasks, carry, KEY))
    exact = np.mean([np.linalg.solve(a, np.linalg.solve(a, x + shift) - t) for shift in shifts], 0)
    for slots, known in (([2, 0, 1], True), ([2, 0, 7], False)):
        tasks = {"shift": shifts, "slot": jnp.asarray(slots)}
        carry = estimator.init(x, tasks, KEY)
        for _ in range(40):
            direction, carry, info = run(tasks, carry)
        assert (info.certificate.result == mb.Result.success).tolist() == [True, True, known]
        assert np.allclose(direction, exact, rtol=1e-8) == known


def test_forward_mode_is_unrolling(x64):
    problem, _, _ = quadratic(5)
    x, solver = jnp.arange(5.0), mb.GradientDescent(optax.adam(0.1, eps_root=1e-12), 7)
    found = [mb.hypergradient(problem, x, None, key=KEY, solver=solver, adjoint=a) for a in
             (mb.Unroll(), mb.ForwardMode())]  # fmt: skip
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12)
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)


def test_second_moments_precondition(x64):
    """Identity gives D^-1 b, a Neumann series is one in D^-1 A, and conjugate gradients end at A^-1 b all the same."""
    problem, a, t = quadratic(6)
    x, adam, steps = jnp.arange(1.0, 7.0), optax.adam(0.05, b2=0.9, eps_root=1e-12), 30
    y, state = jnp.zeros(6), adam.init(jnp.zeros(6))
    for _ in range(steps):
        updates, state = adam.update(a @ y - x, state)
        y = y + updates
    diagonal = jnp.sqrt(state[0].nu / (1 - 0.9**steps)) + 1e-3
    b, v, scale = y - t, 0, 0.1
    rest = b / diagonal
    for _ in range(4):
        v, rest = v + scale * rest, rest - scale * (a @ rest) / diagonal
    wanted = {mb.Identity(): b / diagonal, mb.Neumann(3, scale): v, mb.ConjugateGradient(9): np.linalg.solve(a, b)}
    for inverse, exact in wanted.items():
        adjoint = mb.Implicit(inverse, precondition=mb.SecondMoments(0.9, 1e-3), **LENIENT)
        found = mb.hypergradient(problem, x, None, key=KEY, solver=mb.GradientDescent(adam, steps), adjoint=adjoint)
        np.testing.assert_allclose(found[1], exact, rtol=1e-8)


@pytest.mark.parametrize(("kappa", "steps", "terms"), [(5.0, 10, 2), (100.0, 100, 5), (100.0, 30, 100)])
def test_the_error_bound_holds(kappa, steps, terms, x64):
    task, x, exact = spectrum(kappa, 12)
    solver = mb.GradientDescent(optax.sgd(1 / kappa), steps)
    scaled = dataclasses.replace(QUADRATIC, prepare=lambda x, task, key: 50.0 * x)
    for convexity in (1.0, "estimate"):
        adjoint = mb.Implicit(mb.ConjugateGradient(terms), tolerance=np.inf, strong_convexity=convexity)
        cold = {**task, "start": jnp.zeros(12)}
        _, gradient, info = mb.hypergradient(QUADRATIC, x, cold, key=KEY, solver=solver, adjoint=adjoint)
        error = np.linalg.norm(gradient - exact)
        assert error <= info.certificate.error_bound <= 1000 * error
        bound = mb.hypergradient(scaled, x / 50, cold, key=KEY, solver=solver, adjoint=adjoint)[2].certificate
        np.testing.assert_allclose(bound.error_bound, 50 * info.certificate.error_bound, rtol=1e-3)


def test_restarts_measure_the_spread_over_optima(x64):
    """(y^2 - 1)^2 has two minima, y = 1 and y = -1, and F = x y has the derivative y."""
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jax.random.normal(key),
        inner_loss=lambda x, y, task, key: (y**2 - 1) ** 2,
        outer_loss=lambda x, y, task, key: x * y,
    )
    solver, adjoint = mb.GradientDescent(optax.sgd(0.02), 1000), mb.Implicit(mb.ConjugateGradient(3))
    _, gradient, info = mb.hypergradient(problem, 1.0, None, key=KEY, solver=solver, adjoint=adjoint, restarts=9)
    np.testing.assert_allclose(jnp.abs(info.inner), 1, rtol=1e-8)
    np.testing.assert_allclose(gradient, info.inner.mean(), rtol=1e-8)
    np.testing.assert_allclose(info.certificate.spread, info.inner.std() / jnp.abs(info.inner.mean()), rtol=1e-6)
    assert info.certificate.spread > 0.5


def test_memory_does_not_grow_with_the_inner_steps(optimised):
    def planned(steps, adjoint):
        problem = mb.BilevelProblem(
            init=lambda x, task, key: jnp.zeros(200),
            inner_loss=lambda x, y, task, key: jnp.sum(jnp.exp(x) * y**2) + jnp.sum(jnp.cos(y - 1)),
            outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2),
        )
        step = lambda x: adjoint.hypergradient(problem, mb.GradientDescent(optax.sgd(0.1), steps), x, None, KEY)[1]
        return jax.jit(step).lower(jnp.zeros(200)).compile().memory_analysis().temp_size_in_bytes

    implicit = mb.Implicit(mb.ConjugateGradient(5))
    assert planned(64, implicit) <= 1.2 * planned(4, implicit)
    assert planned(64, mb.Unroll()) > 4 * planned(4, mb.Unroll())


class TestCertificate:
    def complaint(self, match, problem, x, solver, adjoint, task=None):
        with pytest.warns(mb.HypergradientWarning, match=match):
            info = mb.hypergradient(problem, x, task, key=KEY, solver=solver, adjoint=adjoint)[2]
        with pytest.raises(mb.ComputationError, match=match):
            mb.hypergradient(problem, x, task, key=KEY, solver=solver, adjoint=adjoint, strict=True)
        return info.certificate

    def test_an_inner_solve_that_has_not_converged(self, x64):
        problem, x = quadratic()[0], jnp.ones(4)
        solver = mb.GradientDescent(optax.sgd(0.5), 3)
        found = self.complaint("has not converged", problem, x, solver, mb.Implicit(mb.Dense()))
        assert found.result == mb.Result.inner_not_stationary
        residual = mb.hypergradient(problem, x, None, key=KEY, solver=solver)[2].certificate.inner_residual
        np.testing.assert_allclose(found.inner_residual, residual)
        assert found.distance > 1e-3

    @pytest.mark.parametrize(("scaled", "terms"), [(2.0, 60), (2.05, 60), (1e3, 60), (4.0, 1), (2.5, 9)])
    def test_a_neumann_series_that_diverges(self, scaled, terms):
        task, x, _ = spectrum(10.0, 6)
        adjoint = mb.Implicit(mb.Neumann(terms, scaled / 10.0), tolerance=np.inf)
        found = self.complaint("series diverges", QUADRATIC, x, STAY, adjoint, task)
        assert found.result == mb.Result.series_diverged

    @pytest.mark.parametrize("inverse", [mb.ConjugateGradient(9), mb.Neumann(60), mb.Dense(), mb.Nystrom(4, 1e-3)])
    def test_an_indefinite_hessian(self, inverse, x64):
        problem = mb.BilevelProblem(
            init=lambda x, task, key: x,
            inner_loss=lambda x, y, task, key: jnp.sum(jnp.array([1.0, 2.0, 3.0, -0.5]) * (y - x) ** 2),
            outer_loss=lambda x, y, task, key: jnp.sum((y - jnp.array([1.0, 1.0, 1.0, 9.0])) ** 2),
        )
        found = self.complaint("curves downwards", problem, jnp.ones(4), STAY, mb.Implicit(inverse))
        assert found.result == mb.Result.negative_curvature

    @pytest.mark.parametrize("inverse", [mb.Identity(), mb.ConjugateGradient(1), mb.GMRES(1)])
    @pytest.mark.parametrize("along", ["v", "the residual"])
    def test_an_indefinite_hessian_under_a_short_linear_solve(self, inverse, along, x64):
        """The saddle's way down, the last coordinate, is seen by v at the saddle, or by the gradient beside it."""
        curvature = jnp.array([1.0, 2.0, 3.0, -2.5])
        steep = jnp.array([0.1, 0.1, 0.1, 9.0]) if along == "v" else jnp.array([0.0, 1.0, 1.0, 0.1])
        beside = jnp.zeros(4) if along == "v" else jnp.array([0.0, 0.0, 0.0, 1e-5])
        problem = mb.BilevelProblem(
            init=lambda x, task, key: x + beside,
            inner_loss=lambda x, y, task, key: curvature @ (y - x) ** 2 / 2,
            outer_loss=lambda x, y, task, key: steep @ y,
        )
        found = self.complaint("curves downwards", problem, jnp.ones(4), STAY, mb.Implicit(inverse))
        assert found.result == mb.Result.negative_curvature

    def test_a_flat_direction_is_no_saddle(self):
        """Single precision: a Hessian of rank 2, and a gradient and a v among what rounding leaves of its kernel."""
        rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, 30)), jnp.float32)
        problem = mb.BilevelProblem(
            init=lambda x, task, key: jnp.linspace(-1.0, 1.0, 30),
            inner_loss=lambda x, y, task, key: jnp.sum((rows @ y - x) ** 2),
            outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2),
        )
        solver = mb.GradientDescent(optax.sgd(0.01), 300)
        for inverse in (mb.Identity(), mb.ConjugateGradient(1), mb.Neumann(5)):
            adjoint = mb.Implicit(inverse, linear_tolerance=np.inf)
            mb.hypergradient(problem, jnp.ones(2), None, key=KEY, solver=solver, adjoint=adjoint, strict=True)

    def test_an_outer_loss_that_y_has_no_part_in(self, x64):
        """Its derivative is right, however far y is from a solution."""
        problem, x = quadratic()[0], jnp.ones(4)
        direct = dataclasses.replace(problem, outer_loss=lambda x, y, task, key: (x @ x, {"size": jnp.sum(y**2)}))
        solver, adjoint = mb.GradientDescent(optax.sgd(0.5), 1), mb.Implicit(mb.ConjugateGradient(9))
        _, gradient, info = mb.hypergradient(direct, x, None, key=KEY, solver=solver, adjoint=adjoint, strict=True)
        np.testing.assert_allclose(gradient, 2 * x)
        assert info.certificate.result == mb.Result.success

    def test_a_singular_hessian(self, x64):
        problem = mb.BilevelProblem(
            init=lambda x, task, key: jnp.zeros(2),
            inner_loss=lambda x, y, task, key: (y[0] - x) ** 2,
            outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2) * x,
        )
        found = self.complaint("not solved", problem, 0.0, STAY, mb.Implicit(mb.Dense()))
        assert found.result == mb.Result.linear_breakdown

    @pytest.mark.parametrize("inverse", EXACT.values(), ids=EXACT)
    def test_what_is_not_finite_comes_out(self, inverse, x64):
        problem, _, _ = quadratic()
        broken = mb.BilevelProblem(problem.init, problem.inner_loss, lambda x, y, task, key: jnp.sqrt(-y @ y - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mb.HypergradientWarning)
            _, gradient, info = mb.hypergradient(
                broken, jnp.ones(4), None, key=KEY, solver=mb.GradientDescent(optax.sgd(0.5), 99),
                adjoint=mb.Implicit(inverse),
            )  # fmt: skip
        assert not jnp.isfinite(gradient).any()
        assert info.certificate.result != mb.Result.success

    def test_a_start_where_the_outer_loss_is_flat(self, x64):
        """F_y = 0 at a y that solves nothing: no linear system would notice."""
        task, x, _ = spectrum(1.0, 3)
        task = {**task, "start": task["t"]}
        found = self.complaint("has not converged", QUADRATIC, x, STAY, mb.Implicit(mb.Dense()), task)
        assert found.result == mb.Result.inner_not_stationary

    def test_a_linear_solve_that_is_no_better_than_none(self, x64):
        task, x, _ = spectrum(1e4, 10)
        self.complaint("not solved", QUADRATIC, x, STAY, mb.Implicit(mb.ConjugateGradient(0)), task)
        strict = mb.Implicit(mb.ConjugateGradient(8), linear_tolerance=1e-9)
        self.complaint("not solved", QUADRATIC, x, STAY, strict, task)

    def test_an_optimum_at_zero_in_single_precision_is_no_alarm(self):
        rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        a = jnp.concatenate([rows, -rows[::-1]])
        problem = mb.BilevelProblem(
            init=lambda x, task, key: jnp.zeros(4),
            inner_loss=lambda x, y, task, key: jnp.mean((a @ y - 0.3) ** 2) + jnp.sum(jnp.exp(x) * y**2),
            outer_loss=lambda x, y, task, key: jnp.mean((a[:20] @ y - 1) ** 2),
        )
        solver = mb.JaxoptSolver("LBFGS", maxiter=50)
        adjoint = mb.Implicit(mb.ConjugateGradient(9))
        mb.hypergradient(problem, jnp.zeros(4), None, key=KEY, solver=solver, adjoint=adjoint, strict=True)

    def test_leaves_without_influence(self, x64):
        problem = mb.BilevelProblem(
            init=lambda x, task, key: x["start"],
            inner_loss=lambda x, y, task, key: jnp.sum((y - x["target"]) ** 2),
            outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2) + x["direct"] ** 2,
        )
        x = {"start": jnp.ones(3), "target": jnp.zeros(3), "direct": 1.0, "idle": jnp.ones(2)}
        solver = mb.Descent(lambda x, i: 0.25 + 0 * x["idle"].sum(), steps=60)
        found = lambda **given: mb.hypergradient(problem, x, None, key=KEY, solver=solver, **given)
        implicit = mb.Implicit(mb.ConjugateGradient(5))
        with pytest.warns(mb.HypergradientWarning, match=r"x\['idle'\], x\['start'\]: .*Unroll") as warned:
            gradient = found(adjoint=implicit)[1]
        assert len(warned) == 1
        assert not gradient["start"].any()
        assert gradient["target"].any()
        with pytest.raises(mb.InputError, match=r"x\['idle'\], x\['start'\]"):
            found(adjoint=implicit, strict=True)
        assert found(adjoint=mb.Unroll(), strict=True)[1]["start"].any()

    def test_an_outer_variable_that_the_outer_loss_never_sees(self):
        problem, _, _ = quadratic()
        solver = mb.GradientDescent(optax.sgd(0.5), 9)
        unseen = mb.BilevelProblem(
            problem.init, lambda x, y, *rest: problem.inner_loss(x["a"], y, *rest),
            lambda x, y, *rest: problem.outer_loss(x["a"], y, *rest),
        )  # fmt: skip
        with pytest.warns(mb.HypergradientWarning, match=r"x\['b'\]: "):
            mb.hypergradient(unseen, {"a": jnp.ones(4), "b": jnp.ones(2)}, None, key=KEY, solver=solver)

    def test_solve_says_it_once(self, x64):
        problem, _, _ = quadratic()
        with pytest.warns(mb.HypergradientWarning, match="of 6 hypergradients") as warned:
            found = mb.solve(
                problem, jnp.ones(4), None, key=KEY, solver=mb.GradientDescent(optax.sgd(0.1), 1), steps=5,
                adjoint=mb.Implicit(mb.ConjugateGradient(4)), optimizer=optax.sgd(0.1),
            )  # fmt: skip
        assert len(warned) == 1
        assert found.result == mb.Result.inner_not_stationary
        assert all(row["linear_residual"] < 1e-6 for row in found.history)


def test_solve_converges_by_implicit_steps(x64):
    problem, a, t = quadratic()
    found = mb.solve(
        problem, jnp.zeros(4), None, key=KEY, solver=mb.GradientDescent(optax.sgd(0.8), 60), steps=200,
        adjoint=mb.Implicit(mb.ConjugateGradient(10)), optimizer=optax.sgd(0.3), strict=True,
    )  # fmt: skip
    np.testing.assert_allclose(found.x, a @ t, rtol=1e-6)
    assert found.result == mb.Result.success


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mb.ConjugateGradient(-1), "steps = -1"),
        (lambda: mb.Neumann(-1), "terms = -1"),
        (lambda: mb.Nystrom(0), "rank = 0"),
        (lambda: mb.GMRES(0), "steps = 0"),
        (lambda: mb.ConjugateGradient(3, damping=-0.5), "damping = -0.5"),
        (lambda: mb.ConjugateGradient(3, tolerance=-1.0), "tolerance = -1"),
        (lambda: mb.Neumann(3, 0.0), "scale = 0.0"),
        (lambda: mb.Nystrom(3, 0.0), "damping = 0.0"),
        (lambda: mb.Implicit(mb.Dense(), tolerance=float("nan")), "tolerance = nan"),
        (lambda: mb.Implicit(mb.Dense(), strong_convexity=0.0), "strong_convexity.* = 0"),
        (lambda: mb.BiCGSTAB(0), "steps = 0"),
        (lambda: mb.Implicit(mb.Dense(), strong_convexity="known"), "strong_convexity.* = 'known'"),
        (lambda: mb.JaxoptSolver("LBFG"), "no solver 'LBFG'"),
        (lambda: mb.JaxoptSolver("BacktrackingLineSearch"), "no optimality condition"),
        (lambda: mb.JaxoptSolver("FixedPointIteration"), "does not minimise"),
        (lambda: mb.JaxoptSolver("Broyden"), "does not minimise"),
        (lambda: mb.JaxoptSolver("OSQP"), "OSQP cannot be made so: .* LBFGS, BFGS"),
        (lambda: mb.JaxoptSolver("LBFGS", iterations=3), "LBFGS cannot be made so: .*'iterations'"),
        (lambda: mb.JaxoptSolver("ScipyMinimize", method="BFGS"), "ScipyMinimize .*LBFGS, BFGS"),
        (lambda: mb.JaxoptSolver("EqualityConstrainedQP"), "EqualityConstrainedQP .*LBFGS, BFGS"),
        (lambda: mb.WarmStarted(quadratic()[0], STAY, mb.Unroll(), slots=0), "slots = 0"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(mb.InputError, match=message):
        make()


WRONG_PARTS = """
import jax, optax, metabilevel as mb
problem = mb.BilevelProblem(lambda x, t, k: x, lambda x, y, t, k: (y - x) ** 2, lambda x, y, t, k: y**2)
descent, key = mb.GradientDescent(optax.sgd(0.1), 2), jax.random.key(0)
hypergradient = lambda p, s, a: mb.hypergradient(p, 1.0, None, key=key, solver=s, adjoint=a)
solve = lambda p, s, a, o=optax.sgd(0.1), **more: mb.solve(
    p, 1.0, None, key=key, solver=s, adjoint=a, optimizer=o, steps=1, **more
)
for call in (hypergradient, solve, mb.reduced, mb.Nested, mb.WarmStarted):
    for parts in (
        (problem, descent, mb.Implicit), (problem, descent, mb.ConjugateGradient(3)), (problem, descent, None),
        (problem, mb.GradientDescent, mb.Unroll()), (problem, optax.sgd(0.1), mb.Unroll()), (abs, descent, mb.Unroll()),
    ):
        try:
            call(*parts)
        except mb.InputError as error:
            print(error)
class Loop(mb.AbstractSingleLoop):
    begin = step = None
for wrong in (lambda: solve(problem, descent, mb.Unroll(), optax.sgd),
              lambda: solve(problem, Loop(), mb.Unroll(), minibatches=64)):
    try:
        wrong()
    except mb.InputError as error:
        print(error)
"""


def test_a_part_of_another_kind_is_named():
    """In a process of its own, where no type checker comes first."""
    ran = subprocess.run([sys.executable, "-c", WRONG_PARTS], capture_output=True, text=True, check=True)
    said = ran.stdout.splitlines()
    adjoint, solver = "Unroll() or Implicit(ConjugateGradient(20)) is", "GradientDescent(optax.sgd(0.1), steps=10) is"
    assert said == [
        *5
        * [
            f"adjoint is the class Implicit: an instance such as {adjoint} wanted.",
            f"adjoint is of type ConjugateGradient: an instance such as {adjoint} wanted.",
            f"adjoint is of type NoneType: an instance such as {adjoint} wanted.",
            f"solver is the class GradientDescent: an instance such as {solver} wanted.",
            f"solver is of type GradientTransformationExtraArgs: an instance such as {solver} wanted.",
            "problem is of type builtin_function_or_method: an instance such as BilevelProblem(init, inner_loss, "
            "outer_loss) is wanted.",
        ],
        "optimizer is of type function: an optax transformation such as optax.adam(1e-2) is wanted.",
        "minibatches is of type int: an instance such as Minibatches(64) is wanted.",
    ]


@pytest.mark.parametrize("inverse", [mb.Dense(), mb.Nystrom(2), mb.GMRES(5), mb.ConjugateGradient(9)])
def test_half_precision_is_for_products_alone(inverse):
    half = mb.BilevelProblem(
        init=lambda x, task, key: jnp.ones(3, jnp.float16),
        inner_loss=lambda x, y, task, key: jnp.sum((y - x.astype(y.dtype)) ** 2),
        outer_loss=lambda x, y, task, key: jnp.sum(y.astype(x.dtype) ** 2) / 2,
    )
    find = lambda: mb.hypergradient(half, jnp.ones(3), None, key=KEY, solver=STAY, adjoint=mb.Implicit(inverse))[1]
    if isinstance(inverse, mb.ConjugateGradient):
        np.testing.assert_allclose(find(), 1, rtol=1e-2)
    else:
        with pytest.raises(mb.InputError, match=r"y holds float16.*float32"):
            find()


@pytest.mark.parametrize("inverse", [mb.Dense(), mb.Nystrom(2), mb.GMRES(5)])
def test_a_preconditioner_that_nobody_would_use_is_refused(inverse):
    problem, _, _ = quadratic()
    adjoint = mb.Implicit(inverse, precondition=mb.SecondMoments())
    with pytest.raises(mb.InputError, match="takes no preconditioner"):
        mb.hypergradient(problem, jnp.ones(4), None, key=KEY, solver=mb.GradientDescent(optax.adam(0.1), 5),
                         adjoint=adjoint)  # fmt: skip
    with pytest.raises(mb.InputError, match="no second moments"):
        mb.hypergradient(
            problem, jnp.ones(4), None, key=KEY, solver=mb.GradientDescent(optax.sgd(0.1), 5),
            adjoint=mb.Implicit(mb.Identity(), precondition=mb.SecondMoments()),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("solver", "fields", "message"),
    [
        (mb.Trajectory(mb.GradientDescent(optax.sgd(0.1), 3)), {}, "not shaped like y"),
        (mb.ProjectedGradient(lambda y: y, learning_rate=0.1, steps=3), {"strong_convexity": 1.0}, "strong_convexity"),
        (mb.JaxoptSolver("LBFGSB"), {}, "wants 'bounds'"),
    ],
)
def test_a_solver_that_does_not_suit_is_refused(solver, fields, message):
    with pytest.raises(mb.InputError, match=message):
        mb.hypergradient(
            quadratic()[0], jnp.ones(4), None, key=KEY, solver=solver, adjoint=mb.Implicit(mb.Dense(), **fields)
        )
