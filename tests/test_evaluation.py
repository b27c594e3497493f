"""Scores on fresh tasks, with intervals."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel.evaluation import interval


def setting(**options):
    tasks = mb.load_tasks("sinusoid")(shots=5, queries=5)
    method = mb.load_method("maml")(tasks.subject, learning_rate=0.02, **options)
    return method, method.init(jax.random.key(0)), tasks


def test_each_number_of_steps_is_what_a_method_with_that_many_gives(x64, key):
    method, _, tasks = setting()
    x = method.init(key)
    curve = mb.evaluate(method, x, tasks, key=key, episodes=60, steps=[3, 0, 1])
    assert list(curve) == [0, 1, 3]
    for steps in curve:
        alone = mb.evaluate(setting(steps=steps)[0], x, tasks, key=key, episodes=60)
        np.testing.assert_allclose(curve[steps]["loss"], alone[None]["loss"], rtol=1e-12)


def test_so_it_is_with_momenta_and_minibatches(x64, key):
    def at(steps):
        some = lambda task, key, i: task._replace(support=jax.tree.map(lambda a: jnp.roll(a, i)[:2], task.support))
        method, x, tasks = setting()
        return dataclasses.replace(method, solver=mb.GradientDescent(optax.adam(0.05), steps, some)), x, tasks

    method, x, tasks = at(9)
    curve = mb.evaluate(method, x, tasks, key=key, episodes=4, steps=[4, 2, 4])
    assert list(curve) == [2, 4]
    for steps in curve:
        alone = mb.evaluate(at(steps)[0], x, tasks, key=key, episodes=4)
        np.testing.assert_allclose(curve[steps]["loss"], alone[None]["loss"], rtol=1e-10)


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 10_000)
    mean, ci95, episodes = interval(values)
    assert episodes == 10_000
    assert abs(mean - 3.0) < ci95
    np.testing.assert_allclose(ci95, 1.96 * 2.0 / 100, rtol=0.05)
    assert np.isnan(interval(values[:1]).ci95)


@pytest.mark.parametrize(
    ("mean", "ci95", "text"),
    [
        (0.61843, 0.0678, "0.618 ± 0.068"), (0.5, 0.013, "0.500 ± 0.013"), (41.23, 13.0, "41 ± 13"),
        (1.0, 0.0, "1.000 ± 0.000"), (0.0, 0.0, "0.00 ± 0.00"), (0.61843, float("nan"), "0.6184 ± nan"),
        (float("inf"), float("nan"), "inf ± nan"), (float("nan"), float("nan"), "nan ± nan"),
        (2.0, float("inf"), "2.000 ± inf"), (0.5, 1e-12, "0.500000 ± 0.000000"), (-1234.5, 120.0, "-1234 ± 120"),
        (1.234e-7, 2.1e-8, "(1.23 ± 0.21)e-07"), (3e20, 1.5e21, "(0.3 ± 1.5)e+21"),
        (1e-300, 0.0, "(1.000 ± 0.000)e-300"), (5e-324, 0.0, "(0.000000 ± 0.000000)e-300"),
    ],
)  # fmt: skip
def test_a_mean_and_its_half_width_are_written_with_the_same_decimals(mean, ci95, text):
    assert str(mb.Interval(mean, ci95, 60)) == text


def test_episodes_are_as_many_as_asked_for(key):
    method, x, tasks = setting()
    for episodes in (1, 50, 51):
        assert mb.evaluate(method, x, tasks, key=key, episodes=episodes)[None]["loss"].episodes == episodes


def test_an_episode_that_is_not_finite_shows(key):
    method, x, tasks = setting()
    x = jax.tree.map(lambda a: a.at[0].set(jnp.nan), x)
    assert np.isnan(mb.evaluate(method, x, tasks, key=key, episodes=3)[None]["loss"].mean)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": 0}, "episodes = 0"),
        ({"split": "dev"}, "split = 'dev': one of train, valid, test"),
        ({"steps": [1, -1]}, "steps = -1"),
        ({"task_chunk": -1}, "task_chunk = -1"),
        ({"steps": []}, "numbers of inner steps"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, key):
    method, x, tasks = setting()
    with pytest.raises(mb.InputError, match=message):
        mb.evaluate(method, x, tasks, key=key, **wrong)


def test_a_solver_without_steps_cannot_be_asked_for_them(key):
    tasks = mb.load_tasks("sinusoid")()
    method = mb.load_method("oracle")(tasks.subject)
    assert mb.evaluate(method, {}, tasks, key=key, episodes=5)[None]["loss"].mean < 1e-10
    with pytest.raises(mb.InputError, match="ClosedForm takes no steps"):
        mb.evaluate(method, {}, tasks, key=key, episodes=5, steps=[1])


def test_where_every_draw_is_one_task_it_is_judged_once(key):
    class One(mb.TaskDistribution):
        single: ClassVar[bool] = True
        subject: mb.Learner

        def sample(self, key, split):
            return jax.tree.map(jnp.ones_like, sinusoids.sample(key, split))

    sinusoids = mb.load_tasks("sinusoid")(shots=2)
    method = mb.load_method("union")(sinusoids.subject)
    found = mb.evaluate(method, method.init(key), One(sinusoids.subject), key=key)[None]["loss"]
    assert found.episodes == 1
    assert "±" not in str(found)
