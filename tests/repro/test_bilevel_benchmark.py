"""What the bilevel benchmark counts and judges by."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from metabilevel_repro.bilevel_benchmark import METHODS, calls

import metabilevel as mb

BLOCKS = [4, 2]
TOGETHER = {"soba": 1, "saba": 1, "srba": 2}  # points where one evaluation of G gives a gradient and two products


@pytest.mark.parametrize("name", METHODS)
def test_calls_are_those_of_a_step(name, key):
    counted = Counter()

    def loss(part):
        def evaluated(x, y, task, key):
            counted[part] += 1
            return jnp.mean((getattr(task, part).inputs @ y - x.sum()) ** 2) + x @ x

        return evaluated

    data = lambda blocks: mb.Data(jnp.ones((3 * blocks, 2)), jnp.ones(3 * blocks))
    task = mb.Episode(*map(data, BLOCKS))
    problem = mb.BilevelProblem(lambda x, task, key: jnp.ones(2), loss("support"), loss("query"))
    posed = mb.Posed(problem, lambda key: jnp.ones(3), mb.ClosedForm(lambda x, task: jnp.ones(2)))
    options = dict.fromkeys(METHODS[name][1], 3) | ({"terms": 1} if name == "bsa" else {})  # one term has no factor
    method = mb.load_method(name)(posed, batch=3, **options)
    loop, oracles = method.estimator.loop, mb.Oracles(problem, task, method.estimator.minibatches)
    x = jnp.ones(3)
    with jax.disable_jit():
        memory = loop.begin(oracles, x, jnp.ones(2), key)
        counted.clear()
        loop.step(oracles, x, memory, jnp.int32(1), key)
    expected = 8 if name == "srba" else calls(name, options, BLOCKS)  # its average has the full passes in it
    assert counted.total() + 2 * TOGETHER.get(name, 0) == expected


def test_calls_of_srba_have_its_full_passes_in_them():
    assert calls("srba", {}, BLOCKS) == pytest.approx((5 * 8 + 3 * 4 + 2) / 6)


def test_calls_of_bsa_are_a_mean_over_its_random_products():
    assert calls("bsa", {"inner_steps": 10, "terms": 10}, BLOCKS) == 10 + 4.5 + 2
