"""The ways to a hypergradient, and which of them apply to a problem."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx

from ..adjoints import AbstractAdjoint, ForwardMode, StopGradient, Unroll
from ..implicit import Implicit
from ..linear import (
    GMRES,
    AbstractInverse,
    BiCGSTAB,
    ConjugateGradient,
    Dense,
    Identity,
    Neumann,
    Nystrom,
)
from ..solvers import AbstractInnerSolver, AbstractIterativeSolver, ClosedForm, Trajectory

TANGENTS = 100  # entries of x up to which forward mode is tried
ROWS = 1000  # entries of y up to which its Hessian is written out
SAMPLED = 1000  # entries of x up to which a few random directions say anything of a gradient
ITERATIONS = (5, 20, 100)  # of a linear solve
PAIRS = 8  # of evolution strategies


class Sampled(NamedTuple):
    """Evolution strategies over a whole inner solve of `steps`, of the loss after its last."""

    steps: int

    def __str__(self) -> str:
        only_last = f"weights=jnp.arange({self.steps}) == {self.steps - 1}"
        return f"mb.EvolutionStrategies(problem, solver, window={self.steps}, {only_last})"


class Candidate(NamedTuple):
    """A way to a hypergradient; `unfit` is why it does not apply, empty where it does."""

    family: str
    way: AbstractAdjoint | Sampled
    unfit: str = ""

    @property
    def name(self) -> str:
        """As in Python, without what stands in front of the names."""
        if isinstance(self.way, Sampled):
            return f"EvolutionStrategies, {PAIRS} pairs"
        return written(self.way).replace("mb.", "")

    @property
    def line(self) -> str:
        """The line of Python that computes it, or that makes the estimator of it."""
        if isinstance(self.way, Sampled):
            return str(self.way)
        adjoint = written(self.way)
        return f"mb.hypergradient(problem, x, task, key=key, solver=solver, adjoint={adjoint})"


def written(module: object) -> str:
    """The call that makes it, with all that is not a default."""
    if not isinstance(module, eqx.Module):
        return f'"{module}"' if isinstance(module, str) else repr(module)
    said = []
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if field.default is dataclasses.MISSING:
            said.append(written(value))
        elif value != field.default:
            said.append(f"{field.name}={written(value)}")
    return f"mb.{type(module).__name__}({', '.join(said)})"


def candidates(solver: AbstractInnerSolver, n: int, m: int) -> list[Candidate]:
    """All of them, each once, for an x of `n` entries and a y of `m`."""
    found = [*_unrolled(solver), *_forward(n), *_implicit(solver, m), *_sampled(solver, n)]
    return list({each.name: each for each in found}.values())


def steps_of(solver: AbstractInnerSolver) -> int | None:
    """The number of inner steps that a derivative can be taken through one by one, None where there are none to see."""
    match solver:
        case AbstractIterativeSolver():
            return solver.steps
        case Trajectory():
            return solver.solver.steps
    return None


def _unrolled(solver: AbstractInnerSolver) -> Iterator[Candidate]:
    yield Candidate("unrolled", Unroll())
    steps = steps_of(solver)
    if steps is None:
        unfit = f"{type(solver).__name__} shows no steps of its own"
    else:
        unfit = "" if steps > 1 else f"with {steps} inner steps there is nothing to leave out"
        unfit = unfit.replace("1 inner steps", "1 inner step")
    for checkpoint in ("step", "sqrt"):
        yield Candidate("unrolled", Unroll(checkpoint=checkpoint), unfit)
    gradients = "the formula follows no inner gradient" if isinstance(solver, ClosedForm) else ""
    if steps is None:
        gradients = gradients or unfit
    yield Candidate("unrolled", Unroll(mixed_mode=True), gradients)
    yield Candidate("unrolled", Unroll(checkpoint="sqrt", mixed_mode=True), gradients or unfit)
    yield Candidate("first order", Unroll(first_order=True), gradients)
    for share in (10, 3):
        yield Candidate("truncated", Unroll(window=max(1, (steps or 0) // share)), unfit)
    yield Candidate("no inner derivative", StopGradient())


def _forward(n: int) -> Iterator[Candidate]:
    yield Candidate("forward mode", ForwardMode(), f"x has {n:,} entries, a tangent each" if n > TANGENTS else "")


def _implicit(solver: AbstractInnerSolver, m: int) -> Iterator[Candidate]:
    def of(family: str, inverse: AbstractInverse, unfit: str = "") -> Candidate:
        return Candidate(f"implicit: {family}", Implicit(inverse), unfit)

    iterations = sorted({min(k, m) for k in ITERATIONS})
    some = iterations[min(1, len(iterations) - 1)]
    skew = "" if solver.symmetric else "the residual's derivative is not known to be symmetric"
    for k in iterations:
        yield of("conjugate gradients", ConjugateGradient(k), skew)
    for terms in ITERATIONS:
        yield of("Neumann", Neumann(terms))
    yield of("identity", Identity())
    yield of("others", Dense(), f"y has {m:,} entries, whose square is to be stored" if m > ROWS else "")
    yield of("others", Nystrom(some), skew)
    yield of("others", GMRES(some))
    symmetric = "the Hessian is symmetric: conjugate gradients and GMRES do" if solver.symmetric else ""
    yield of("others", BiCGSTAB(some), symmetric)
    yield of("others", ConjugateGradient(some, normal=True), symmetric)


def _sampled(solver: AbstractInnerSolver, n: int) -> Iterator[Candidate]:
    if not isinstance(solver, AbstractIterativeSolver) or not solver.steps:
        yield Candidate("evolution strategies", Sampled(1), "it goes along the steps of an iterative solver")
        return
    expected = (n / PAIRS) ** 0.5
    unfit = f"x has {n:,} entries: the relative error would be about {expected:.0f}" if n > SAMPLED else ""
    yield Candidate("evolution strategies", Sampled(solver.steps), unfit)
