"""Checks of the interface: what an estimator takes and gives, and what it keeps."""

import jax

from ..info import Info
from ..schema import options
from .outcome import Nonconformity
from .trees import broken, other_kind
from .trial import Trial


def builds(trial: Trial) -> None:
    """The factory gives a `Method`, whose functions fit together; every option has a type and a default."""
    options(trial.factory)
    trial.chosen  # noqa: B018 - raises


def runs(trial: Trial) -> None:
    """The estimator runs when it is compiled."""
    bench = trial.chosen[1]
    try:
        for seed in trial.seeds:
            bench.first(seed)
    except jax.errors.UnexpectedTracerError as error:
        raise Nonconformity("a tracer leaks: see `no-leaked-tracer`") from error


def direction_like_x(trial: Trial) -> None:
    """The direction has the structure, shapes and types of x, strongly typed, and is finite."""
    for seed in trial.seeds:
        x, found = trial.bench.start(seed).x, trial.bench.first(seed)
        if said := other_kind(found.direction, x, "direction"):
            raise Nonconformity(f"{said}, as in x: an outer optimizer adds the direction to x leaf by leaf.")
        if said := broken(found.direction, "direction"):
            raise Nonconformity(f"{said}, on tasks with nothing wrong about them (seed {seed}).")


def carry_stable(trial: Trial) -> None:
    """Every call gives a carry of the structure, shapes and types that `init` gave: a compiled loop can hold it."""
    bench = trial.bench
    point = bench.start(trial.seeds[0])
    with bench.precision():
        carry = bench.method.estimator.init(point.x, point.tasks, point.key)
        step = lambda carry: bench.method.estimator(point.x, point.tasks, carry, point.key)[1]
        for number in (1, 2):
            later = jax.eval_shape(step, carry)
            if said := other_kind(later, carry, "carry"):
                before = "init gives" if number == 1 else "the call before gave"
                raise Nonconformity(
                    f"after call {number} {said}, as {before} it: a compiled loop holds a carry of one structure. "
                    "Give arrays of fixed shapes, such as jnp.zeros((), jnp.int32) for a counter, from init on."
                )
            carry = later


def info_complete(trial: Trial) -> None:
    """`Info` has a loss, its metrics, a certificate and a mark for each task, and its structure stays."""
    bench = trial.bench
    point, found = bench.start(trial.seeds[0]), bench.first(trial.seeds[0])
    info = found.info
    if not isinstance(info, Info):
        raise Nonconformity(f"the third thing that the estimator gives is {type(info).__name__}: an Info is wanted.")
    rows = {"loss": info.loss, "finite": info.finite, **info.metrics, "residual": info.certificate.inner_residual}
    for name, a in rows.items():
        if a.shape != (bench.size,):
            raise Nonconformity(
                f"info's {name} has the shape {list(a.shape)} on {bench.size} tasks: [{bench.size}] is wanted, a "
                "number for each task (jax.vmap over the tasks gives it)."
            )
    for seed in trial.seeds:
        if not bench.first(seed).info.finite.all():
            raise Nonconformity(f"info.finite marks tasks as failed with which nothing is wrong (seed {seed}).")
        if said := broken(bench.first(seed).info.loss, "info.loss"):
            raise Nonconformity(f"{said}, on tasks with nothing wrong about them (seed {seed}).")
    with bench.precision():
        later = jax.eval_shape(lambda point: bench.method.estimator(*point)[2], point._replace(carry=found.carry))
    if said := other_kind(later, info, "info"):
        raise Nonconformity(f"at the second call {said}, as at the first: metrics must not come and go.")


CHECKS = (builds, runs, direction_like_x, carry_stable, info_complete)
