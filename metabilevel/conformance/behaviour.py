"""Checks of behaviour: what the direction may depend on, and what it must survive."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..tasks import Episode
from .bench import Bench, Found, Point
from .families import still
from .outcome import Nonconformity, NotApplicable
from .trees import arrays, broken, flat, mean, other_kind, unequal
from .trial import LATER, Trial

CLOSE = 1e-7  # of double precision, for sums in another order


def key(trial: Trial) -> None:
    """What is random comes from `key`, and every task has a key of its own."""
    bench = trial.bench
    seed = trial.seeds[0]
    later = bench.start(seed)._replace(carry=bench.first(seed).carry)
    found, second = ([_with_key(bench, point, other) for other in range(6)] for point in (bench.start(seed), later))
    changes = [unequal(other, same[0], "") for same in (found, second) for other in same[1:]]
    if "random_bits" in bench.program.text and not any(changes):
        raise Nonconformity(
            "the estimator draws random numbers, and six different keys give the same result bit for bit: it draws "
            "from a key of its own, such as jax.random.key(0). Draw from the `key` that it is given."
        )
    if bench.size == 1 or not any(unequal(other.info.loss, found[0].info.loss, "") for other in found[1:]):
        return
    losses = _copies(bench, bench.start(seed), 0).info.loss
    if np.ptp(np.asarray(losses)) == 0:
        raise Nonconformity(
            f"{bench.size} copies of one task have the same loss, {losses[0]:.6g}, though it depends on the key: all "
            "tasks of a batch draw alike. Split the key: jax.random.split(key, tasks)."
        )


def _with_key(bench: Bench, point: Point, number: int) -> Found:
    with bench.precision():
        return bench(point._replace(key=jax.random.key(number + 77)))


def sees_x(trial: Trial) -> None:
    """The direction or the loss changes with x, whatever the carry remembers."""
    bench = trial.bench
    if not flat(bench.start(trial.seeds[0]).x).size:
        raise NotApplicable("x is empty: there is nothing to train")
    for seed in trial.seeds:
        point = bench.start(seed)._replace(carry=bench.first(seed).carry)
        with bench.precision():
            elsewhere = jax.tree.map(lambda a: 1.1 * a + 0.05, point.x)
        here, there = bench(point), bench(point._replace(x=elsewhere))
        if unequal(there[::2], here[::2], "") is None:
            raise Nonconformity(
                "the second call gives the same direction and losses for two different x: it uses an x that the carry "
                f"remembers, or none (seed {seed}). The direction is wanted at the x that is given."
            )


def mean_over_tasks(trial: Trial) -> None:
    """The direction of a batch is the mean over its tasks, each taken alone, in any order; so are losses and metrics
    those of each task."""
    bench = trial.bench
    _several(bench)
    if not trial.deterministic:
        raise NotApplicable("tasks draw by their place in the batch; `bad-task-left-out` looks at the mean")
    for seed in trial.seeds:
        point, found = bench.start(seed), bench.first(seed)
        copies = [_copies(bench, point, i) for i in range(bench.size)]
        for name, rows in {"loss": found.info.loss, **found.info.metrics}.items():
            numbers = [{"loss": each.info.loss, **each.info.metrics}[name] for each in copies]
            if said := unequal(rows, np.stack([np.asarray(each)[0] for each in numbers]), f"info's {name}", CLOSE):
                raise Nonconformity(
                    f"{said}, the {name} of that task in a batch of copies of it (seed {seed}): tasks of a batch have "
                    "a part in one another's, or change places. Write the estimate of one task, and jax.vmap it."
                )
        if said := unequal(found.direction, mean([each.direction for each in copies]), "direction", CLOSE):
            raise Nonconformity(
                f"{said}, the mean over the tasks (seed {seed}): tasks have weights by their place in the batch, or a "
                "part in one another's direction."
            )
    copies, alone = _copies(bench, bench.start(trial.seeds[0]), 0), trial.uncompiled
    if unequal(alone.direction, copies.direction, "", CLOSE):
        alone = bench(bench.alone(trial.seeds[0]))
    if said := unequal(copies.direction, alone.direction, "direction", CLOSE):
        ratio = _ratio(copies.direction, alone.direction)
        sums = f" It is {ratio:.4g} times that: was a sum taken for the mean?" if ratio else ""
        raise Nonconformity(f"on {bench.size} copies of a task {said}, as on the task alone.{sums}")


def _ratio(a: PyTree, b: PyTree) -> float | None:
    """The number by which a is a multiple of b, if it is."""
    u, v = flat(a), flat(b)
    ratio = (u @ v) / (v @ v) if np.any(v) else 0.0
    return float(ratio) if ratio and np.allclose(u, ratio * v, rtol=1e-6) else None


def _several(bench: Bench) -> None:
    if bench.size == 1:
        raise NotApplicable("the method takes one task at a time")


def _copies(bench: Bench, point: Point, i: int) -> Found:
    """A batch of copies of task i."""
    with bench.precision():
        return bench.on(jax.tree.map(lambda a: jnp.stack([a[i]] * len(a)), point.tasks), point)


def _poisoned(bench: Bench, tasks: PyTree, which: list[int], part: str | None = None) -> PyTree:
    """`tasks`, of which those numbered have NaN for every number, of their support or query alone where `part` says
    so."""
    poison = lambda a: a.at[jnp.array(which)].set(jnp.nan)
    with bench.precision():
        return _changed(tasks, poison, part)


def _changed(tasks: PyTree, change: Callable[[Any], Any], part: str | None) -> PyTree:
    """`tasks` with every floating array, of that part alone where it is given, replaced by `change` of it."""
    if part is not None:
        return tasks._replace(**{part: _changed(getattr(tasks, part), change, None)})
    return jax.tree.map(lambda a: change(a) if jnp.issubdtype(a.dtype, jnp.floating) else a, tasks)


def bad_task_left_out(trial: Trial) -> None:
    """A task that is not finite is left out, marked and counted, and the rest of the batch is as without it."""
    bench = trial.bench
    n = bench.size
    for seed in trial.seeds:
        point = bench.start(seed)
        spoilt = [bench.on(_poisoned(bench, point.tasks, [i]), point) for i in range(n)]
        for i, found in enumerate(spoilt):
            wanted = [j != i for j in range(n)]
            if found.info.finite.tolist() != wanted:
                raise Nonconformity(
                    f"task {i} of {n} is NaN, and info.finite says {found.info.finite.tolist()} where {wanted} is "
                    f"wanted; its loss is given as {found.info.loss[i]:.4g} (seed {seed}). Mark by the loss and the "
                    "gradient of each task; never make a number of a NaN."
                )
            if n > 1 and (said := broken(found.direction, "direction")):
                raise Nonconformity(
                    f"one task of {n} is NaN, and {said} (seed {seed}): it poisons the mean. Differentiate inside the "
                    "vmap over tasks and leave out what is not finite; the gradient of a mean is NaN whole."
                )
        if n == 1:
            continue
        rest = lambda i: [j for j in range(n) if j != i]
        alone = [bench.on(_poisoned(bench, point.tasks, rest(i)), point).direction for i in range(n)]
        for i, found in enumerate([*spoilt, bench.on(point.tasks, point)]):
            members = [alone[j] for j in range(n) if j != i]
            if said := unequal(found.direction, mean(members), "direction", CLOSE):
                raise Nonconformity(
                    f"with {len(members)} of {n} tasks finite, {said}, the mean over those tasks (seed {seed}): divide "
                    "the sum over the finite tasks by their number."
                )


def bad_part_marked(trial: Trial) -> None:
    """A task whose support alone, or query alone, is NaN is marked as failed, if the estimate depends on that part."""
    bench = trial.bench
    looked = False
    for seed in trial.seeds:
        point = bench.start(seed)
        if not isinstance(point.tasks, Episode):
            raise NotApplicable("the tasks have no support and query")
        good = bench.on(point.tasks, point)
        for part in ("support", "query"):
            with bench.precision():
                other = _changed(point.tasks, lambda a: 1.5 * a, part)
            changed = bench.on(other, point)
            if unequal((changed.direction, changed.info.loss), (good.direction, good.info.loss), "") is None:
                continue  # a certificate that sees it is nothing that is learned from
            looked = True
            marks = bench.on(_poisoned(bench, point.tasks, [0], part), point).info.finite.tolist()
            if marks != [i > 0 for i in range(bench.size)]:
                raise Nonconformity(
                    f"the {part} of task 0 is NaN, on which the estimate depends, and info.finite says {marks} (seed "
                    f"{seed}): something on the way, as jnp.nan_to_num or a comparison, makes numbers of NaN. Never do "
                    "so: a bad task is to be left out, not learned from."
                )
    if not looked:
        raise NotApplicable("the estimate depends on neither support nor query")


def recovers(trial: Trial) -> None:
    """After a call whose tasks were all NaN, good tasks give a good direction again, within two calls, and go on so."""
    bench = trial.bench
    for seed in trial.seeds:
        point = bench.start(seed)
        failed = bench(point._replace(tasks=_poisoned(bench, point.tasks, list(range(bench.size)))))
        for number in range(1, LATER + 1):
            failed = bench(point._replace(carry=failed.carry))
            if number == 1 or (failed.info.finite.all() and not broken(failed.direction, "direction")):
                continue
            bad = [path for path, a in arrays(failed.carry).items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
            raise Nonconformity(
                f"after a call on NaN tasks, call {number} on good ones is not finite: the carry keeps the NaN, in "
                f"{', '.join(f'carry{path}' for path in bad) or 'no leaf of the carry'} (seed {seed}). Start a slot "
                "that was not finite from problem.init."
            )


def jit(trial: Trial) -> None:
    """Compiled or not, the estimator gives the same."""
    bench, seed = trial.bench, trial.seeds[0]
    if trial.deterministic and bench.size > 1:
        wanted = _copies(bench, bench.start(seed), 0)
        if unequal(trial.uncompiled.direction, wanted.direction, "", CLOSE):
            wanted = bench(bench.alone(seed))  # it may be the batch that makes the difference
    else:
        wanted = bench.first(seed)
    if said := unequal(trial.uncompiled.direction, wanted.direction, "direction", CLOSE):
        raise Nonconformity(
            f"not compiled, {said} by the compiled estimator. A branch in Python on a traced value, np.random, or "
            "state in Python has a part in it: use jax.lax.cond and jnp.where, `key`, and the carry."
        )


def float64(trial: Trial) -> None:
    """In double precision x, the direction, the carry and the losses are of double precision, to their last digits."""
    bench = trial.bench
    point, found = bench.start(trial.seeds[0]), bench.first(trial.seeds[0])
    for name, tree in {
        "x": point.x,
        "direction": found.direction,
        "carry": found.carry,
        "loss": found.info.loss,
    }.items():
        for path, a in arrays(tree).items():
            if np.issubdtype(a.dtype, np.floating) and a.dtype != np.float64:
                raise Nonconformity(
                    f"in double precision {name}{path} is {a.dtype}: write float for a type, not jnp.float32."
                )
    directions = np.concatenate([flat(bench.first(seed).direction) for seed in trial.seeds])
    entries = directions[directions != 0]
    rounded = entries.astype(np.float32)
    coarse = (rounded.view(np.int32) & 0xFFFF) == 0  # signs and the like, which are short numbers in any precision
    if len(entries) > 3 and np.all(rounded == entries) and not coarse.all():
        raise Nonconformity(
            f"in double precision each of the {len(entries)} numbers of three directions is one of single precision: "
            "something on the way is float32. Let every array be of the type of x."
        )


def float32(trial: Trial) -> None:
    """In single precision everything is of single precision, and agrees with double precision."""
    bench, double = trial.single, trial.bench
    comparable = trial.deterministic
    for seed in trial.seeds:
        point, exact = bench.start(seed), double.start(seed)
        with bench.precision():
            x, tasks = jax.tree.map(_as, (exact.x, exact.tasks), (point.x, point.tasks))
        found, wanted = bench.on(tasks, point._replace(x=x)), double.first(seed)
        if said := other_kind(found.direction, x, "direction"):
            raise Nonconformity(f"in single precision {said}, as in x.")
        said = broken(found.direction, "direction") or broken(found.info.loss, "info.loss")
        if comparable:
            said = said or unequal(found.direction, wanted.direction, "direction", 1e-2, 1e-4)
            said = said or unequal(found.info.loss, wanted.info.loss, "info.loss", 1e-2, 1e-4)
        if said:
            raise Nonconformity(
                f"in single precision {said}, as in double precision (seed {seed}): differences of nearly equal "
                "numbers (finite differences with a tiny step), or an epsilon below 1e-38, lose what it has."
            )


def _as(a: Any, like: Any) -> Any:
    """`a`, of double precision, in the type of `like`."""
    return jnp.asarray(np.asarray(a).astype(like.dtype)) if jnp.issubdtype(like.dtype, jnp.number) else like


def zero_gradient(trial: Trial) -> None:
    """Where the inner gradient is exactly zero, nothing is NaN."""
    bench = trial.bench
    for seed in trial.seeds:
        point = bench.start(seed)
        with bench.precision():
            tasks = still(point.tasks)
        found = bench.on(tasks, point)
        for _ in range(2):
            said = broken(found.direction, "direction") or broken(found.info.loss, "info.loss")
            if said or not found.info.finite.all():
                raise Nonconformity(
                    f"where the data leave the inner gradient exactly zero, {said or 'info.finite is false'} (seed "
                    f"{seed}). Optimizers with a square root (optax.adam, adamw, amsgrad, lamb ...) and norms have no "
                    "derivative at zero: take optax.adam(rate, eps_root=1e-8), or write safe roots and divisions."
                )
            found = bench(point._replace(tasks=tasks, carry=found.carry))


CHECKS = (
    jit,
    float32,
    float64,
    key,
    sees_x,
    mean_over_tasks,
    bad_task_left_out,
    bad_part_marked,
    recovers,
    zero_gradient,
)
