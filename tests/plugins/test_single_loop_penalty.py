"""Methods of first derivatives: each as a plain NumPy transcription of its paper, and where it leads."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_single_loop.bda import BDA
from metabilevel_single_loop.bome import BOME
from metabilevel_single_loop.darts import DARTS
from metabilevel_single_loop.descent import difference
from metabilevel_single_loop.f2sa import F2SA
from metabilevel_single_loop.pbgd import PBGD
from metabilevel_single_loop.posing import Decaying, decaying
from metabilevel_single_loop.sama import OPTIMIZERS, SAMA
from metabilevel_single_loop.sama import slope as slope_of_adam
from single_loops import DIMENSION, Quadratics, assert_transcribed, family, reached

import metabilevel as mb

STEPS = 20
NAMES = ("bda", "bome", "darts", "f2sa", "pbgd", "sama")


def as_f2sa(q):
    """Kwon et al. 2023, algorithm 1 with T = 3, gamma_k = .2 (k + 1)^-(1/2), lambda_k = 2 (k + 1)^(1/3) and
    alpha_k = gamma_k / (2 lambda_k)."""
    x, y, z = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    inner, outer = q.rows["inner"].popleft, q.rows["outer"].popleft
    for k in range(STEPS):
        gamma, penalty = 0.2 * (k + 1) ** -0.5, 2 * (k + 1) ** (1 / 3)
        for _ in range(3):
            z = z - gamma * q.inner_gradients(x, z, inner())[1]
        for _ in range(3):
            h_y = q.outer_gradients(x, y, outer())[1] + penalty * q.inner_gradients(x, y, inner())[1]
            y = y - gamma / (2 * penalty) * h_y
        h_x = q.outer_gradients(x, y, outer())[0]
        h_x = h_x + penalty * (q.inner_gradients(x, y, inner())[0] - q.inner_gradients(x, z, inner())[0])
        x = x - 0.1 * (k + 1) ** -0.6 * h_x
        yield x, y


def as_pbgd(q):
    """Shen & Chen 2023, algorithm 1 with T_k = 2, beta = .2, gamma = 5, alpha = beta / gamma for y and .1 / gamma for x
    and omega going on from where it stood."""
    x, y, omega = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    inner, outer = q.rows["inner"].popleft, q.rows["outer"].popleft
    for _ in range(STEPS):
        for _ in range(2):
            omega = omega - 0.2 * q.inner_gradients(x, omega, inner())[1]
        f_x, f_y = q.outer_gradients(x, y, outer())
        (g_x, g_y), (v_x, _) = q.inner_gradients(x, y, inner()), q.inner_gradients(x, omega, inner())
        x, y = x - 0.1 / 5 * (f_x + 5 * (g_x - v_x)), y - 0.2 / 5 * (f_y + 5 * g_y)
        yield x, y


def as_bome(q):
    """Ye et al. 2022, algorithm 1 with T = 3, alpha = .3, eta = .5 and the step sizes .2 and .1 of y and x."""
    x, y = np.zeros(2), np.zeros(DIMENSION)
    inner, outer = q.rows["inner"].popleft, q.rows["outer"].popleft
    for _ in range(STEPS):
        ahead = y
        for _ in range(3):
            ahead = ahead - 0.3 * q.inner_gradients(x, ahead, inner())[1]
        f = np.concatenate(q.outer_gradients(x, y, outer()))
        (g_x, g_y), (v_x, _) = q.inner_gradients(x, y, inner()), q.inner_gradients(x, ahead, inner())
        gap = np.concatenate([g_x - v_x, g_y])
        phi = 0.5 * gap @ gap
        step = f + max((phi - f @ gap) / (gap @ gap), 0) * gap
        x, y = x - 0.1 * step[:2], y - 0.2 * step[2:]
        yield x, y


def as_bda(q):
    """Liu et al. 2020, K = 4 steps with s_u = s_l = .2 and alpha_k = .5 / k from where y stood; dy_K/dx by forward
    accumulation."""
    x, y = np.zeros(2), np.zeros(DIMENSION)
    inner, outer = q.rows["inner"].popleft, q.rows["outer"].popleft
    for _ in range(STEPS):
        jacobian = np.zeros((DIMENSION, 2))
        for k in range(1, 5):
            i, j, share = inner(), outer(), 0.5 / k
            _, f_y = q.outer_gradients(x, y, j)
            _, g_y = q.inner_gradients(x, y, i)
            a, b, d = q.a[i].mean(0), q.b[i].mean(0), q.d[j].mean(0)
            slope = share * (jacobian + d.T) + (1 - share) * (a @ jacobian + b.T)
            y, jacobian = y - 0.2 * (share * f_y + (1 - share) * g_y), jacobian - 0.2 * slope
        f_x, f_y = q.outer_gradients(x, y, outer())
        x = x - 0.1 * (f_x + jacobian.T @ f_y)
        yield x, y


def product(q, x, y, v, i):
    """Liu, Simonyan & Yang 2019, equation (8)."""
    epsilon = 0.01 / np.linalg.norm(v)
    return (q.inner_gradients(x, y + epsilon * v, i)[0] - q.inner_gradients(x, y - epsilon * v, i)[0]) / (2 * epsilon)


def as_darts(q):
    """Liu, Simonyan & Yang 2019, algorithm 1 from its second line, and equation (7) with xi = .2; momentum .5 and
    weight decay .1, as SGD of PyTorch has them."""
    x, y, momentum = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION)
    inner, outer = q.rows["inner"].popleft, q.rows["outer"].popleft
    for _ in range(STEPS):
        momentum = 0.5 * momentum + q.inner_gradients(x, y, inner())[1] + 0.1 * y
        y = y - 0.2 * momentum
        i = inner()
        ahead = y - 0.2 * (0.5 * momentum + q.inner_gradients(x, y, i)[1] + 0.1 * y)
        f_x, f_y = q.outer_gradients(x, ahead, outer())
        assert (inner() == i).all()
        assert (inner() == i).all()
        x = x - 0.1 * (f_x - 0.2 * product(q, x, y, f_y, i))
        yield x, y


def as_first_order_darts(q):
    """The same with xi = 0, and without momentum and weight decay."""
    x, y = np.zeros(2), np.zeros(DIMENSION)
    for _ in range(STEPS):
        y = y - 0.2 * q.inner_gradients(x, y, q.rows["inner"].popleft())[1]
        x = x - 0.1 * q.outer_gradients(x, y, q.rows["outer"].popleft())[0]
        yield x, y


def as_sama(q):
    """Choe et al. 2023 with Adam: v = du/dg dF/dy with the derivative of the appendix, here with the corrections of
    Adam's bias, and the product by finite differences along v."""
    x, y, m, s = np.zeros(2), np.zeros(DIMENSION), np.zeros(DIMENSION), np.zeros(DIMENSION)
    for t in range(1, STEPS + 1):
        i = q.rows["inner"].popleft()
        _, g = q.inner_gradients(x, y, i)
        before = m, s
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        y = y - 0.02 * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        f_x, f_y = q.outer_gradients(x, y, q.rows["outer"].popleft())
        derivative = (0.1 * 0.999 * before[1] - 0.9 * 0.001 * g * before[0]) / (np.sqrt(s) + 1e-8) ** 3
        v = 0.02 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * derivative * f_y
        mixed = product(q, x, y, v, i) if v.any() else np.zeros(2)
        for _ in range(2):
            assert (q.rows["inner"].popleft() == i).all()
        x = x - 0.1 * (f_x - mixed)
        yield x, y


# the loops, made in a test's own precision
CONSTANT = lambda rate: (decaying(rate), decaying(1.0))
f2sa = lambda penalty, growth, rates, steps: F2SA(*rates, Decaying(jnp.asarray(penalty), jnp.asarray(-growth)), steps)
pbgd = lambda penalty, rates, steps: PBGD(*rates, jnp.asarray(penalty), steps)
bome = lambda barrier, inner_rate, rates, steps: BOME(*rates, jnp.asarray(barrier), jnp.asarray(inner_rate), steps)
bda = lambda aggregation, rates, steps: BDA(*rates, jnp.asarray(aggregation), steps)
darts = lambda rates, momentum=0.0, decay=0.0, first_order=False: DARTS(
    *rates, jnp.asarray(momentum), jnp.asarray(decay), first_order
)
sama = lambda name, rates: SAMA(*rates, OPTIMIZERS[name])


@pytest.mark.parametrize(
    ("loop", "transcription"),
    [
        (lambda: f2sa(2.0, 1 / 3, (decaying(0.2, 0.5), decaying(1.0, 0.6)), 3), as_f2sa),
        (lambda: pbgd(5.0, CONSTANT(0.2), 2), as_pbgd),
        (lambda: bome(0.5, 0.3, CONSTANT(0.2), 3), as_bome),
        (lambda: bda(0.5, CONSTANT(0.2), 4), as_bda),
        (lambda: darts(CONSTANT(0.2), 0.5, 0.1), as_darts),
        (lambda: darts(CONSTANT(0.2), first_order=True), as_first_order_darts),
        (lambda: sama("adam", CONSTANT(0.02)), as_sama),
    ],
    ids=lambda case: case.__name__.strip("<>"),
)
def test_twenty_steps_are_those_of_the_paper(x64, loop, transcription):
    assert_transcribed(loop(), transcription, STEPS)


def zero(direction):
    """x where an affine direction vanishes."""
    at_zero = direction(np.zeros(2))
    return -np.linalg.solve(np.stack([direction(e) - at_zero for e in np.eye(2)], 1), at_zero)


def penalised(q, penalty):
    """x at the minimum of F + penalty (G - min G)."""

    def direction(x):
        g_y, f_y = q.inner_gradients(x, np.zeros(DIMENSION))[1], q.outer_gradients(x, np.zeros(DIMENSION))[1]
        y = -np.linalg.solve(np.eye(DIMENSION) + penalty * q.a.mean(0), f_y + penalty * g_y)
        rise = q.inner_gradients(x, y)[0] - q.inner_gradients(x, q.solution(x))[0]
        return q.outer_gradients(x, y)[0] + penalty * rise

    return zero(direction)


@pytest.mark.parametrize("name", ["f2sa", "pbgd"])
def test_a_penalty_finds_its_minimum_whose_distance_falls_as_one_over_it(x64, name):
    quadratics = Quadratics(noise=0.0)
    distances = []
    for penalty in (8.0, 16.0, 32.0):
        if name == "f2sa":
            x = reached(f2sa(penalty, 0.0, CONSTANT(0.5), 10), quadratics, 600, 0.1, None)
        else:
            x = reached(pbgd(penalty, CONSTANT(0.5), 1), quadratics, 20_000, 0.2, None)
        np.testing.assert_allclose(x, penalised(quadratics, penalty), atol=1e-8)
        distances.append(np.abs(x - quadratics.minimum).max())
    for far, near in itertools.pairwise(distances):
        assert 1.9 < far / near < 2.1


def test_f2sa_finds_the_minimum_by_a_growing_penalty(x64):
    quadratics = Quadratics(noise=0.0)
    loop = f2sa(1.0, 1 / 3, (decaying(0.5), decaying(1.0, 1 / 3)), 10)
    error = lambda steps: np.abs(reached(loop, quadratics, steps, 0.1, None) - quadratics.minimum).max()
    assert 1.8 < error(500) / error(4000) < 2.2  # eight times the steps, twice the penalty


def test_bome_finds_a_kkt_point_by_falling_steps_and_swings_around_it_by_constant_ones(x64):
    quadratics = Quadratics(noise=0.0)

    def slope(rate, exponent, steps):
        loop = bome(0.5, 0.5, (decaying(rate, exponent), decaying(1.0, exponent)), 40)
        return np.linalg.norm(quadratics.hypergradient(reached(loop, quadratics, steps, rate, None)))

    constant = slope(0.05, 0.0, 3000)
    assert slope(0.05, 0.0, 6000) > 0.9 * constant > 1e-2
    assert slope(0.0125, 0.0, 6000) < constant / 2
    assert slope(0.05, 0.5, 40_000) < 1e-3


def test_bome_descends_the_outer_loss_alone_where_that_lowers_the_gap_fast_enough(x64):
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.ones(2),
        inner_loss=lambda x, y, task, key: jnp.sum((y - x) ** 2),
        outer_loss=lambda x, y, task, key: jnp.sum((y - x) ** 4),
    )
    oracles, x, key = mb.Oracles(problem, None), jnp.zeros(2), jax.random.key(0)
    for barrier, slope in ((1.0, -4.0), (4.0, -8.0)):  # <grad F, grad q> = 2 |grad q|^2 for z = x
        loop = bome(barrier, 0.5, CONSTANT(0.1), 1)
        stride = loop.step(oracles, x, loop.begin(oracles, x, jnp.ones(2), key), jnp.int32(0), key)
        np.testing.assert_allclose(stride.direction, slope)


def test_bda_finds_the_fixed_point_of_its_own_steps_and_nears_the_minimum_as_one_over_their_number(x64):
    quadratics = Quadratics(noise=0.0)
    a, b, d = (m.mean(0) for m in (quadratics.a, quadratics.b, quadratics.d))

    def fixed(steps):
        zeros, unit = np.zeros(2), np.eye(DIMENSION)
        f_y, g_y = (gradients(zeros, np.zeros(DIMENSION))[1] for gradients in (
            quadratics.outer_gradients, quadratics.inner_gradients,
        ))  # fmt: skip
        of_y, of_x, rest = unit, np.zeros((DIMENSION, 2)), np.zeros(DIMENSION)  # y_K = of_y y + of_x x + rest
        for k in range(1, steps + 1):
            share = 0.5 / k
            contraction = unit - 0.5 * (share * unit + (1 - share) * a)
            of_y, of_x, rest = contraction @ of_y, contraction @ of_x, contraction @ rest
            of_x, rest = of_x - 0.5 * (share * d.T + (1 - share) * b.T), rest - 0.5 * (share * f_y + (1 - share) * g_y)

        def direction(x):
            f_x, f_y = quadratics.outer_gradients(x, np.linalg.solve(unit - of_y, of_x @ x + rest))
            return f_x + of_x.T @ f_y

        return zero(direction)

    distances = []
    for steps in (20, 40, 80):
        x = reached(bda(0.5, CONSTANT(0.5), steps), quadratics, 400, 0.1, None)
        np.testing.assert_allclose(x, fixed(steps), atol=1e-8)
        distances.append(np.abs(x - quadratics.minimum).max())
    for far, near in itertools.pairwise(distances):
        assert 1.9 < far / near < 2.3


def test_bda_lets_the_outer_loss_choose_among_the_minima_of_the_inner_one(x64):
    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(2),
        inner_loss=lambda x, y, task, key: (y[0] - x) ** 2 / 2,
        outer_loss=lambda x, y, task, key: (y[0] - 1) ** 2 + (y[1] - x) ** 2,
    )
    oracles, key = mb.Oracles(problem, None), jax.random.key(0)

    def solved(loop):
        def step(t, state):
            stride = loop.step(oracles, state[0], state[1], t, key)
            return state[0] - 0.1 * stride.direction, stride.memory

        x = jnp.asarray(0.0)
        return jax.lax.fori_loop(0, 2000, step, (x, loop.begin(oracles, x, jnp.zeros(2), key)))

    x, (y,) = solved(bda(0.5, CONSTANT(0.5), 40))
    np.testing.assert_allclose([x, *y], 1, atol=1e-6)
    x, (y,) = solved(bda(0.0, CONSTANT(0.5), 40))
    np.testing.assert_allclose([x, *y], [0.5, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("loop", "rate"),
    [
        (lambda: darts(CONSTANT(0.2), 0.5), 0.2),
        (lambda: darts(CONSTANT(0.2), first_order=True), 0.0),
        (lambda: sama("sgd", CONSTANT(0.2)), 0.2),
    ],
    ids=["darts", "first-order", "sama"],
)
def test_one_step_methods_end_where_their_rate_stands_for_the_inverse_hessian(x64, loop, rate):
    quadratics = Quadratics(noise=0.0)

    def direction(x):
        f_x, f_y = quadratics.outer_gradients(x, quadratics.solution(x))
        return f_x - rate * quadratics.b.mean(0) @ f_y

    x = reached(loop(), quadratics, 1000, 0.1, None)
    np.testing.assert_allclose(x, zero(direction), atol=1e-8)
    assert np.linalg.norm(quadratics.hypergradient(x)) > 0.1


WAVES = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(3),
    inner_loss=lambda x, y, task, key: jnp.sum(x * jnp.sin(y)) + y @ y,
    outer_loss=lambda x, y, task, key: jnp.sum(jnp.cos(y - x)) + y @ x,
)
X, Y = np.array([0.3, -0.8, 1.1]), np.array([0.5, 1.2, -0.4])


def test_the_error_of_a_difference_falls_as_the_square_of_its_radius(x64):
    oracles, v, at = mb.Oracles(WAVES, None), jnp.array([1.0, -2.0, 0.5]), mb.Sample(None, jax.random.key(0))
    x, y = jnp.asarray(X), jnp.asarray(Y)
    exact = oracles.inner_products(x, y, v, at)[2]
    error = lambda radius: jnp.abs(difference(oracles, x, y, v, at, radius) - exact).max()
    assert 3.9 < error(0.1) / error(0.05) < 4.1
    assert error(0.01) < 1e-4
    assert jnp.all(difference(oracles, x, y, jnp.zeros(3), at) == 0)


def test_darts_follows_the_derivative_of_its_step_ahead(x64):
    oracles, key, x = mb.Oracles(WAVES, None), jax.random.key(0), jnp.asarray(X)
    loop = darts(CONSTANT(0.2))
    stride = loop.step(oracles, x, loop.begin(oracles, x, jnp.asarray(Y), key), jnp.int32(0), key)

    def ahead(x):
        y = stride.memory.y
        y = y - 0.2 * jax.grad(WAVES.inner_loss, 1)(x, y, None, key)
        return WAVES.outer_loss(x, y, None, key)

    np.testing.assert_allclose(stride.direction, jax.grad(ahead)(x), atol=1e-5)
    assert np.abs(stride.direction - jax.grad(WAVES.outer_loss)(x, stride.memory.y, None, key)).max() > 0.1


def test_the_slope_of_adam_is_its_derivative_and_zero_without_gradients(x64):
    adam = OPTIMIZERS["adam"]
    state = adam.init(jnp.zeros(4))
    for gradient in jax.random.normal(jax.random.key(0), (5, 4)).at[:, 3].set(0):
        exact = jax.jacfwd(lambda g, state=state: adam.update(g, state)[0])(gradient)
        slope = slope_of_adam(gradient, state)
        np.testing.assert_allclose(slope[:3], jnp.diag(exact)[:3], rtol=1e-5, atol=1e-6)
        assert slope[3] == 0
        _, state = adam.update(gradient, state)


STATIONARY = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(2),
    inner_loss=lambda x, y, task, key: jnp.sum((y - x) ** 2),
    outer_loss=lambda x, y, task, key: jnp.sum(x**2) + jnp.sum(y**2),
)


@pytest.mark.parametrize(
    "loop",
    [
        f2sa(2.0, 0.0, CONSTANT(0.1), 2),
        pbgd(2.0, CONSTANT(0.1), 2),
        bome(0.5, 0.1, CONSTANT(0.1), 2),
        bda(0.5, CONSTANT(0.1), 2),
        darts(CONSTANT(0.1)),
        sama("adam", CONSTANT(0.1)),
        sama("sgd", CONSTANT(0.1)),
    ],
    ids=lambda loop: type(loop).__name__,
)
def test_nothing_moves_where_all_gradients_are_zero(loop):
    oracles, x, key = mb.Oracles(STATIONARY, None), jnp.zeros(2), jax.random.key(0)
    memory = loop.begin(oracles, x, jnp.zeros(2), key)
    for t in range(2):
        direction, _, memory = loop.step(oracles, x, memory, jnp.int32(t), key)
        assert jnp.all(direction == 0)
        assert jnp.all(memory.y == 0)


@pytest.mark.parametrize("batch", [4, None])
@pytest.mark.parametrize("name", NAMES)
def test_one_word_changes_the_method(name, batch):
    tasks = family(Quadratics())
    method = mb.load_method(name)(tasks.subject, learning_rate=0.1, exponent=0.5, outer_exponent=0.5, batch=batch)
    x, _ = mb.fit(method, tasks, optax.sgd(0.1), key=jax.random.key(0), steps=3, meta_batch=1)
    assert np.all(np.isfinite(x))
    assert np.abs(x).max() > 0


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        *((name, "learning_rate", 0.0, "learning_rate = 0.0: a number above 0") for name in NAMES),
        *((name, "exponent", 1.5, "exponent = 1.5: a step size falls") for name in NAMES),
        *((name, "outer_exponent", -0.5, "outer_exponent = -0.5: a step size falls") for name in NAMES),
        *((name, "inner_steps", 0, "inner_steps = 0: an integer of 1") for name in ("bda", "bome", "f2sa", "pbgd")),
        *((name, "penalty", 0.0, "penalty = 0.0: a number above 0") for name in ("f2sa", "pbgd")),
        ("f2sa", "growth", -1.0, "growth = -1.0: a number of 0 or more"),
        ("bome", "barrier", 0.0, "barrier = 0.0: a number above 0"),
        ("bome", "inner_learning_rate", -1.0, "inner_learning_rate = -1.0: a number above 0"),
        ("bda", "aggregation", 1.5, "aggregation = 1.5: a share"),
        ("darts", "momentum", 1.0, "momentum = 1.0: 0 or more"),
        ("darts", "weight_decay", -1.0, "weight_decay = -1.0: a number of 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(name, option, value, message):
    with pytest.raises(mb.InputError, match=message):
        mb.load_method(name)(family(Quadratics()).subject, **{option: value})
