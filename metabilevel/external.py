"""Inner solvers of other libraries, which are imported when they are used."""

import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .errors import InputError
from .problem import BilevelProblem, Inner, Key, Outer, Task
from .solvers import AbstractInnerSolver, inner_gradient, looped

Objective = Callable[..., Any]
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class JaxoptSolver(AbstractInnerSolver):
    """Any solver of jaxopt: `JaxoptSolver("LBFGS", maxiter=100)`.

    `residual` is the solver's own optimality condition. Where that is the gradient of the inner loss its derivative
    is symmetric; where it is a fixed point's, as of `ProjectedGradient`, it is not.

    **Arguments:**

    - `solver`: a class of jaxopt by its name, or a factory `fun -> solver` such as a class, or a solver, whose `fun`
      is then replaced by the inner loss.
    - `hyperparams(x, task) -> {name: value}`: further arguments of the solver's `run` and of its optimality condition
      (`hyperparams_proj`, `hyperparams_prox`).
    - `options`: of the class.

    **Raises:** `InputError` for a name jaxopt does not have, options it does not take, and a solver of another kind
    than the minimisers of a function by steps in JAX.
    """

    solver: Any
    hyperparams: Callable[[Outer, Task], dict[str, Any]]
    options: dict[str, Any]

    def __init__(
        self,
        solver: Any,
        *,
        hyperparams: Callable[[Outer, Task], dict[str, Any]] = lambda x, task: {},
        **options: Any,
    ):
        self.solver, self.hyperparams, self.options = solver, hyperparams, options
        try:
            made = self._made(_nothing)
        except (AttributeError, TypeError) as error:
            raise _refused(getattr(solver, "__name__", solver), f"cannot be made so: {error}") from error
        name = type(made).__name__
        if not callable(getattr(made, "optimality_fun", None)):
            raise _refused(name, "has no optimality condition (optimality_fun) to differentiate implicitly")
        if not hasattr(made, "fun") or name in ("Broyden", "ScipyRootFinding"):
            raise _refused(name, "does not minimise a scalar function, which is what an inner loss is")
        if not hasattr(made, "update"):
            raise _refused(name, "does not run in JAX, step by step")

    @property
    def symmetric(self) -> bool:
        made = self._made(_nothing)
        if isinstance(made, sys.modules["jaxopt"].GradientDescent):  # a proximal gradient but for its condition
            return True
        return not any(hasattr(made, name) for name in ("prox", "projection", "block_prox", "projection_grad"))

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        _plain(self, grad, scan)
        made = self._made(_objective(problem))
        return made.run(y0, **self._given(made, x, task), x=x, task=task, key=key).params

    def residual(self, problem, x, y, task, key):
        made = self._made(_objective(problem))
        return made.optimality_fun(y, **self._given(made, x, task), x=x, task=task, key=key)

    def _given(self, made: Any, x: Outer, task: Task) -> dict[str, Any]:
        """`hyperparams`, and None for those of a projection or a proximal operator that are not given."""
        given = self.hyperparams(x, task)
        wanted = [inspect.signature(each).parameters.items() for each in (made.init_state, made.optimality_fun)]
        for name, parameter in [item for items in wanted for item in list(items)[1:]]:
            if name in given or parameter.default is not parameter.empty or parameter.kind in _MANY:
                continue
            if name not in ("hyperparams_proj", "hyperparams_prox"):
                raise InputError(
                    f"JaxoptSolver: {type(made).__name__} wants {name!r}: "
                    f"hyperparams=lambda x, task: {{{name!r}: ...}} gives it."
                )
            given = {**given, name: None}
        return given

    def _made(self, fun: Objective) -> Any:
        with warnings.catch_warnings():  # jaxopt says at its import that it is no longer maintained: we know
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            import jaxopt

            factory = self.solver
            if isinstance(factory, str):
                factory = getattr(jaxopt, factory, None)
                if not isinstance(factory, type):
                    raise InputError(f"JaxoptSolver: jaxopt has no solver {self.solver!r}; LBFGS is one.")
            if not callable(factory):
                return dataclasses.replace(factory, fun=fun, **self.options)
            return factory(fun, **self.options)


class OptimistixSolver(AbstractInnerSolver):
    """Any solver of optimistix: a minimiser of the inner loss, a root finder for its gradient, or a fixed point's
    solver for y - learning_rate dG/dy.

    **Arguments:** `max_steps` after which it stops, converged or not: the certificate says which.

    **Raises:** `InputError` for a solver of another kind (least squares).
    """

    solver: Any
    max_steps: int = eqx.field(static=True, default=256)
    learning_rate: float = eqx.field(static=True, default=1.0)

    @property
    def symmetric(self) -> bool:
        return True

    def solve(self, problem, x, y0, task, key, grad=inner_gradient, scan=jax.lax.scan):
        import optimistix as optx

        _plain(self, grad, scan)
        gradient = lambda y, given: inner_gradient(problem, given[0], y, *given[1:])
        settings = {"max_steps": self.max_steps, "throw": False, "adjoint": optx.RecursiveCheckpointAdjoint()}
        match self.solver:
            case optx.AbstractMinimiser():
                loss = lambda y, given: problem.inner_loss(given[0], y, *given[1:])
                found = optx.minimise(loss, self.solver, y0, (x, task, key), **settings)
            case optx.AbstractRootFinder():
                found = optx.root_find(gradient, self.solver, y0, (x, task, key), **settings)
            case optx.AbstractFixedPointSolver():
                step = lambda a, g: a - self.learning_rate * g
                moved = lambda y, given: jax.tree.map(step, y, gradient(y, given))
                found = optx.fixed_point(moved, self.solver, y0, (x, task, key), **settings)
            case _:
                raise InputError(
                    f"OptimistixSolver: {type(self.solver).__name__} is no minimiser, root finder or fixed-point "
                    "solver, which are what an inner loss can be given to."
                )
        return found.value

    def residual(self, problem, x, y, task, key):
        return inner_gradient(problem, x, y, task, key)


def _refused(name: object, why: str) -> InputError:
    return InputError(
        f"JaxoptSolver: {name} {why.rstrip('.')}. Minimisers of a function of y serve: LBFGS, BFGS, NonlinearCG, "
        "GradientDescent, ProximalGradient(prox=...), ProjectedGradient(projection=...), LBFGSB."
    )


def _nothing(y: Inner, x: Outer, task: Task, key: Key) -> Any:
    return jnp.zeros(())


def _objective(problem: BilevelProblem) -> Objective:
    def fun(y: Inner, x: Outer, task: Task, key: Key) -> Any:
        return problem.inner_loss(x, y, task, key)

    return fun


def _plain(solver: AbstractInnerSolver, grad: Any, scan: Any) -> None:
    if grad is not inner_gradient or scan not in (jax.lax.scan, looped):
        raise InputError(
            f"{type(solver).__name__} takes its own steps, which Unroll cannot cut or checkpoint: use plain Unroll(), "
            "or Implicit."
        )
