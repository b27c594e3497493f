"""Every candidate compiled once, and run: what it takes, and what it gives."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..hypergradients import with_task
from ..info import Result
from ..planning import Footprint
from ..problem import BilevelProblem, Key, Outer, Task
from ..solvers import AbstractInnerSolver, AbstractIterativeSolver
from ..windows import EvolutionStrategies
from .candidates import PAIRS, Candidate, Sampled

COMPILERS = 2  # threads
ROUNDS = 5  # in which all candidates run in turn, so that a busy machine is busy for all
LIMIT = 15.0  # seconds, after which no further round begins


class Program(NamedTuple):
    """A candidate that is compiled: `run()` gives its flat gradient and the result of its certificate."""

    run: Callable[[], Any]
    compiling: float
    temporaries: int | None


class Run(NamedTuple):
    """What a candidate gave, and its median `seconds`."""

    gradient: np.ndarray
    result: Result
    seconds: float


def compiling(
    candidates: Mapping[str, Candidate],
    problem: BilevelProblem,
    solver: AbstractInnerSolver,
    x: Outer,
    task: Task,
    key: Key,
) -> Iterator[tuple[str, Program | str]]:
    """Every candidate as a program of one task, or, in words, what its tracing or its compilation raised.

    Tracing is done here, one after another; the compiler works on `COMPILERS` programs at once.
    """
    arrays, rest = eqx.partition((x, task, key), eqx.is_array)

    def traced(candidate: Candidate) -> Any:
        def fn(arrays: Any) -> Any:
            gradient, result = _found(candidate, problem, solver, *eqx.combine(arrays, rest))
            return ravel_pytree(gradient)[0], result

        return jax.jit(fn).lower(arrays)

    pool = ThreadPoolExecutor(COMPILERS)
    try:
        waiting: dict[str, Future[Program | str]] = {}
        for name, candidate in candidates.items():
            begun = time.perf_counter()
            lowered = _or_error(traced, candidate)
            waiting[name] = pool.submit(_program, lowered, arrays, time.perf_counter() - begun)
        for name, future in waiting.items():
            yield name, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _or_error(fn: Callable[..., Any], *args: Any) -> Any:
    """What `fn(*args)` gives, or, as text, whatever a user's problem or solver raises.

    Not the exception: by its traceback it would keep what was traced, and with it the precision of constants.
    """
    try:
        return fn(*args)
    except Exception as error:  # noqa: BLE001
        return " ".join(f"{type(error).__name__}: {error}".split())


def _program(lowered: Any, arrays: Any, tracing: float) -> Program | str:
    begun = time.perf_counter()
    program = lowered if isinstance(lowered, str) else _or_error(lowered.compile)
    if isinstance(program, str):
        return program
    planned = Footprint.of(program)
    return Program(
        lambda: jax.block_until_ready(program(arrays)),
        tracing + time.perf_counter() - begun,
        None if planned is None else planned.temporaries,
    )


def _found(
    candidate: Candidate, problem: BilevelProblem, solver: AbstractInnerSolver, x: Outer, task: Task, key: Key
) -> tuple[Outer, Result]:
    way = candidate.way
    if not isinstance(way, Sampled):
        reached, gradient = way.hypergradient(problem, solver, x, task, key)
        return gradient, reached.certificate.result
    assert isinstance(solver, AbstractIterativeSolver)
    bound = with_task(problem, lambda _: task)
    last = jnp.arange(way.steps) == way.steps - 1
    estimator = EvolutionStrategies(bound, solver, window=way.steps, weights=last)
    pairs = jnp.zeros(PAIRS)
    gradient, _, info = estimator(x, pairs, estimator.init(x, pairs, key), key)
    return gradient, Result.where(info.finite.all(), Result.success, Result.nonfinite)


def timed(programs: dict[str, Program]) -> Iterator[tuple[str, Run]]:
    """Runs all of them once, and then, until the time is over, in rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    found: dict[str, Any] = {}
    begun = time.perf_counter()
    for i in range(ROUNDS + 1):
        for name, program in programs.items():
            before = time.perf_counter()
            outcome = program.run()
            seconds[name].append(time.perf_counter() - before)
            if not i:
                found[name] = outcome
        if time.perf_counter() - begun > LIMIT:
            break
    for name, (gradient, result) in found.items():
        taken = seconds[name][1:] or seconds[name]  # the first is slower, while memory is got
        yield name, Run(np.asarray(gradient, np.float64), result, statistics.median(taken))
