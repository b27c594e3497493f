"""The sinusoid family: ranges, splits, and the truth behind each task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metabilevel as mb


def draw(n=2000, split="train", **options):
    return mb.sample_batch(mb.load_tasks("sinusoid")(**options), jax.random.key(0), split, n)


def test_tasks_are_what_finn_et_al_describe():
    tasks = draw()
    for value, low, high in [
        (tasks.truth["amplitude"], 0.1, 5.0),
        (tasks.truth["phase"], 0.0, np.pi),
        (tasks.support.inputs, -5.0, 5.0),
        (tasks.query.inputs, -5.0, 5.0),
    ]:
        assert low <= value.min() < low + 0.02 * (high - low)
        assert high >= value.max() > high - 0.02 * (high - low)
        np.testing.assert_allclose(value.mean(), (low + high) / 2, atol=0.03 * (high - low))
    a, b = (tasks.truth[name][:, None, None] for name in ("amplitude", "phase"))
    np.testing.assert_allclose(tasks.query.targets, a * jnp.sin(tasks.query.inputs - b), rtol=1e-5, atol=1e-5)
    assert tasks.support.inputs.shape == (2000, 10, 1)


def test_ranges_and_sizes_are_options():
    tasks = draw(shots=3, queries=7, min_amplitude=2.0, max_amplitude=2.0, max_phase=0.0)
    np.testing.assert_allclose(tasks.query.targets, 2 * jnp.sin(tasks.query.inputs), rtol=1e-6, atol=1e-6)
    assert (tasks.support.inputs.shape[1], tasks.query.inputs.shape[1]) == (3, 7)


def test_the_grid_is_for_the_test_alone():
    assert draw(3, "train", grid=True).query.inputs.shape[1] == 10
    np.testing.assert_allclose(draw(3, "test", grid=True).query.inputs[1, :, 0], np.linspace(-5, 5, 50), rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"shots": 0}, {"queries": -1}, {"pool": 0}, {"min_amplitude": 3.0, "max_amplitude": 1.0}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(mb.InputError, match=f"{next(iter(wrong))} = "):
        draw(**wrong)


def test_a_task_of_a_pool_keeps_its_sinusoid_and_changes_its_points():
    tasks = draw(400, pool=7)
    assert set(np.unique(tasks.id)) == set(range(7))
    assert mb.load_tasks("sinusoid")(pool=7).subject.pool == 7
    assert draw(4).id is None
    for number in range(7):
        mine = np.flatnonzero(tasks.id == number)
        for value in tasks.truth.values():
            assert len(np.unique(value[mine])) == 1
        assert len(np.unique(tasks.support.inputs[mine, 0, 0])) == len(mine)
    assert len(np.unique(tasks.truth["amplitude"])) == len(np.unique(tasks.truth["phase"])) == 7
    a, b = (tasks.truth[name][:, None, None] for name in ("amplitude", "phase"))
    np.testing.assert_allclose(tasks.query.targets, a * jnp.sin(tasks.query.inputs - b), rtol=1e-5, atol=1e-5)


def test_a_larger_pool_contains_a_smaller_one():
    small, large = draw(100, pool=3), draw(300, pool=12)
    for number in range(3):
        first = lambda tasks, number=number: tasks.truth["phase"][np.flatnonzero(tasks.id == number)[0]]
        assert first(small) == first(large)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_other_tasks_are_in_no_pool(split):
    pooled, free = draw(20, split, pool=3), draw(20, split)
    np.testing.assert_array_equal(pooled.id, -1)
    np.testing.assert_array_equal(pooled.query.targets, free.query.targets)
