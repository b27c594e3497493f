"""Single-loop methods: each as a plain NumPy transcription of its paper, and where it leads."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_single_loop.bda import BDA
from metabilevel_single_loop.f2sa import F2SA
from metabilevel_single_loop.posing import decaying
from metabilevel_single_loop.saba import SABA
from metabilevel_single_loop.soba import SOBA
from single_loops import BATCH, BLOCKS, DIMENSION, Quadratics, assert_transcribed, reached

import metabilevel as mb

STEPS = 20


def as_soba(q):
    """Dagreou et al. 2022, algorithm 1 with the directions of SOBA, equations (8) to (10)."""
    x, y, v = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    for t in range(STEPS):
        i, j = q.rows["inner"].popleft(), q.rows["outer"].popleft()
        _, gradient = q.inner_gradients(x, y, i)
        product, cross = q.products(v, i)
        f_x, f_y = q.outer_gradients(x, y, j)
        rate = 0.2 * (t + 1) ** -0.5
        x, y, v = x - 0.1 * (t + 1) ** -0.6 * (cross + f_x), y - rate * gradient, v - rate * (product + f_y)
        yield x, y


def as_saba(q):
    """The same, algorithm 1 with the directions of SABA, equation (11): five tables, zero at first."""
    x, y, v = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    tables = [np.zeros((BLOCKS, size)) for size in (DIMENSION, DIMENSION, 2, 2, DIMENSION)]
    for _ in range(STEPS):
        i, j = q.rows["inner"].popleft(), q.rows["outer"].popleft()
        fresh = [q.inner_gradients(x, y, i)[1], *q.products(v, i), *q.outer_gradients(x, y, j)]
        directions = []
        for table, new, rows in zip(tables, fresh, (i, i, i, j, j), strict=True):
            block = rows[0] // BATCH
            directions.append(new - table[block] + table.mean(0))
            table[block] = new
        gradient, product, cross, f_x, f_y = directions
        x, y, v = x - 0.1 * (cross + f_x), y - 0.2 * gradient, v - 0.2 * (product + f_y)
        yield x, y


@pytest.mark.parametrize(
    ("loop", "transcription"),
    [
        (lambda: SOBA(decaying(0.2, 0.5), decaying(1.0, 0.6)), as_soba),
        (lambda: SABA(decaying(0.2)), as_saba),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_twenty_steps_are_those_of_the_paper(x64, loop, transcription):
    assert_transcribed(loop(), transcription, STEPS)  # made here, in double precision


def test_what_cannot_be_is_refused_where_a_loop_is_made():
    with pytest.raises(mb.InputError, match="budget = nan"):
        SABA(0.1, budget=float("nan"))
    for made in (lambda n: F2SA(0.1, 1.0, 1.0, n), lambda n: BDA(0.1, 1.0, jnp.ones(()), n)):
        with pytest.raises(mb.InputError, match="inner_steps = 0"):
            made(0)


@pytest.mark.parametrize("objective", ["decay", "proximal"])
def test_each_task_of_a_pool_has_a_memory_and_tasks_without_end_are_refused(objective):
    sinusoids, common = mb.load_tasks("sinusoid"), {"key": jax.random.key(0), "steps": 1, "meta_batch": 1}
    made = lambda tasks: mb.load_method("soba")(tasks.subject, objective=objective, batch=None)
    assert made(sinusoids(pool=3)).estimator.slots == 3
    with pytest.raises(mb.InputError, match="one memory serves one task, and every draw"):
        mb.fit(made(sinusoids()), sinusoids(), optax.sgd(0.1), **common)


METHODS = ["SOBA", "SABA", "StocBiO", "AmIGO", "BSA", "MRBO", "SRBA", "F2SA", "BOME", "PBGD", "BDA", "DARTS", "SAMA"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_word_in_solve(name):
    method = getattr(importlib.import_module(f"metabilevel_single_loop.{name.lower()}"), name)
    quadratics, start = Quadratics(), jnp.zeros(2)
    found = mb.solve(
        quadratics.problem, start, quadratics.task, solver=method(0.05), minibatches=mb.Minibatches(BATCH),
        key=jax.random.key(0), optimizer=optax.sgd(0.05), steps=30,
    )  # fmt: skip
    solution = lambda x: jnp.asarray(quadratics.solution(x), float)
    value = lambda x: quadratics.problem.objective(x, solution(x), quadratics.task, jax.random.key(0))[0]
    assert value(found.x) < value(start)


def test_soba_finds_the_minimum_without_noise(x64):
    quadratics = Quadratics(noise=0.0)
    assert np.abs(quadratics.minimum).max() > 0.1
    np.testing.assert_allclose(reached(SOBA(decaying(0.2)), quadratics, 1000, 0.1), quadratics.minimum, atol=1e-8)


def test_saba_finds_the_minimum_in_spite_of_noise_where_soba_does_not(x64):
    quadratics = Quadratics()
    error = lambda loop: np.abs(reached(loop, quadratics, 3000, 0.05) - quadratics.minimum).max()
    assert error(SABA(decaying(0.1))) < 1e-8 < 1e-3 < error(SOBA(decaying(0.1)))
