"""Windows of long runs: gradients, and how the runs go on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_repro.pes import Balancing, balancing
from problems import assert_close, directional, dot, like

import metabilevel as mb
from metabilevel.storage.checkpoint import restore, save
from metabilevel.training import train

HORIZON = 6


class HeavyBall(mb.AbstractIterativeSolver):
    """v <- m v - rate g, y <- y + v, where rate, m and the first v are outer variables."""

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x: Any, y: Any) -> Any:
        return x["push"] * y

    def step(self, x: Any, gradient_fn: Any, y: Any, state: Any) -> Any:
        state = 0.5 * state - jnp.exp(x["rate"]) * gradient_fn(y)
        return y + state, state

    def residual(self, problem: Any, x: Any, y: Any, task: Any, key: Any) -> Any:
        return jax.grad(problem.inner_loss, 1)(x, y, task, key)


def inner_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
    """Half the mean of (tanh(y . a) - b)^2 over the rows (a, b) of a task [n, 4]."""
    return jnp.mean((jnp.tanh(task[:, :3] @ y) - task[:, 3]) ** 2) / 2 + jnp.sum(x["decay"] * y**2)


def outer_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
    return jnp.sum((y - task[0, :3]) ** 2) + jnp.sum(x["decay"] * y), {"first": y[0]}


PROBLEM = mb.BilevelProblem(
    init=lambda x, task, key: x["start"] + jax.random.normal(key, (3,)) / 2,
    inner_loss=inner_loss,
    outer_loss=outer_loss,
    prepare=lambda x, task, key: x | {"decay": jnp.exp(x["decay"])},
)
some = lambda task, key, i: task[jax.random.permutation(jax.random.fold_in(key, i), len(task))[:3]]
SOLVER = HeavyBall(steps=HORIZON, minibatch=some)
WEIGHTS = [0.5, 0.0, 2.0, 1.0, -1.0, 3.0]
FIRST, SECOND = mb.Unroll(first_order=True, checkpoint="step"), mb.Unroll()
ESTIMATORS = [mb.Truncated, mb.EvolutionStrategies, mb.PersistentES]


def variable() -> Any:
    vector = lambda *a: jnp.array(a, float)
    return {"push": vector(0.3), "rate": vector(-0.5), "decay": vector(-1.0, -2.0, -3.0), "start": vector(0.5, 0.1, 0)}


def tasks(n: int = 3, seed: int = 1) -> Any:
    return jax.random.normal(jax.random.key(seed), (n, 5, 4))


def walk(x: Any, task: Any, key: Any, first_order: bool, window: int = HORIZON) -> tuple[Any, Any]:
    """The losses F(x, y_1) ... F(x, y_T) in a plain loop, cut every `window` steps, and the last point."""
    z, y0, k_solve = PROBLEM.begin(x, task, key)
    k_inner, k_outer = jax.random.split(k_solve)
    point, losses = (y0, SOLVER.init(z, y0)), []
    for i in range(HORIZON):
        if i % window == 0 and i > 0:
            point = jax.lax.stop_gradient(point)

        def gradient_fn(y: Any, i: int = i) -> Any:
            g = jax.grad(inner_loss, 1)(z, y, some(task, k_inner, i), jax.random.fold_in(k_inner, i))
            return jax.lax.stop_gradient(g) if first_order else g

        point = SOLVER.step(z, gradient_fn, *point)
        losses.append(outer_loss(z, point[0], task, jax.random.fold_in(k_outer, i + 1))[0])
    return jnp.array(losses), point


@eqx.filter_jit
def call(estimator: Any, *given: Any) -> Any:
    return estimator(*given)


def episode(estimator: Any, x: Any, batch: Any, key: Any) -> tuple[list[Any], list[Any], Any]:
    """Directions and infos of the calls of whole runs, and the last carry."""
    carry = estimator.init(x, batch, key)
    directions, infos = [], []
    for k in jax.random.split(key, HORIZON // estimator.window):
        direction, carry, info = call(estimator, x, batch, carry, k)
        directions.append(direction)
        infos.append(info)
    return directions, infos, carry


@pytest.mark.parametrize(
    ("adjoint", "window"),
    [(FIRST, 1), (FIRST, 2), (FIRST, HORIZON), (SECOND, 2), (SECOND, HORIZON), (mb.Unroll(mixed_mode=True), 3)],
)
def test_truncated_is_the_derivative_of_each_window_cut_at_its_beginning(adjoint, window, x64, key):
    x, batch = variable(), tasks()
    estimator = mb.Truncated(PROBLEM, SOLVER, adjoint, window, jnp.array(WEIGHTS))
    directions, infos, carry = episode(estimator, x, batch, key)

    def sums(x: Any, task: Any, key: Any) -> Any:
        return (walk(x, task, key, adjoint.first_order, window)[0] * jnp.array(WEIGHTS)).reshape(-1, window).sum(1)

    each = lambda *run: (sums(x, *run), jax.jacrev(sums)(x, *run))
    losses, gradients = jax.jit(jax.vmap(each))(batch, carry.key)
    assert_close(
        jax.tree.map(lambda *a: jnp.stack(a), *directions), jax.tree.map(lambda a: a.mean(0), gradients), 1e-10
    )
    np.testing.assert_allclose([info.loss for info in infos], losses.T, rtol=1e-10)
    assert infos[-1].metrics.keys() == {"first"}
    np.testing.assert_allclose(infos[-1].metrics["first"], carry.point[0][:, 0], rtol=1e-12)


def test_the_last_weight_alone_gives_the_hypergradient_of_the_final_loss(x64, key):
    x, batch = variable(), tasks()
    for adjoint in (FIRST, SECOND):
        estimator = mb.Truncated(PROBLEM, SOLVER, adjoint, HORIZON, lambda t: t == HORIZON)
        direction, carry, info = call(estimator, x, batch, estimator.init(x, batch, key), key)
        one = lambda task, key, adjoint=adjoint: adjoint.hypergradient(PROBLEM, SOLVER, x, task, key)
        reached, gradients = jax.jit(jax.vmap(one))(batch, carry.key)
        assert_close(direction, jax.tree.map(lambda a: a.mean(0), gradients), 1e-10)
        np.testing.assert_allclose(info.loss, reached.value, rtol=1e-12)
        np.testing.assert_allclose(info.metrics["first"], reached.metrics["first"], rtol=1e-12)
        residuals = reached.certificate.inner_residual
        np.testing.assert_allclose(info.certificate.inner_residual, residuals, rtol=1e-12)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_weights_are_an_array_or_a_function_of_t_or_ones(kind, x64, key):
    x, batch = variable(), tasks(1)
    t = jnp.arange(1, HORIZON + 1)
    found = [
        episode(kind(PROBLEM, SOLVER, window=2, weights=weights), x, batch, key)[:2]
        for weights in (jnp.sqrt(t), jnp.sqrt, None, jnp.ones(HORIZON))
    ]
    assert_close(found[0], found[1], 1e-14)
    assert_close(found[2], found[3], 1e-14)
    assert float(jnp.abs(found[0][1][1].loss - found[2][1][1].loss)[0]) > 0.1


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_wrong_windows_and_weights_are_named(kind):
    make = lambda **options: kind(PROBLEM, SOLVER, **options)
    with pytest.raises(mb.InputError, match=r"window = 4: .* horizon, the 6 steps .* One of 1, 2, 3, 6 is wanted"):
        make(window=4)
    with pytest.raises(mb.InputError, match="window = 0"):
        make(window=0)
    with pytest.raises(mb.InputError, match=r"weights of shape \(5,\): one for each of the 6 steps"):
        make(window=2, weights=jnp.ones(5))
    with pytest.raises(mb.InputError, match=r"weights of shape \(\)"):
        make(window=2, weights=lambda t: t.sum())
    with pytest.raises(mb.InputError, match="clip = 0"):
        make(window=2, clip=0.0)
    with pytest.raises(mb.InputError, match="steps = 0: an integer of 1 or more"):
        kind(PROBLEM, HeavyBall(steps=0), window=1)
    if kind is not mb.Truncated:
        with pytest.raises(mb.InputError, match="deviation = 0"):
            make(window=2, deviation=0.0)


@pytest.mark.parametrize("kind", [mb.Truncated, mb.EvolutionStrategies])
@pytest.mark.parametrize("solver", [SOLVER, mb.GradientDescent(optax.adam(0.1), HORIZON, tolerance=0.5)])
def test_windows_join_to_one_solve(x64, kind, solver, key):
    x, batch = variable(), tasks()
    carry = episode(kind(PROBLEM, solver, window=2), x, batch, key)[2]

    def whole(task: Any, key: Any) -> Any:
        z, y0, k_solve = PROBLEM.begin(x, task, key)
        return solver.path(PROBLEM, z, (y0, solver.init(z, y0)), task, jax.random.split(k_solve)[0])[0]

    for a, b in zip(*map(jax.tree.leaves, (carry.point, jax.jit(jax.vmap(whole))(batch, carry.key))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    assert carry.done.tolist() == [HORIZON] * 3


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_a_run_at_its_end_takes_the_new_task_and_no_other_does(kind, key):
    x, estimator = variable(), kind(PROBLEM, SOLVER, window=3)
    carry, keys = estimator.init(x, tasks(), key), []
    for i in range(4):
        _, carry, info = call(estimator, x, tasks(seed=i), carry, jax.random.fold_in(key, i))
        np.testing.assert_array_equal(carry.task, tasks(seed=i - i % 2))
        assert carry.done.tolist() == [3 + 3 * (i % 2)] * 3
        keys.append(jax.random.key_data(carry.key).tolist())
        assert info.failed == 0
    assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.parametrize(
    ("kind", "clip"),
    [(mb.Truncated, None), (mb.Truncated, 0.1), (mb.EvolutionStrategies, None), (mb.PersistentES, 0.1)],
)
def test_a_run_that_diverges_is_left_out_and_begins_anew_with_the_new_task(kind, clip, x64, key):
    """The gradient step on y^4 overflows in the second window, from where the second task begins."""
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x * task,
        inner_loss=lambda x, y, task, key: jnp.sum(y**4) / 4,
        outer_loss=lambda x, y, task, key: jnp.sum(y**2) / 2,
    )
    x, batch = jnp.array(1.0), jnp.array([0.3, 9.0, 0.5])
    estimator = kind(problem, mb.GradientDescent(optax.sgd(0.5), 8), window=4, clip=clip)
    carry = call(estimator, x, batch, estimator.init(x, batch, key), key)[1]
    direction, after, info = call(estimator, x, batch, carry, key)
    assert info.finite.tolist() == [True, False, True]
    assert int(info.failed) == 1
    assert after.done.tolist() == [8] * 3
    rest = jax.tree.map(lambda a: a[jnp.array([0, 2])], carry)
    if kind is mb.Truncated:  # the noise of the others depends on the number of tasks
        assert_close(direction, call(estimator, x, batch[:2], rest, key)[0], 1e-12)
    assert jnp.isfinite(direction)
    early = carry._replace(done=carry.done.at[2].set(0))
    _, after, info = call(estimator, x, jnp.full(3, 0.1), call(estimator, x, batch, early, key)[1], key)
    assert info.failed == 0
    assert after.task.tolist() == [0.1, 0.1, 0.5]
    assert after.done.tolist() == [4, 4, 8]


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_gradient_of_each_run_is_clipped(kind, x64, key):
    x, batch = variable(), tasks()
    at = lambda clip: kind(PROBLEM, SOLVER, window=3, clip=clip)
    carries = [at(None).init(x, batch[i : i + 1], key) for i in range(3)]
    each = lambda clip, i: call(at(clip), x, batch[i : i + 1], carries[i], key)
    length = lambda direction: float(jnp.sqrt(dot(direction, direction)))
    lengths = [length(each(None, i)[0]) for i in range(3)]
    assert len(set(lengths)) == 3
    clip = sorted(lengths)[1] * 0.99
    for i, free in enumerate(lengths):
        direction, _, info = each(clip, i)
        np.testing.assert_allclose(length(direction), min(free, clip), rtol=1e-12)
        assert_close(jax.tree.map(lambda a: a * free / length(direction), direction), each(None, i)[0], 1e-12)  # noqa: B023
        assert info.metrics["clipped"].tolist() == [float(free > clip)]
    assert "clipped" not in each(None, 0)[2].metrics


def test_clipping_hides_no_gradient_that_is_not_finite(key):
    slopes = jnp.array([1e30, jnp.inf, jnp.nan, 1.0])
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(()),
        inner_loss=lambda x, y, task, key: y**2,
        outer_loss=lambda x, y, task, key: jnp.vdot(x, jnp.array([task, 1.0])) * (1 + y),
    )
    estimator = mb.Truncated(problem, mb.GradientDescent(optax.sgd(0.1), 1), window=1, clip=1.0)
    direction, _, info = call(estimator, jnp.zeros(2), slopes, estimator.init(jnp.zeros(2), slopes, key), key)
    assert info.finite.tolist() == [False, False, False, True]
    np.testing.assert_allclose(direction, jnp.ones(2) / jnp.sqrt(2), rtol=1e-6)


QUADRATIC = mb.BilevelProblem(
    init=lambda x, task, key: x * task,
    inner_loss=lambda x, y, task, key: jnp.sum((y - task) ** 2) / 2 + jnp.vdot(x, y),
    outer_loss=lambda x, y, task, key: jnp.sum((y - 1) ** 2) / 2 + jnp.vdot(x, y),
)  # y_t is linear in x and F quadratic, so that smoothing leaves the gradient as it is
LINEAR = mb.GradientDescent(optax.sgd(0.3, momentum=0.5), HORIZON)


@eqx.filter_jit
def many(estimator: Any, x: Any, keys: Any) -> Any:
    """Directions of one run, summed over its windows, for each of `keys`."""
    task = jnp.ones(1)

    def one(key: Any) -> Any:
        step = lambda carry, k: estimator(x, task, carry, k)[1::-1]
        windows = jax.random.split(key, estimator.solver.steps // estimator.window)
        return jax.lax.scan(step, estimator.init(x, task, key), windows)[1].sum(0)

    return jax.vmap(one)(keys)


def far(found: Any, exact: Any) -> Any:
    """How many standard errors the mean of `found` lies from `exact`."""
    return jnp.abs(found.mean(0) - exact) / (found.std(0) / len(found) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "window"), [(mb.EvolutionStrategies, HORIZON), (mb.PersistentES, HORIZON), (mb.PersistentES, 2)]
)
def test_evolution_strategies_have_the_mean_of_the_smoothed_gradient(kind, window, x64, key):
    x = jnp.array([0.5, -1.0, 2.0])
    whole = mb.Truncated(QUADRATIC, LINEAR, SECOND, HORIZON)
    exact = call(whole, x, jnp.ones(1), whole.init(x, jnp.ones(1), key), key)[0]
    found = many(kind(QUADRATIC, LINEAR, 0.3, window), x, jax.random.split(key, 2_000))
    assert (far(found, exact) < 3).all()
    assert (far(found, 0.8 * exact) > 3).any()


def test_persistent_evolution_strategies_see_past_their_windows(x64, key):
    """On the influence balancing problem, where short windows see the wrong sign."""
    problem, _ = balancing()
    x, late = jnp.array(0.5), lambda t: t > 60
    at = lambda kind, window, *options: kind(problem, Balancing(steps=100), *options, window=window, weights=late)
    exact = many(at(mb.Truncated, 100, SECOND), x, key[None])[0]
    short = many(at(mb.Truncated, 10, SECOND), x, key[None])[0]
    assert exact > 0 > short
    keys = jax.random.split(key, 2_000)
    truncated, persistent = (many(at(kind, 10, 0.1), x, keys) for kind in ESTIMATORS[1:])
    assert far(persistent, exact) < 3
    assert far(truncated, exact) > 30
    assert far(truncated, short) < 3


def test_both_evolution_strategies_are_one_where_the_window_is_the_horizon(x64, key):
    """In the first run and in the second, which knows nothing of the noise of the first."""
    x, batch, found = variable(), tasks(), []
    for kind in ESTIMATORS[1:]:
        estimator = kind(PROBLEM, SOLVER, window=HORIZON)
        first, carry, _ = call(estimator, x, batch, estimator.init(x, batch, key), key)
        found.append((first, call(estimator, x, batch, carry, jax.random.fold_in(key, 1))[0]))
    assert_close(found[0], found[1], 1e-10)
    assert all(float(dot(direction, direction)) > 0 for direction in found[0])


@pytest.mark.parametrize("kind", ESTIMATORS[1:])
def test_a_constant_loss_has_the_direction_zero(kind, key):
    problem = mb.BilevelProblem(PROBLEM.init, inner_loss, lambda x, y, task, key: jnp.array(3.3), PROBLEM.prepare)
    directions, infos, _ = episode(kind(problem, SOLVER, window=3), variable(), tasks(), key)
    assert all((a == 0).all() for a in jax.tree.leaves(directions))
    np.testing.assert_allclose(infos[0].loss, 3 * 3.3, rtol=1e-6)


@pytest.mark.parametrize(("kind", "chunk"), [*zip(ESTIMATORS, (1, 2, 1), strict=True)])
def test_neither_chunks_nor_later_calls_change_anything(kind, chunk, x64, key):
    x, batch, traces = variable(), tasks(), []

    def counted(*given: Any) -> Any:
        traces.append(given)
        return outer_loss(*given)

    problem = mb.BilevelProblem(PROBLEM.init, inner_loss, counted, PROBLEM.prepare)
    whole = episode(kind(problem, SOLVER, window=1), x, batch, key)
    once = len(traces)
    episode(kind(problem, SOLVER, window=1), x, batch, key)
    assert len(traces) == once
    directions, _, carry = episode(kind(problem, SOLVER, window=1, task_chunk=chunk), x, batch, key)
    assert_close(directions, whole[0], 1e-10)
    assert_close(carry.point, whole[2].point, 1e-12)


@pytest.mark.parametrize("estimator", ["truncated", "pes"])
def test_an_optimizer_is_learned_on_tasks_that_hold_nothing(estimator, key):
    family = mb.from_function(lambda task, key: jnp.ones(3), lambda y, task, key: jnp.sum(y**2))
    method = mb.load_method("lstm")(family.subject, steps=4, window=2, units=4, layers=1, estimator=estimator)
    _, history = mb.fit(method, family, optax.sgd(1e-3), key=key, steps=6, meta_batch=3, every=3, progress=False)
    assert all(np.isfinite(row["loss"]) and row["failed"] == 0 for row in history)


@pytest.mark.parametrize(("second_order", "preprocess"), [(True, None), (True, 10.0), (False, None)])
def test_truncated_through_an_lstm_on_a_network_agrees_with_finite_differences(second_order, preprocess, x64, key):
    """In the second window, whose beginning is a constant."""
    family = mb.load_tasks("sinusoid")(shots=5, queries=5)
    learner = mb.regression(mb.MLP(1, (4,), 1, activation="tanh"))
    options = {"steps": 8, "window": 4, "units": 4, "preprocess": preprocess}
    method = mb.load_method("lstm")(learner, second_order=second_order, **options)
    batch = mb.sample_batch(family, key, "train", 2)
    x, estimator = method.init(key), method.estimator
    carry = call(estimator, x, batch, estimator.init(x, batch, key), key)[1]
    direction = call(estimator, x, batch, carry, key)[0]
    along = like(x, key)
    slope = directional(lambda x: call(estimator, x, batch, carry, key)[2].loss.mean(), x, along)
    error = abs(dot(direction, along) - slope) / abs(slope)
    assert error < 1e-6 if second_order else error > 1e-4


def test_runs_restored_from_a_checkpoint_go_on_bit_for_bit(tmp_path, key):
    """From the middle of a run, with noise in its start and its steps."""
    noisy = lambda y, task, key: jnp.sum((y - task + jax.random.normal(key, (3,))) ** 2)
    family = mb.from_function(lambda task, key: jax.random.normal(key, (3,)), noisy, jax.random.normal)
    method = mb.load_method("lstm")(family.subject, steps=6, window=2, units=4, layers=1)
    options: dict[str, Any] = {"key": key, "meta_batch": 2, "every": 1}
    go = lambda steps, state: [*train(method, family, optax.adam(0.01), steps=steps, state=state, **options)][-1][0]
    half = go(5, None)
    save(tmp_path / "half", 5, half, {})
    ends = {"parts": go(7, restore(tmp_path / "half", half).tree), "whole": go(7, None)}
    files = [save(tmp_path / name, 7, state, {}).read_bytes() for name, state in ends.items()]
    assert files[0] == files[1]
    assert half.carry.done.tolist() == [4, 4]
    assert ends["whole"].carry.done.tolist() == [2, 2]


@pytest.mark.parametrize("window", [1, 4, HORIZON])
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_a_window_of_an_unroll_takes_what_comes_before_for_a_constant(window, checkpoint, x64):
    x, task, key = variable(), tasks()[0], jax.random.key(3)

    def loss(x):
        z, y0, k_solve = PROBLEM.begin(x, task, key)
        k_inner, k_outer = jax.random.split(k_solve)
        before, start = HORIZON - window, (y0, SOLVER.init(z, y0))
        if before:
            at, start = jax.lax.stop_gradient((z, start))
            start, _ = SOLVER.path(PROBLEM, at, start, task, k_inner, length=before)
        (y, _), _ = SOLVER.path(PROBLEM, z, start, task, k_inner, start=before, length=window)
        return PROBLEM.objective(z, y, task, k_outer)[0]

    adjoint = mb.Unroll(window=window, checkpoint=checkpoint)
    assert_close(adjoint.hypergradient(PROBLEM, SOLVER, x, task, key)[1], jax.grad(loss)(x), 1e-12)
    if window == HORIZON:
        assert_close(mb.Unroll(window=99).hypergradient(PROBLEM, SOLVER, x, task, key)[1], jax.grad(loss)(x), 1e-12)


def test_a_window_of_no_steps_is_refused():
    with pytest.raises(mb.InputError, match="window = 0"):
        mb.Unroll(window=0)
