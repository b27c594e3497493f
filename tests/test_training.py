"""The outer loop: reproducible, compiled once, resumable at any step, and stopped by what is not finite."""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel.training import train

OPTIMIZER = optax.adam(1e-2)


def sinusoid_maml(**options):
    tasks = mb.load_tasks("sinusoid")(shots=5, queries=5)
    return mb.load_method("maml")(tasks.subject, learning_rate=0.01, **options), tasks


class Numbers(mb.TaskDistribution):
    """Tasks are numbers; from `bad` on (by the size of the number drawn), they are NaN."""

    subject: None = None
    share: float = 0.0

    def sample(self, key, split):
        u = jax.random.uniform(key)
        return jnp.where(u < self.share, jnp.nan, u)


def number_method(init: float = 1.0, estimator=mb.Nested):
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: (y - t) ** 2 / 2, lambda x, y, t, k: ((y - t) ** 2, {"y": y})
    )
    solver = mb.GradientDescent(optax.sgd(0.5), 1)
    return mb.Method(problem, lambda key: jnp.log(init), estimator(problem, solver), solver)


def test_fit_is_the_hand_written_loop(x64, key):
    method, tasks = sinusoid_maml()
    x, history = mb.fit(method, tasks, OPTIMIZER, key=key, steps=3, meta_batch=4, every=1)
    assert [row["step"] for row in history] == [1, 2, 3]
    p = method.init(jax.random.split(jax.random.fold_in(key, 2**32 - 1), 3)[0])
    opt = OPTIMIZER.init(p)
    for i in range(3):
        k_tasks, _ = jax.random.split(jax.random.fold_in(key, i))
        batch = mb.sample_batch(tasks, k_tasks, "train", 4)

        def outer(p, batch=batch):
            def one(task):
                inner = lambda q: tasks.subject.fit(q, task.support)
                q = jax.tree.map(lambda a, g: a - 0.01 * g, p, jax.grad(inner)(p))
                return tasks.subject.fit(q, task.query)

            return jnp.mean(jax.vmap(one)(batch))

        loss, grad = jax.jit(jax.value_and_grad(outer))(p)
        np.testing.assert_allclose(history[i]["loss"], loss, rtol=1e-10)
        updates, opt = OPTIMIZER.update(grad, opt, p)
        p = optax.apply_updates(p, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), x, p)


def test_the_loop_is_traced_once_whatever_the_stages(key):
    traces = itertools.count()

    class Counted(mb.AbstractEstimator):
        inner: mb.Nested

        def init(self, x, tasks, key):
            return self.inner.init(x, tasks, key)

        def __call__(self, x, tasks, carry, key):
            next(traces)
            return self.inner(x, tasks, carry, key)

    method = number_method(0.02, lambda *a: Counted(mb.Nested(*a)))  # log(0.02) is weakly typed
    mb.fit(method, Numbers(), OPTIMIZER, key=key, steps=500, meta_batch=3, every=77)
    assert next(traces) == 3  # shapes at the start, the loop, the residual of the reports


def test_where_a_run_is_cut_changes_no_bit(key):
    method, tasks = sinusoid_maml()
    go = lambda state=None: list(
        train(method, tasks, OPTIMIZER, key=key, steps=50, meta_batch=3, every=20, state=state)
    )
    rows = lambda stages: [{k: v for k, v in row.items() if k != "seconds"} for _, row in stages if row]
    whole = go()
    cuts = [state for state, _ in whole]
    assert any(int(state.step) % 20 for state in cuts[:-1])  # some lie within a report's window
    for state in cuts:
        resumed = go(state)
        assert eqx.tree_equal(resumed[-1][0], whole[-1][0])
        assert rows(resumed) == [row for row in rows(whole) if row["step"] > int(state.step)]


def test_task_chunks_change_nothing_but_rounding(x64, key):
    fit = lambda chunk: mb.fit(number_method(), Numbers(), OPTIMIZER, key=key, steps=4, meta_batch=5, task_chunk=chunk)[
        0
    ]
    np.testing.assert_allclose([fit(1), fit(2)], fit(5), rtol=1e-12)


def test_a_task_that_is_not_finite_stops_the_run_and_is_named(key):
    with pytest.raises(mb.NonFiniteError, match=r"step \d+: a task's loss or gradient is not finite") as caught:
        mb.fit(number_method(), Numbers(share=0.05), OPTIMIZER, key=key, steps=100, meta_batch=4)
    step = int(str(caught.value).split()[1].rstrip(":"))
    k_tasks = [jax.random.split(jax.random.fold_in(key, i))[0] for i in range(step + 1)]
    bad = [bool(jnp.isnan(mb.sample_batch(Numbers(share=0.05), k, "train", 4)).any()) for k in k_tasks]
    assert bad == [False] * step + [True]
    assert int(caught.value.state.step) <= step
    assert jnp.isfinite(caught.value.state.x)


def test_masked_tasks_are_counted_and_left_out(key):
    x, history = mb.fit(
        number_method(), Numbers(share=0.05), OPTIMIZER, key=key, steps=100, meta_batch=8, on_nonfinite="mask"
    )
    assert 10 < sum(row["failed"] for row in history) < 80
    assert jnp.isfinite(x)
    assert all(np.isfinite(row["loss"]) for row in history)


def test_a_batch_without_a_finite_task_stops_even_a_masking_run(key):
    with pytest.raises(mb.NonFiniteError, match="no task of the batch"):
        mb.fit(number_method(), Numbers(share=1.1), OPTIMIZER, key=key, steps=5, meta_batch=2, on_nonfinite="mask")


def test_an_outer_update_that_overflows_stops_the_run(key):
    with pytest.raises(mb.NonFiniteError, match="an outer update made x infinite"):
        mb.fit(
            number_method(), Numbers(), optax.chain(optax.sgd(1e38), optax.scale(100.0)), key=key, steps=1, meta_batch=2
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "steps = -1"),
        ({"meta_batch": 0}, "meta_batch = 0"),
        ({"meta_batch": -4}, "meta_batch = -4"),
        ({"every": -1}, "every = -1"),
        ({"task_chunk": 0}, "task_chunk = 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite = 'ignore'"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, key):
    with pytest.raises(mb.InputError, match=message):
        mb.fit(number_method(), Numbers(), OPTIMIZER, key=key, **{"steps": 3, "meta_batch": 2, **wrong})


def test_a_metric_that_is_no_scalar_is_named(key):
    method = number_method()
    vector = lambda x, y, t, k: ((y - t) ** 2, {"both": jnp.stack([y, t])})
    problem = dataclasses.replace(method.problem, outer_loss=vector)
    method = mb.Method(problem, method.init, mb.Nested(problem, method.solver), method.solver)
    for call in (
        lambda: mb.fit(method, Numbers(), OPTIMIZER, key=key, steps=1, meta_batch=2),
        lambda: mb.evaluate(method, 0.5, Numbers(), key=key, episodes=2),
    ):
        with pytest.raises(mb.InputError, match=r"'both' has the shape \(2,\)"):
            call()


def test_a_history_says_what_implicit_certificates_say(key):
    """One inner step a task is far from a solution, and sixty are not."""
    tasks = mb.load_tasks("sinusoid")(shots=5)
    for steps, doubtful in ((1, 1.0), (60, 0.0)):
        method = mb.load_method("imaml")(tasks.subject, strength=50.0, learning_rate=0.003, steps=steps)
        history = mb.fit(method, tasks, optax.sgd(1e-6), key=key, steps=1, meta_batch=3)[1]
        assert history[-1]["doubtful"] == doubtful
        assert 0 < history[-1]["linear_residual"] < 1


class Halves(Numbers):
    """Numbers of [0, 1] in training, which are 3 less in validation: what training gains, validation loses."""

    def sample(self, key, split):
        return jax.random.uniform(key) - (3.0 if split == "valid" else 0.0)


def drifting_method():
    """x goes from 1 down to a half, where training tasks lie, and a validation loss has its least value on the way."""
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: (y - t) ** 2, lambda x, y, t, k: (y - jnp.where(t < 0, 0.75, t)) ** 2
    )
    solver = mb.GradientDescent(optax.sgd(0.1), 0)
    return mb.Method(problem, lambda key: jnp.float32(1), mb.Nested(problem, solver), solver)


def test_the_x_of_the_least_validation_loss_is_given_back(key):
    options = {"key": key, "steps": 200, "meta_batch": 8, "every": 10}
    last, plain = mb.fit(drifting_method(), Halves(), optax.sgd(0.01), **options)
    best, history = mb.fit(drifting_method(), Halves(), optax.sgd(0.01), **options, validation=4)
    losses = [row["valid_loss"] for row in history]
    np.testing.assert_allclose(min(losses), (best - 0.75) ** 2, rtol=1e-5)
    assert abs(best - 0.75) < abs(last - 0.75)
    timeless = lambda rows: [{k: v for k, v in row.items() if k not in ("seconds", "valid_loss")} for row in rows]
    assert timeless(history) == timeless(plain)


def test_patience_ends_a_training_and_survives_an_interruption(key):
    go = lambda state=None: list(
        train(
            drifting_method(), Halves(), optax.sgd(0.01), key=key, steps=200, meta_batch=8, every=10, validation=4,
            patience=3, state=state,
        )
    )  # fmt: skip
    whole = go()
    end = whole[-1][0]
    assert int(end.step) == end.chosen_step + 30 < 200
    for state, _ in whole:
        assert eqx.tree_equal(go(state)[-1][0], end)


def test_validation_that_is_not_finite_is_never_the_best(key):
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: y**2, lambda x, y, t, k: jnp.where(t < 0, jnp.nan, (y - t) ** 2)
    )
    solver = mb.GradientDescent(optax.sgd(0.1), 0)
    method = mb.Method(problem, lambda key: jnp.float32(1), mb.Nested(problem, solver), solver)
    x, history = mb.fit(method, Halves(), optax.sgd(0.01), key=key, steps=4, meta_batch=2, every=2, validation=3)
    assert all(np.isnan(row["valid_loss"]) for row in history)
    assert x == 1


@pytest.mark.parametrize(("options", "named"), [({"validation": 0}, "validation = 0"), ({"patience": 2}, "validation")])
def test_wrong_validation_is_refused(key, options, named):
    with pytest.raises(mb.InputError, match=named):
        mb.fit(number_method(), Numbers(), OPTIMIZER, key=key, steps=1, meta_batch=1, **options)
