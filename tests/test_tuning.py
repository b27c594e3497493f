"""Tuning by a grid: what is chosen, and what is said of it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import metabilevel as mb
from metabilevel.optimizing import unrolled
from metabilevel.registry import RULES, load
from metabilevel.tuning import START, Search

KEY = jax.random.key(0)
RATES = (0.01, 0.1, 0.2, 0.5)


def family(curvature: float, power: int = 2, traced: list[Any] | None = None) -> mb.TaskDistribution:
    """f(y) = curvature y^power / power from y0 = 1, times a factor that differs from task to task."""

    def loss(y: Any, task: Any, key: Any) -> Any:
        if traced is not None:
            traced.append(y)
        return task * curvature * y**power / power

    factor = lambda key: 2.0 + jax.random.bernoulli(key).astype(float)
    return mb.from_function(lambda task, key: jnp.ones(()), loss, factor)


def descent(tasks: mb.TaskDistribution, steps: int = 1) -> mb.Method:
    return unrolled(load(RULES, "hand-made")(optimizer="sgd"), tasks.subject, steps=steps)


def at(rate: float) -> dict[str, jax.Array]:
    return {"log_rate": jnp.log(rate)}


def test_scores_are_those_of_the_closed_form():
    tasks = family(1.0)
    search = mb.grid_search(descent(tasks), {rate: at(rate) for rate in RATES[::-1]}, tasks, key=KEY, episodes=40)
    assert list(search.scores) == list(RATES)
    factors = jax.vmap(lambda k: tasks.sample(jax.random.split(k)[0], "valid"))(jax.random.split(KEY, 40))
    for rate, score in search.scores.items():
        losses = factors / 2 * (1 - rate * factors) ** 2
        half = 1.96 * losses.std(ddof=1) / math.sqrt(40)
        assert score == pytest.approx((float(losses.mean()), float(half), 40), rel=1e-4)
    assert (search.best, search.interior) == (0.5, False)
    with pytest.raises(mb.InputError, match=r"from 0\.01 to 0\.5 is 0\.5, at its border \(loss .*\): try larger ones"):
        search.require_interior()


def test_the_last_step_counts_and_a_candidate_that_diverges_is_the_worst():
    tasks = family(1.0, power=4)
    search = mb.grid_search(
        descent(tasks, 100), {rate: at(rate) for rate in (0.001, 0.1, 0.3, 30.0)}, tasks, key=KEY, episodes=5, steps=60
    )
    assert [search.diverged(rate) for rate in search.scores] == [False, False, False, True]
    assert search.require_interior().best == 0.3
    rows = search.as_rows()
    assert [(row["number"], row["diverged"]) for row in rows[2:]] == [(0.3, False), (30.0, True)]
    later = mb.grid_search(descent(tasks, 100), {0.3: at(0.3)}, tasks, key=KEY, episodes=5)
    assert later.scores[0.3].mean < search.scores[0.3].mean
    lost = Search(dict.fromkeys((1.0, 30.0), search.scores[30.0]))
    with pytest.raises(mb.InputError, match=r"1, at its border \(all of it diverged\): try smaller"):
        lost.require_interior()


def test_one_compilation_serves_all_candidates():
    counts = []
    for rates in (RATES[:1], RATES):
        traced: list[Any] = []
        tasks = family(1.0, traced=traced)
        before = len(traced)
        mb.grid_search(descent(tasks), {rate: at(rate) for rate in rates}, tasks, key=KEY, episodes=3)
        counts.append(len(traced) - before)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(("curvature", "best"), [(1.0, 0.5), (1e-3, 500.0), (1e5, 5e-6)])
def test_the_grid_grows_until_the_best_is_inside(curvature: float, best: float):
    tasks = family(curvature)
    search = mb.tune(descent(tasks), at, tasks, key=KEY, episodes=20)
    assert search.require_interior().best == best
    numbers = list(search.scores)
    assert numbers == sorted(numbers)
    assert {0.001, 0.002, 0.005, 0.01, 5.0, 10.0} < set(numbers)
    assert (numbers[0], numbers[-1]) == pytest.approx((min(START[0], best * 0.4), max(START[1], best * 2)))


def test_the_grid_does_not_grow_for_ever():
    tasks = family(1e-6)
    search = mb.tune(descent(tasks), at, tasks, key=KEY, episodes=2)
    assert (search.interior, search.best) == (False, 1e5)


def test_no_candidates():
    tasks = family(1.0)
    with pytest.raises(mb.InputError, match="candidates = "):
        mb.grid_search(descent(tasks), {}, tasks, key=KEY)
