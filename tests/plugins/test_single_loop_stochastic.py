"""Stochastic methods with several oracle calls a step: each as a transcription of its paper, and where it leads."""

from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_single_loop.amigo import AmIGO, amigo
from metabilevel_single_loop.bsa import BSA, bsa
from metabilevel_single_loop.mrbo import MRBO, mrbo
from metabilevel_single_loop.posing import decaying
from metabilevel_single_loop.soba import SOBA
from metabilevel_single_loop.srba import SRBA, srba
from metabilevel_single_loop.stocbio import StocBiO, stocbio
from single_loops import BATCH, BLOCKS, DIMENSION, Quadratics, assert_transcribed, family, reached

import metabilevel as mb

STEPS = 20
INNER, TERMS, SCALE = 3, 4, 0.3


def as_stocbio(q):
    """Ji et al. 2021: algorithm 1, stocBiO's lines, and algorithm 2 for v_Q, backwards through its list of blocks."""
    x, y = np.zeros(2), np.zeros(DIMENSION)
    for t in range(STEPS):
        for _ in range(INNER):
            y = y - 0.2 * (t + 1) ** -0.5 * q.inner_gradients(x, y, q.rows["inner"].popleft())[1]
        f_x, f_y = q.outer_gradients(x, y, q.rows["outer"].popleft())
        r = [f_y]
        for _ in range(TERMS):
            r.append(r[-1] - SCALE * q.products(r[-1], q.rows["inner"].popleft())[0])
        v = SCALE * np.sum(r, 0)
        x = x - 0.1 * (t + 1) ** -0.6 * (f_x - q.products(v, q.rows["inner"].popleft())[1])
        yield x, y


def as_amigo(q):
    """Arbel & Mairal 2022: algorithm 1, with the plain stochastic gradient steps of algorithm 2 for y and z."""
    x, y, z = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    for t in range(STEPS):
        rate = 0.2 * (t + 1) ** -0.5
        for _ in range(INNER):
            y = y - rate * q.inner_gradients(x, y, q.rows["inner"].popleft())[1]
        f_x, f_y = q.outer_gradients(x, y, q.rows["outer"].popleft())
        for _ in range(TERMS):
            z = z - rate * (q.products(z, q.rows["inner"].popleft())[0] + f_y)
        x = x - 0.1 * (t + 1) ** -0.6 * (f_x + q.products(z, q.rows["inner"].popleft())[1])
        yield x, y


def as_bsa(q):
    """Ghadimi & Wang 2018: algorithm 2, and algorithm 3 for the inverse.

    The number p of its factors is that of the inner oracles between the outer ones, without the others of a step.
    """
    first, *between, last = [len(list(calls)) for part, calls in groupby(q.order) if part == "inner"]
    factors = [calls - 1 - INNER for calls in between] + [last - 1]
    assert first == INNER
    assert set(factors) == set(range(TERMS))
    x, y = np.zeros(2), np.zeros(DIMENSION)
    for t, p in enumerate(factors):
        for _ in range(INNER):
            y = y - 0.2 * (t + 1) ** -0.5 * q.inner_gradients(x, y, q.rows["inner"].popleft())[1]
        f_x, f_y = q.outer_gradients(x, y, q.rows["outer"].popleft())
        inverse = TERMS * SCALE * np.eye(DIMENSION)
        for _ in range(p):
            inverse = (np.eye(DIMENSION) - SCALE * q.a[q.rows["inner"].popleft()].mean(0)) @ inverse
        x = x - 0.1 * (t + 1) ** -0.6 * (f_x - q.products(inverse @ f_y, q.rows["inner"].popleft())[1])
        yield x, y


def as_mrbo(q):
    """Yang et al. 2021, algorithm 1: v_k and u_k, with the hypergradient of its equation (3)."""

    def estimate(x, y):
        outer, seen = q.rows["outer"].popleft(), [q.rows["inner"].popleft() for _ in range(TERMS + 2)]
        f_x, f_y = q.outer_gradients(x, y, outer)
        series = product = np.eye(DIMENSION)
        for rows in seen[:TERMS]:
            product = (np.eye(DIMENSION) - SCALE * q.a[rows].mean(0)) @ product
            series = series + product
        v = f_x - q.products(SCALE * series @ f_y, seen[-2])[1]
        return v, q.inner_gradients(x, y, seen[-1])[1], [outer, *seen]

    x, y = np.zeros(2), np.zeros(DIMENSION)
    before = x, y, x, y
    for t in range(STEPS):
        v, u, seen = estimate(x, y)
        old_v, old_u, again = estimate(*before[:2])
        np.testing.assert_array_equal(seen, again)
        if t > 0:
            kept = 1 - 0.7 * (t + 1) ** -1.0
            v, u = v + kept * (before[2] - old_v), u + kept * (before[3] - old_u)
        before = x, y, v, u
        x, y = x - 0.1 * (t + 1) ** -0.6 * v, y - 0.2 * (t + 1) ** -0.5 * u
        yield x, y


def as_srba(q):
    """Dagreou et al. 2023, algorithm 1, without its projection, q = 6."""

    def estimate(u):
        x, y, v = u
        i, j = q.rows["inner"].popleft(), q.rows["outer"].popleft()
        product, cross = q.products(v, i)
        f_x, f_y = q.outer_gradients(x, y, j)
        return np.concatenate([cross + f_x, q.inner_gradients(x, y, i)[1], product + f_y]), (i, j)

    u = before = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    d = np.zeros(2 + 2 * DIMENSION)
    for t in range(STEPS):
        if t % 6 == 0:
            d, seen = estimate(u)
            assert all(len(rows) == BATCH * BLOCKS for rows in seen)
        else:
            (now, seen), (old, again) = estimate(u), estimate(before)
            np.testing.assert_array_equal(seen, again)
            d = d + now - old
        factors = np.repeat([0.1 * (t + 1) ** -0.6, 0.2 * (t + 1) ** -0.5], [2, 2 * DIMENSION])
        before, u = u, tuple(np.split(np.concatenate(u) - factors * d, [2, 2 + DIMENSION]))
        yield u[0], u[1]


def rates():
    """Of y and of x, in the tests of twenty steps."""
    return decaying(0.2, 0.5), decaying(1.0, 0.6)


LOOPS = {
    as_stocbio: lambda: StocBiO(*rates(), INNER, jnp.asarray(SCALE), TERMS),
    as_amigo: lambda: AmIGO(*rates(), INNER, TERMS),
    as_bsa: lambda: BSA(*rates(), INNER, jnp.asarray(SCALE), TERMS),
    as_mrbo: lambda: MRBO(*rates(), decaying(0.7, 1.0), jnp.asarray(SCALE), TERMS),
    as_srba: lambda: SRBA(*rates(), 6),
}


@pytest.mark.parametrize("transcription", LOOPS)
def test_twenty_steps_are_those_of_the_paper(x64, transcription):
    assert_transcribed(LOOPS[transcription](), transcription, STEPS)


def truncated_minimum(q, scale, count):
    """x where dF/dx - (d2G/dx dy) s is zero at y*(x), s being the first `count` terms of the Neumann series."""
    factor = np.eye(DIMENSION) - scale * q.a.mean(0)
    series = scale * sum(np.linalg.matrix_power(factor, i) for i in range(count))

    def direction(x):
        f_x, f_y = q.outer_gradients(x, q.solution(x))
        return f_x - q.b.mean(0) @ series @ f_y

    zero = direction(np.zeros(2))
    return -np.linalg.solve(np.stack([direction(e) - zero for e in np.eye(2)], 1), zero)


def constant(rate):
    """The step sizes `rate` of y and 1 of x."""
    return decaying(rate), decaying(1.0)


@pytest.mark.parametrize(
    "loop",
    [
        lambda: AmIGO(*constant(0.3), 3, 3),
        lambda: StocBiO(*constant(0.3), 3, jnp.asarray(0.5), 80),
        lambda: MRBO(*constant(0.3), decaying(0.5), jnp.asarray(0.5), 80),
        lambda: SRBA(*constant(0.3)),
    ],
    ids=["amigo", "stocbio", "mrbo", "srba"],
)
def test_all_examples_at_once_lead_to_the_minimum(x64, loop):
    quadratics = Quadratics()
    np.testing.assert_allclose(reached(loop(), quadratics, 600, 0.1, batch=None), quadratics.minimum, atol=1e-8)


@pytest.mark.parametrize(
    "loop",
    [
        lambda: StocBiO(*constant(0.3), 3, jnp.asarray(SCALE), TERMS),
        lambda: MRBO(*constant(0.3), decaying(0.5), jnp.asarray(SCALE), TERMS),
    ],
    ids=["stocbio", "mrbo"],
)
def test_a_short_series_leads_to_where_its_own_direction_is_zero(x64, loop):
    quadratics = Quadratics()
    stationary = truncated_minimum(quadratics, SCALE, TERMS + 1)
    assert np.abs(stationary - quadratics.minimum).max() > 0.02
    np.testing.assert_allclose(reached(loop(), quadratics, 600, 0.1, batch=None), stationary, atol=1e-8)


def test_the_random_product_of_bsa_has_the_mean_of_the_truncated_series(x64):
    a, f_y = Quadratics().a.mean(0), np.arange(1.0, 1 + DIMENSION)
    system = BSA(*constant(0.3), INNER, jnp.asarray(SCALE), TERMS).system
    of_key = lambda key: system(lambda r, key: jnp.asarray(a) @ r, jnp.asarray(f_y), None, jnp.int32(0), key)
    drawn = np.asarray(jax.vmap(of_key)(jax.random.split(jax.random.key(0), 4000)))
    factor = np.eye(DIMENSION) - SCALE * a
    powers = np.stack([np.linalg.matrix_power(factor, p) @ f_y for p in range(TERMS)])
    gaps = np.abs(drawn[:, None] + TERMS * SCALE * powers).max(-1)
    assert gaps.min(1).max() < 1e-10  # each is a product of p = 0 ... terms - 1 factors,
    frequencies = np.bincount(gaps.argmin(1), minlength=TERMS) / len(drawn)
    np.testing.assert_allclose(frequencies, 1 / TERMS, atol=0.03)  # p is uniform, within four deviations,
    inverse = np.linalg.solve(a, np.eye(DIMENSION) - np.linalg.matrix_power(factor, TERMS))
    np.testing.assert_allclose((-TERMS * SCALE * powers).mean(0), -inverse @ f_y, atol=1e-10)  # and the mean


@pytest.mark.parametrize(("steps", "exponents"), [(INNER, (0.5, 0.5)), (1, (0.4, 0.6))], ids=["bsa", "ttsa"])
def test_the_square_error_of_bsa_and_ttsa_falls_as_the_slower_of_the_step_sizes(x64, steps, exponents):
    q = Quadratics()
    loop = BSA(decaying(0.3, exponents[0]), decaying(1.0, exponents[1]), steps, jnp.asarray(0.5), 20)
    early, late = (root_mean_square(loop, q, steps, 0.2, q.minimum) for steps in (100, 10_000))
    assert late < early * 100 ** (-min(exponents) / 2)
    assert late < 0.1


def test_mrbo_ends_closer_than_without_its_memory(x64):
    q = Quadratics()
    stationary = truncated_minimum(q, SCALE, 21)
    loop = lambda momentum: MRBO(*constant(0.1), decaying(momentum), jnp.asarray(SCALE), 20)
    with_memory, without = (root_mean_square(loop(momentum), q, 300, 0.1, stationary) for momentum in (0.03, 1.0))
    assert with_memory < without / 2


@pytest.mark.parametrize("period", [None, 20])
def test_srba_finds_the_minimum_in_spite_of_noise_where_soba_does_not(x64, period):
    quadratics = Quadratics()
    error = lambda loop: np.abs(reached(loop, quadratics, 3000, 0.05) - quadratics.minimum).max()
    assert error(SRBA(*constant(0.1), period)) < 1e-8 < 1e-3 < error(SOBA(*constant(0.1)))


def root_mean_square(loop, quadratics, steps, rate, target):
    """The distance of x from `target` after `steps` steps, over 64 runs."""
    oracles = mb.Oracles(quadratics.problem, quadratics.task, mb.Minibatches(BATCH))

    def run(key):
        def step(state, t):
            x, memory = state
            stride = loop.step(oracles, x, memory, t, jax.random.fold_in(key, t))
            return (x - rate * stride.direction, stride.memory), None

        x = jnp.zeros(2)
        begun = loop.begin(oracles, x, jnp.zeros(DIMENSION), key)
        return jax.lax.scan(step, (x, begun), jnp.arange(steps))[0][0]

    x = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 64))
    return np.sqrt(np.mean(np.sum((np.asarray(x) - target) ** 2, -1)))


@pytest.mark.parametrize("factory", [stocbio, amigo, bsa, mrbo, srba])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0: a number above 0"),
        ({"exponent": 1.5}, "exponent = 1.5: a step size falls"),
        ({"outer_exponent": -0.1}, "outer_exponent = -0.1: a step size falls"),
        ({"batch": 0}, "batch = 0: an integer of 1 or more"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_the_common_options_are_looked_at(factory, wrong, said):
    with pytest.raises(mb.InputError, match=said):
        factory(family(Quadratics()).subject, **wrong)


@pytest.mark.parametrize(
    ("factory", "wrong", "said"),
    [
        (stocbio, {"inner_steps": 0}, "inner_steps = 0: an integer of 1 or more"),
        (stocbio, {"terms": 0}, "terms = 0: an integer of 1 or more"),
        (stocbio, {"scale": -1.0}, "scale = -1.0: a number above 0"),
        (amigo, {"inner_steps": 0}, "inner_steps = 0: an integer of 1 or more"),
        (amigo, {"linear_steps": 0}, "linear_steps = 0: an integer of 1 or more"),
        (bsa, {"inner_steps": 0}, "inner_steps = 0: an integer of 1 or more"),
        (bsa, {"terms": 0}, "terms = 0: an integer of 1 or more"),
        (bsa, {"scale": 0.0}, "scale = 0.0: a number above 0"),
        (mrbo, {"terms": 0}, "terms = 0: an integer of 1 or more"),
        (mrbo, {"scale": 0.0}, "scale = 0.0: a number above 0"),
        (mrbo, {"momentum": 0.0}, "momentum = 0.0: the share"),
        (mrbo, {"momentum": 1.1}, "momentum = 1.1: the share"),
        (srba, {"period": 0}, "period = 0: an integer of 1 or more"),
    ],
    ids=lambda case: getattr(case, "__name__", next(iter(case)) if isinstance(case, dict) else ""),
)
def test_the_own_options_of_a_method_are_looked_at(factory, wrong, said):
    with pytest.raises(mb.InputError, match=said):
        factory(family(Quadratics()).subject, **wrong)


@pytest.mark.parametrize("factory", [stocbio, amigo, bsa, mrbo, srba])
def test_one_word_changes_the_method(factory):
    quadratics = Quadratics(noise=0.0)
    method = factory(family(quadratics).subject, objective="decay", learning_rate=0.3, exponent=0.0, batch=BATCH)
    x, _ = mb.fit(method, family(quadratics), optax.sgd(0.1), key=jax.random.key(0), steps=100, meta_batch=1)
    assert np.abs(np.asarray(x) - quadratics.minimum).max() < 0.1
