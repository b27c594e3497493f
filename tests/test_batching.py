"""Many tasks: one by one, in chunks or all at once, and with one of them broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close

from metabilevel.batching import CHUNK_BYTES, fitting_chunk, map_tasks, task_gradient

N = 7


def loss(x, task, key, *carried):
    noise = jax.random.normal(key, (3,))
    return jnp.sum(jnp.sqrt(x * task) * (1 + noise)), (task.sum(), *carried)


gradient = jax.value_and_grad(loss, has_aux=True)


def batch(key):
    return jnp.arange(1.0, 4.0), jax.random.uniform(key, (N, 3)) + 0.5


together = pytest.mark.parametrize("whole", [None, loss], ids=["each", "whole"])


@together
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100, None])
def test_the_mean_gradient_is_that_of_a_loop(chunk, whole, x64, key):
    x, tasks = batch(key)
    extra = jnp.arange(float(N))
    direction, losses, (sums, carried), finite = task_gradient(gradient, x, tasks, key, extra, chunk=chunk, loss=whole)
    keys = jax.random.split(key, N)
    each = [gradient(x, t, k, e) for t, k, e in zip(tasks, keys, extra, strict=True)]
    assert_close(direction, sum(g for _, g in each) / N, 1e-14)
    np.testing.assert_allclose(losses, [v for (v, _), _ in each], rtol=1e-14)
    np.testing.assert_allclose(sums, tasks.sum(1), rtol=1e-14)
    np.testing.assert_array_equal(carried, extra)
    assert finite.all()


@together
@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("poison", [-1.0, 0.0, np.nan], ids=["nan-loss", "infinite-gradient", "nan-task"])
def test_a_broken_task_is_left_out(poison, chunk, whole, x64, key):
    x, tasks = batch(key)
    direction, _, _, finite = task_gradient(gradient, x, tasks.at[4].set(poison), key, chunk=chunk, loss=whole)
    keys, good = jax.random.split(key, N), [0, 1, 2, 3, 5, 6]
    assert finite.tolist() == [i in good for i in range(N)]
    assert_close(direction, sum(jax.grad(loss, has_aux=True)(x, tasks[i], keys[i])[0] for i in good) / 6, 1e-14)


def test_without_a_finite_task_the_direction_is_zero(key):
    x, tasks = batch(key)
    direction, _, _, finite = task_gradient(gradient, x, -tasks, key)
    assert not finite.any()
    np.testing.assert_array_equal(direction, 0)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_map_tasks_is_vmap(chunk, key):
    tasks = jax.random.normal(key, (N, 3))
    np.testing.assert_allclose(map_tasks(jnp.multiply, 3.0, tasks, chunk=chunk), 3 * tasks, rtol=1e-6)


def test_the_chunk_keeps_the_largest_temporary_in_bounds():
    outer = lambda a: jnp.sum(a[:, None] * a[None, :])
    tasks = jax.ShapeDtypeStruct((1000, 512), jnp.float32)
    assert fitting_chunk(outer, (tasks,)) == CHUNK_BYTES // (512 * 512 * 4)
    assert fitting_chunk(jnp.sum, (tasks,)) == 1000
    assert fitting_chunk(outer, (jax.ShapeDtypeStruct((3, 4096), jnp.float32),)) == 1
    inside = lambda a: jax.lax.scan(lambda c, _: (c, outer(a)), 0.0, length=2)
    assert fitting_chunk(inside, (tasks,)) == fitting_chunk(outer, (tasks,))
