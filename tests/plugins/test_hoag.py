"""HOAG: errors that follow the schedule and vanish in the limit, and steps that grow and shrink as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_implicit.hoag import SCHEDULES

import metabilevel as mb
from metabilevel.storage.checkpoint import restore, save
from metabilevel.training import train

FEATURES = 8
RIDGE = mb.regression(mb.MLP(FEATURES, (), 1, init_weights="zeros"))
hoag = mb.load_method("hoag")


class Ridge(mb.TaskDistribution):
    """One fixed regression, whose last four features say nothing."""

    subject: mb.Learner

    def sample(self, key, split):
        def points(key, n):
            k_inputs, k_noise = jax.random.split(key)
            inputs = jax.random.normal(k_inputs, (n, FEATURES)) * jnp.linspace(0.3, 2.0, FEATURES)
            return mb.Data(inputs, inputs[:, :4].sum(1, keepdims=True) + jax.random.normal(k_noise, (n, 1)))

        support, query = jax.random.split(jax.random.key(0))
        return mb.Episode(points(support, 12), points(query, 200))


def validation_loss(x):
    """F(x, y(x)), with the solution of the normal equations for y(x)."""
    task = Ridge(RIDGE).sample(None, "valid")
    beside_one = lambda data: jnp.concatenate([data.inputs, jnp.ones((len(data.inputs), 1))], 1)
    a, b = beside_one(task.support), task.support.targets
    logs = jnp.append(jnp.broadcast_to(x["head"]["weights"].ravel(), FEATURES), x["head"]["bias"])
    y = jnp.linalg.solve(2 * a.T @ a / len(a) + jnp.diag(jnp.exp(logs)), 2 * a.T @ b / len(a))
    return jnp.mean((beside_one(task.query) @ y - task.query.targets) ** 2)


def begin(key, **options):
    """The compiled step `(x, carry) -> (direction, carry, info)` of the one task, its first x and carry."""
    method = hoag(RIDGE, decay=0.1, **options)
    x, batch = method.init(key), mb.sample_batch(Ridge(RIDGE), key, "train", 1)
    step = jax.jit(lambda x, carry: method.estimator(x, batch, carry, key))
    return step, x, jax.jit(lambda x: method.estimator.init(x, batch, key))(x)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_residuals_keep_to_the_schedule(x64, key, schedule):
    step, x, carry = begin(key, schedule=schedule)
    slack = []
    for k in range(1, 9):
        direction, carry, info = step(x, carry)
        x = jax.tree.map(jnp.subtract, x, direction)
        allowed = {"quadratic": 0.1 / k**2, "cubic": 0.1 / k**3, "exponential": 0.1 * 0.9**k}[schedule]
        reached = info.certificate.inner_residual[0] / carry.residual, info.certificate.linear_residual[0]
        assert max(reached) <= allowed * (1 + 1e-9)
        slack.append(max(reached) / allowed)
    assert max(slack) > 0.1, "it is solved far more exactly than asked for"


@pytest.mark.parametrize("per", ["leaf", "weight"])
def test_the_error_falls_with_k_and_vanishes(x64, key, per):
    step, x, carry = begin(key, per=per, schedule="cubic")
    exact, error = jax.grad(validation_loss)(x), []
    for k in (1, 3, 10, 100, 2000):
        direction, after, _ = step(x, carry._replace(k=jnp.array(k)))
        found = jax.tree.map(lambda a, rate=after.rate: a / rate, direction)
        error.append(float(optax.tree.norm(jax.tree.map(jnp.subtract, found, exact)) / optax.tree.norm(exact)))
    assert error[0] > 1e-3
    assert error[0] > error[2] > error[3] > error[4]
    assert error[4] < 1e-7


def test_the_first_step_moves_x_by_one_and_stays_in_bounds(x64, key):
    step, x, carry = begin(key, per="weight")
    direction, after, _ = step(x, carry)
    np.testing.assert_allclose(optax.tree.norm(direction), np.sqrt(FEATURES + 1), rtol=1e-9)
    np.testing.assert_allclose(after.moved, np.sqrt(FEATURES + 1), rtol=1e-9)
    direction, _, _ = step(x, carry._replace(k=jnp.array(2), rate=jnp.array(1e9)))
    ends = jnp.abs(jnp.concatenate([a.ravel() for a in jax.tree.leaves(jax.tree.map(jnp.subtract, x, direction))]))
    np.testing.assert_allclose(ends, 12.0)


def test_steps_grow_by_a_twentieth_where_the_value_fell_enough_and_halve_elsewhere(x64, key):
    step, x, carry = begin(key, schedule="quadratic")
    k, rate, moved = 7, 0.3, 0.5
    at = lambda value: carry._replace(
        k=jnp.array(k), rate=jnp.array(rate), moved=jnp.array(moved), value=jnp.asarray(value)
    )
    value = step(x, at(0.0))[2].loss[0]
    border = value - 0.1 / k**2 - 0.1 / (k - 1) ** 2 * (1 + moved) + moved**2 / (2 * rate)
    for nearby, factor in {1e-9: 1.05, -1e-9: 0.5}.items():
        np.testing.assert_allclose(step(x, at(border + nearby))[1].rate, factor * rate)


def test_it_finds_the_decay_that_is_best_for_ridge_regression(x64, key):
    method = hoag(RIDGE, per="net", decay=0.1, schedule="quadratic")
    slope = jax.grad(lambda x: validation_loss({"head": {"weights": x, "bias": x}}))
    x, _ = mb.fit(method, Ridge(RIDGE), optax.sgd(1.0), key=key, steps=80, meta_batch=1, progress=False)
    assert abs(slope(x)) < 1e-2 * abs(slope(method.init(key)))


@pytest.mark.parametrize("name", ["hoag", "implicit-hpo"])
def test_a_run_that_goes_on_from_a_file_is_the_uninterrupted_one(name, key, tmp_path):
    """Bit for bit, with step sizes, values and warm weights in the carry, wherever it was cut."""
    method, tasks, sgd = mb.load_method(name)(RIDGE, per="weight", steps=5), Ridge(RIDGE), optax.sgd(1.0)

    def stages(steps, state=None):
        return list(train(method, tasks, sgd, key=key, steps=steps, meta_batch=1, every=3, state=state))

    whole = stages(12)
    for cut in (1, 5):
        save(tmp_path / str(cut), cut, stages(cut)[-1][0], {})
        resumed = stages(12, restore(tmp_path / str(cut), whole[0][0]).tree)
        jax.tree.map(np.testing.assert_array_equal, resumed[-1][0], whole[-1][0])
        # a report at the cut begins another mean: the next but one is that of the uninterrupted run again
        reports = [[row | {"seconds": 0.0} for _, row in part if row and row["step"] > 6] for part in (whole, resumed)]
        assert reports[0] == reports[1]


def test_another_outer_optimizer_is_warned_of(key):
    method = hoag(RIDGE)
    run = lambda: mb.fit(method, Ridge(RIDGE), optax.adam(1e-2), key=key, steps=3, meta_batch=1, progress=False)
    with pytest.warns(UserWarning, match="--outer-optimizer sgd --outer-learning-rate 1"):
        run()


def test_more_than_one_task_is_refused(key):
    with pytest.raises(mb.InputError, match=r"meta_batch = 2: .* 1 is wanted"):
        mb.fit(hoag(RIDGE), Ridge(RIDGE), optax.sgd(1.0), key=key, steps=3, meta_batch=2, progress=False)


@pytest.mark.parametrize("decay", [0.0, -1e-3])
def test_a_decay_without_a_logarithm_is_refused(decay):
    with pytest.raises(mb.InputError, match=r"decay = .*: a positive number"):
        hoag(RIDGE, decay=decay)


@pytest.mark.parametrize("option", ["steps", "iterations"])
def test_no_steps_are_refused(option):
    with pytest.raises(mb.InputError, match=f"{option} = 0: an integer of 1 or more"):
        hoag(RIDGE, **{option: 0})
