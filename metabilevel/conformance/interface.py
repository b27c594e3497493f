"""Checks of the interface: what an estimator takes and gives."""

import jax

from ..info import Info
from ..schema import options
from .outcome import Nonconformity
from .trees import broken, other_kind
from .trial import Trial


def builds(trial: Trial) -> None:
    """The factory gives a `Method`, which begins, adapts and is judged on a task; every option has a default."""
    options(trial.factory)
    trial.chosen  # noqa: B018 - raises


def traces_without_leaks(trial: Trial) -> None:
    """The estimator runs, compiled, and keeps no tracer."""
    bench = trial.chosen[1]
    point = bench.start(trial.seeds[0])
    with bench.precision(), jax.checking_leaks():
        jax.eval_shape(lambda point: bench.method.estimator(*point), point)
    bench.first(trial.seeds[0])


def direction_like_x(trial: Trial) -> None:
    """The direction has the structure, shapes and types of x, strongly typed, and is finite."""
    for seed in trial.seeds:
        x, direction = trial.bench.start(seed).x, trial.bench.first(seed).direction
        if said := other_kind(direction, x, "direction"):
            raise Nonconformity(f"{said}, as in x: an outer optimizer adds the direction to x leaf by leaf.")
        if said := broken(direction, "direction"):
            raise Nonconformity(f"{said}, on tasks with nothing wrong about them (seed {seed}).")


def carry_stable(trial: Trial) -> None:
    """Every call gives a carry of the structure, shapes and types that `init` gave: a compiled loop can hold it."""
    bench = trial.bench
    for seed in trial.seeds:
        point, found = bench.start(seed), bench.first(seed)
        said = other_kind(found.carry, point.carry, "carry")
        said = said or other_kind(bench(point._replace(carry=found.carry)).carry, found.carry, "the second carry")
        if said:
            raise Nonconformity(f"{said}, as before the call: a compiled loop holds a carry of one structure.")


def info_complete(trial: Trial) -> None:
    """`Info` has a loss, its metrics, a certificate and a mark for each task, and its structure stays."""
    bench = trial.bench
    point, found = bench.start(trial.seeds[0]), bench.first(trial.seeds[0])
    info = found.info
    if not isinstance(info, Info):
        raise Nonconformity(f"the third thing that the estimator gives is {type(info).__name__}: an Info is wanted.")
    for name, a in {"loss": info.loss, "finite": info.finite, **info.metrics}.items():
        if a.shape[:1] != (bench.size,):
            raise Nonconformity(f"info's {name} has the shape {list(a.shape)} on {bench.size} tasks: one row each.")
    if said := other_kind(bench(point._replace(carry=found.carry)).info, info, "info"):
        raise Nonconformity(f"{said}, as at the first call: metrics must not come and go.")
