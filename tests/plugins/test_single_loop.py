"""Single-loop methods: each as a plain NumPy transcription of its paper, and where it leads."""

import numpy as np
import pytest
from metabilevel_single_loop.posing import decaying
from metabilevel_single_loop.saba import SABA
from metabilevel_single_loop.soba import SOBA
from single_loops import BATCH, BLOCKS, DIMENSION, Quadratics, assert_transcribed, reached

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


def test_soba_finds_the_minimum_without_noise(x64):
    quadratics = Quadratics(noise=0.0)
    assert np.abs(quadratics.minimum).max() > 0.1
    np.testing.assert_allclose(reached(SOBA(decaying(0.2)), quadratics, 1000, 0.1), quadratics.minimum, atol=1e-8)


def test_saba_finds_the_minimum_in_spite_of_noise_where_soba_does_not(x64):
    quadratics = Quadratics()
    error = lambda loop: np.abs(reached(loop, quadratics, 3000, 0.05) - quadratics.minimum).max()
    assert error(SABA(decaying(0.1))) < 1e-8 < 1e-3 < error(SOBA(decaying(0.1)))
