"""The outer loop: the only place where x changes."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .devices import everywhere, of_leader, placed, require_even
from .errors import InputError, NonFiniteError, count
from .evaluation import compiled, evaluate
from .info import Info, Result, all_finite, finite_mean
from .method import Method, in_chunks, scalars
from .planning import Plan, Programs, choose, lowered
from .problem import Key, Outer, Task, canonical, check_problem
from .progress import track
from .tasks import TaskDistribution, sample_batch

OnNonfinite: TypeAlias = Literal["raise", "mask"]
Row: TypeAlias = dict[str, float | int]

BEFORE_STEP_0 = 2**32 - 1  # what is folded into the key for the initial state, where step i folds in i
VALIDATED = 2**32 - 3  # likewise for the validation, whose episodes are the same at every report
DRAWN_BYTES = 2**18  # of tasks that are drawn for several steps at once, which small tasks are faster by
CHUNK_SECONDS = 1.0  # how long an interrupt may wait for compiled code to come back


class Window(eqx.Module):
    """Sums since the last report, kept in the state so that a resumed run reports what an uninterrupted one does."""

    sums: PyTree
    counted: Array  # outer steps in `sums`: those with at least one finite task
    failed: Array  # tasks left out
    first_failed: Array  # the first step with such a task, -1 if none
    first_empty: Array  # the first step without any finite task, -1 if none


class Best(eqx.Module):
    """The x of the least validation loss, and the step that it is of."""

    x: Outer
    loss: Array
    step: Array


class TrainState(eqx.Module):
    """All that the rest of a run depends on, beside its configuration; `best` where x is validated."""

    x: Outer
    optimizer: PyTree
    carry: PyTree
    step: Array
    window: Window
    best: Best | None = None

    @property
    def chosen(self) -> Outer:
        """The x that a training gives: the best one where x is validated, the last one elsewhere."""
        return self.x if self.best is None else self.best.x

    @property
    def chosen_step(self) -> int:
        """The step that `chosen` is of."""
        return int(self.step if self.best is None else self.best.step)


def fit(
    method: Method,
    tasks: TaskDistribution,
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    steps: int,
    meta_batch: int,
    every: int | None = None,
    task_chunk: int | None = None,
    on_nonfinite: str = "raise",
    validation: int | None = None,
    patience: int | None = None,
    memory_budget: int | None = None,
    progress: bool | None = None,
) -> tuple[Outer, list[Row]]:
    """Trains x by `steps` outer steps: direction of a fresh batch of `meta_batch` training tasks -> optax -> x.

    **Arguments:**

    - `key`: all randomness; step i draws from `fold_in(key, i)`.
    - `every`: outer steps to a row of the history; a twentieth of `steps` if None.
    - `task_chunk`: tasks computed at once; chosen by `fitting_chunk` if None.
    - `on_nonfinite`: `"raise"` stops at the first task whose loss or gradient is not finite; `"mask"` leaves such
      tasks out and counts them.
    - `validation`: episodes of the split `valid`, the same at every report, on which x is then judged; the x of the
      least mean loss is what is returned (Andrychowicz et al. 2016, section 3, choose a learned optimizer so).
    - `patience`: stops after that many reports without a lower validation loss.
    - `memory_budget`: bytes that this process may hold; computed is then as `plan`, with the same arguments, picks.
    - `progress`: a bar on standard error; where that is a terminal if None.

    **Returns:** x, and the history: `step`, mean training `loss` and metrics since the row before, `failed` tasks,
    `inner_residual` (root mean square over the tasks of one fresh batch), `seconds` since the start, and
    `valid_loss` where x is validated; of implicit
    hypergradients the `linear_residual` likewise, and `doubtful`, the fraction of that batch whose certificate has
    another result than success.

    **Raises:** `InputError` for wrong arguments, or other tasks at every draw where there is one memory, before
    compilation, and for a memory budget that does not suffice; `NonFiniteError` under its policy.
    """
    every = max(1, steps // 20) if every is None else every
    if memory_budget is not None:
        picked = plan(
            method, tasks, optimizer, key=key, meta_batch=meta_batch, memory_budget=memory_budget,
            task_chunk=task_chunk, validation=validation,
        )  # fmt: skip
        method, task_chunk = picked.applied(method), picked.task_chunk
    stages = train(
        method, tasks, optimizer, key=key, steps=steps, meta_batch=meta_batch, every=every, task_chunk=task_chunk,
        on_nonfinite=on_nonfinite, validation=validation, patience=patience,
    )  # fmt: skip
    x, history = None, []
    for state, row in track(stages, steps, show=progress):
        x = state.chosen
        history += [row] if row else []
    return x, history


def plan(
    method: Method,
    tasks: TaskDistribution,
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    meta_batch: int,
    memory_budget: int | None = None,
    task_chunk: int | None = None,
    validation: int | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """What `fit` with the same arguments takes in memory, and which way of computing it fits into `memory_budget`.

    Every program of the run is compiled and none is run; what `fit` then needs is not compiled again. Without a budget
    the method's own way is looked at, and no other.

    **Arguments:** `evaluations`: keyword arguments of each call of `evaluate` that is to follow in the same process.

    **Returns:** a `Plan`, with the predicted `peak` in bytes and what was picked.

    **Raises:** `InputError` where no way fits.
    """
    count("meta_batch", meta_batch, 1)
    if memory_budget is not None:
        count("memory_budget", memory_budget, 1, 2**63 - 1)  # bytes
    method, tasks, key = placed(method, tasks, key)
    now = start(in_chunks(method, task_chunk), tasks, optimizer, key, meta_batch, validation is not None)
    method.estimator.check(now.x, tasks, key)
    judged = [] if validation is None else [{"split": "valid", "episodes": validation}]

    def programs(way: Plan) -> Programs:
        each = way.applied(method)

        def others() -> Iterable[tuple[str, jax.stages.Compiled]]:
            yield "report", lowered(_certified, each, tasks, meta_batch, now, key).compile()
            for given in (*judged, *evaluations):
                name = f"evaluation ({given.get('split', 'test')})"
                yield name, compiled(each, now.x, tasks, **given, task_chunk=way.task_chunk)

        return Programs(lowered(_loop, each, tasks, optimizer, meta_batch, now, key, now.step), others)

    return choose(method, programs, task_chunk=task_chunk, budget=memory_budget)


@eqx.filter_jit
def start(
    method: Method, tasks: TaskDistribution, optimizer: Any, key: Key, meta_batch: int, validated: bool = False
) -> TrainState:
    """The state before the first step."""
    require_even("meta_batch", meta_batch)
    k_x, k_tasks, k_carry = jax.random.split(jax.random.fold_in(key, BEFORE_STEP_0), 3)
    x = canonical(method.init(k_x), "x")
    batch = sample_batch(tasks, k_tasks, "train", meta_batch)
    check_problem(method.problem, x, jax.tree.map(lambda a: a[0], batch), k_carry)
    carry = method.estimator.init(x, batch, k_carry)
    info = jax.eval_shape(lambda: method.estimator(x, batch, carry, k_carry)[2].mean())
    zero = jnp.zeros((), jnp.int32)
    best = Best(x, jnp.full((), jnp.inf, float), zero) if validated else None
    return everywhere(TrainState(x, optimizer.init(x), carry, zero, _empty(scalars(info)), best))


def train(
    method: Method,
    tasks: TaskDistribution,
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    steps: int,
    meta_batch: int,
    every: int,
    task_chunk: int | None = None,
    on_nonfinite: str = "raise",
    validation: int | None = None,
    patience: int | None = None,
    state: TrainState | None = None,
) -> Iterator[tuple[TrainState, Row | None]]:
    """`fit` as an iterator over (state, row): the first state, then one about every second, with a row at reports.

    `state` is where to go on from. One compiled loop serves all stages, and where a stage ends changes no bit.
    """
    _require_schedule(steps, meta_batch, every, on_nonfinite, validation, patience)
    method, tasks, key, state = placed(in_chunks(method, task_chunk), tasks, key, state)
    validated = validation is not None
    now = start(method, tasks, optimizer, key, meta_batch, validated) if state is None else state
    if state is None:
        method.estimator.check(now.x, tasks, key)
    begun = time.perf_counter()
    yield now, None
    done, stage = int(now.step), 1
    while done < steps and not _tired(now, every, patience):
        report = min(steps, done - done % every + every)
        stop = min(report, done + stage)
        before, tick = now, time.perf_counter()
        now, finite = _loop(method, tasks, optimizer, meta_batch, now, key, jnp.asarray(stop, now.step.dtype))
        advice = partial(_remedy, method, tasks, now.x, key)
        if said := _complaint(done, stop, now.window, bool(finite), on_nonfinite, advice):
            raise NonFiniteError(said, before)
        seconds = time.perf_counter() - tick
        longer = (stop - done) * min(4.0, CHUNK_SECONDS / seconds)
        stage = of_leader(lambda longer=longer: max(1, int(longer)))
        done, row = stop, None
        if done == report:
            row = _row(done, now.window, _certified(method, tasks, meta_batch, now, key))
            if validation is not None:
                now, row["valid_loss"] = _validated(now, method, tasks, key, validation)
            row["seconds"] = time.perf_counter() - begun
            [now] = placed(eqx.tree_at(lambda s: s.window, now, _empty(now.window.sums)))
        yield now, row


def _require_schedule(
    steps: int, meta_batch: int, every: int, on_nonfinite: str, validation: int | None, patience: int | None
) -> None:
    for name, value, least in [("steps", steps, 0), ("meta_batch", meta_batch, 1), ("every", every, 1)]:
        count(name, value, least)
    if on_nonfinite not in get_args(OnNonfinite):
        raise InputError(f"on_nonfinite = {on_nonfinite!r}: 'raise' or 'mask' is wanted.")
    for name, value in [("validation", validation), ("patience", patience)]:
        if value is not None:
            count(name, value, 1)
    if patience is not None and validation is None:
        raise InputError(f"patience = {patience}: it needs episodes to judge on (validation).")


def outer_step(
    method: Method, optimizer: optax.GradientTransformation, x: Outer, opt: PyTree, carry: PyTree, batch: Task, key: Key
) -> tuple[Outer, PyTree, PyTree, Info]:
    """direction -> optax -> x. A step without one finite task leaves x and the optimizer as they are."""
    direction, carry, info = method.estimator(x, batch, carry, key)
    with jax.named_scope("outer_update"):
        updates, moved = optimizer.update(direction, opt, x)
        any_finite = info.finite.any()
        new = optax.apply_updates(x, updates), moved
        x, opt = jax.tree.map(lambda a, b: jnp.where(any_finite, a, b), new, (x, opt))
    return x, opt, carry, info


@eqx.filter_jit
def _loop(
    method: Method, tasks: TaskDistribution, optimizer: Any, meta_batch: int, state: TrainState, key: Key, stop: Array
) -> tuple[TrainState, Array]:
    """Walks to the step `stop`; and whether x is finite there. The tasks of several steps are drawn at once, and the
    one task of a family that has no other only once."""
    keys = partial(_keys, key)
    draw = lambda k: sample_batch(tasks, k, "train", meta_batch)
    bytes_of_one = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(draw, key)))
    drawn = 1024 if tasks.single else min(64, max(1, DRAWN_BYTES // max(1, bytes_of_one)))
    only = draw(key) if tasks.single else None

    def block(number: Array, state: TrainState) -> TrainState:
        first = number * drawn
        k_tasks, k_estimates = jax.vmap(keys)(first + jnp.arange(drawn, dtype=first.dtype))
        with jax.named_scope("drawing"):
            batches = None if tasks.single else jax.vmap(draw)(k_tasks)

        def one(i: Array, s: TrainState) -> TrainState:
            batch = only if tasks.single else jax.tree.map(lambda a: a[i - first], batches)
            k = k_estimates[i - first]
            x, opt, carry, info = outer_step(method, optimizer, s.x, s.optimizer, s.carry, batch, k)
            return TrainState(x, opt, carry, i + 1, _add(s.window, info, i), s.best)

        return jax.lax.fori_loop(state.step, jnp.minimum(stop, first + drawn), one, state)

    state = jax.lax.fori_loop(state.step // drawn, -(-stop // drawn), block, state)
    return everywhere((state, all_finite(state.x)))


@eqx.filter_jit
def _certified(
    method: Method, tasks: TaskDistribution, meta_batch: int, state: TrainState, key: Key
) -> dict[str, Array]:
    """What the certificates of the next step's tasks say; a report, hence not computed in the loop."""
    k_tasks, k_estimate = _keys(key, state.step)
    batch = sample_batch(tasks, k_tasks, "train", meta_batch)
    certificate = method.estimator(state.x, batch, state.carry, k_estimate)[2].certificate
    square = lambda a: jnp.sqrt(finite_mean(a**2, jnp.isfinite(a)))
    said = {"inner_residual": square(certificate.inner_residual)}
    if certificate.linear_residual is not None:
        said["linear_residual"] = square(certificate.linear_residual)
        said["doubtful"] = jnp.mean(certificate.result != Result.success, dtype=float)
    return everywhere(said)


def _validated(
    state: TrainState, method: Method, tasks: TaskDistribution, key: Key, episodes: int
) -> tuple[TrainState, float]:
    """The state with its x as the best one, if it is that, and the validation loss of x."""
    key = jax.random.fold_in(key, VALIDATED)
    chunk = method.estimator.task_chunk
    scores = evaluate(
        method, state.x, tasks, key=key, split="valid", episodes=episodes, task_chunk=chunk, progress=False
    )
    loss = scores[None]["loss"].mean
    if state.best is not None and loss < float(state.best.loss):
        best = Best(state.x, jnp.asarray(loss, state.best.loss.dtype), state.step)
        state = eqx.tree_at(lambda s: s.best, state, best)
    return state, loss


def _tired(state: TrainState, every: int, patience: int | None) -> bool:
    """Whether the last `patience` reports brought nothing better."""
    if state.best is None or patience is None:
        return False
    return int(state.step) - int(state.best.step) >= patience * every


def _keys(key: Key, step: Array) -> tuple[Key, Key]:
    """Of the tasks of a step, and of its estimate."""
    k_tasks, k_estimate = jax.random.split(jax.random.fold_in(key, step))
    return k_tasks, k_estimate


def _empty(sums: PyTree) -> Window:
    zero, never = jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)
    return Window(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sums), zero, zero, never, never)


def _add(w: Window, info: Info, step: Array) -> Window:
    usable = info.finite.any()
    first = lambda seen, now: jnp.where((seen < 0) & now, step, seen)
    return Window(
        jax.tree.map(lambda a, b: a + jnp.where(usable, b, 0), w.sums, info.mean()),
        w.counted + usable,
        w.failed + info.failed.astype(w.failed.dtype),
        first(w.first_failed, info.failed > 0),
        first(w.first_empty, ~usable),
    )


def _remedy(method: Method, tasks: TaskDistribution, x: Outer, key: Key) -> str:
    return method.estimator.remedy(x, eqx.filter_eval_shape(tasks.sample, key, "train"), key)


def _row(step: int, w: Window, certified: Mapping[str, Any]) -> Row:
    """What is reported of the steps in a window."""
    means = {name: float(value / w.counted) for name, value in w.sums.items()}
    return {"step": step, **means, "failed": int(w.failed)} | {name: float(value) for name, value in certified.items()}


def _complaint(before: int, after: int, w: Window, finite: bool, policy: str, advice: Callable[[], str]) -> str | None:
    """What is wrong with the steps from `before` to `after`, and what to do about it."""
    remedy = "Lower the inner or the outer learning rate"
    if int(w.first_empty) == 0:
        remedy = (
            "Is the loss finite where the inner solve starts, and no logarithm of a negative one? If so, lower the "
        )
        remedy += "inner learning rate"
    if int(w.first_empty) >= 0:
        return f"step {int(w.first_empty)}: no task of the batch has a finite loss and gradient. {remedy}.{advice()}"
    if policy == "raise" and int(w.first_failed) >= 0:
        return (
            f"step {int(w.first_failed)}: a task's loss or gradient is not finite ({int(w.failed)} tasks up to step "
            f"{after}). {remedy}, or leave such tasks out (on_nonfinite='mask').{advice()}"
        )
    if not finite:
        return f"between steps {before} and {after} an outer update made x infinite or NaN. {remedy}."
    return None
