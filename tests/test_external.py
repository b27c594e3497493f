"""Inner solvers of jaxopt and optimistix."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from problems import quadratic

import metabilevel as mb

SOLVERS = {
    "name": lambda: mb.JaxoptSolver("LBFGS", maxiter=200, tol=1e-10),
    "class of proximal kind": lambda: mb.JaxoptSolver("GradientDescent", maxiter=500, tol=1e-10),
    "of proximal kind, without a prox": lambda: mb.JaxoptSolver("ProximalGradient", maxiter=500, tol=1e-10),
    "factory": lambda: mb.JaxoptSolver(lambda fun: sys.modules["jaxopt"].BFGS(fun, maxiter=200, tol=1e-10)),
    "instance": lambda: mb.JaxoptSolver(sys.modules["jaxopt"].NonlinearCG(fun=None, maxiter=200, tol=1e-10)),
    "BFGS": lambda: mb.OptimistixSolver(optx.BFGS(1e-10, 1e-10)),
    "Newton": lambda: mb.OptimistixSolver(optx.Newton(1e-10, 1e-10)),
    "fixed point": lambda: mb.OptimistixSolver(optx.FixedPointIteration(1e-10, 1e-10), learning_rate=0.6),
}


@pytest.mark.parametrize("adjoint", [mb.Implicit(mb.BiCGSTAB(20)), mb.Unroll()], ids=["implicit", "unroll"])
@pytest.mark.parametrize("name", SOLVERS)
def test_their_hypergradient_is_the_closed_form(name, adjoint, x64):
    mb.JaxoptSolver("LBFGS")  # imports jaxopt, whose own warning would be an error here
    problem, a, t = quadratic(6)
    x = jax.random.normal(jax.random.key(1), (6,))
    _, gradient, info = mb.hypergradient(
        problem, x, None, key=jax.random.key(0), solver=SOLVERS[name](), adjoint=adjoint, strict=True
    )
    np.testing.assert_allclose(gradient, np.linalg.solve(a, np.linalg.solve(a, x) - t), rtol=1e-6)
    assert info.certificate.inner_residual < 1e-6


def test_steps_that_are_not_ours_cannot_be_cut():
    problem, _, _ = quadratic()
    for solver in (mb.JaxoptSolver("LBFGS"), mb.OptimistixSolver(optx.BFGS(1e-3, 1e-3))):
        with pytest.raises(mb.InputError, match="takes its own steps"):
            mb.hypergradient(
                problem, jnp.ones(4), None, key=jax.random.key(0), solver=solver, adjoint=mb.Unroll(first_order=True)
            )


def test_a_least_squares_solver_is_refused():
    problem, _, _ = quadratic()
    solver = mb.OptimistixSolver(optx.LevenbergMarquardt(1e-3, 1e-3))
    with pytest.raises(mb.InputError, match="LevenbergMarquardt is no minimiser"):
        mb.hypergradient(problem, jnp.ones(4), None, key=jax.random.key(0), solver=solver)


def test_jaxopt_is_imported_when_it_is_used_and_says_nothing():
    program = (
        "import sys, warnings; warnings.simplefilter('error'); import metabilevel as mb; mb.Implicit; "
        "mb.GradientDescent; assert 'jaxopt' not in sys.modules; mb.JaxoptSolver('LBFGS'); "
        "print('jaxopt' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("True\n", "")


@pytest.mark.parametrize("adjoint", [mb.Implicit(mb.Dense(), tolerance=np.inf), mb.Unroll()], ids=["ift", "unroll"])
def test_a_tolerance_ends_a_descent(adjoint, x64):
    problem, a, _ = quadratic(6)
    x, key, tolerance = jnp.ones(6), jax.random.key(0), 1e-3
    y, steps = np.zeros(6), 0
    while np.linalg.norm(a @ y - x) > tolerance:
        y, steps = y - 0.3 * (a @ y - x), steps + 1
    find = lambda solver: mb.hypergradient(problem, x, None, key=key, solver=solver, adjoint=adjoint)
    _, gradient, info = find(mb.GradientDescent(optax.sgd(0.3), 1000, tolerance=tolerance))
    np.testing.assert_allclose(info.inner, y, rtol=1e-12)
    np.testing.assert_allclose(gradient, find(mb.GradientDescent(optax.sgd(0.3), steps))[1], rtol=1e-8)
