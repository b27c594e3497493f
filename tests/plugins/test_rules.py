"""The update rules of learned optimizers, all of them by the same properties."""

import dataclasses
from importlib.metadata import entry_points

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from metabilevel_learned_optimizers.adafac_mlp import AdafacMLP
from metabilevel_learned_optimizers.hand_made import HandMade
from metabilevel_learned_optimizers.learned_rate import LearnedRate
from metabilevel_learned_optimizers.lstm import LSTM
from metabilevel_learned_optimizers.mlp_optimizer import MLPOptimizer
from metabilevel_learned_optimizers.rnnprop import RNNprop
from problems import assert_close, directional, dot, like

import metabilevel as mb
from metabilevel.info import norm
from metabilevel.schema import options

OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nag": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99),
    "adam": optax.adam,
}
COORDINATEWISE = [LSTM(), LSTM(preprocess=None), RNNprop(), *(HandMade(name) for name in OPTIMIZERS)]
RULES = [*COORDINATEWISE, LearnedRate(), MLPOptimizer(), AdafacMLP()]
Y = {"kernel": jnp.zeros((2, 3, 5, 4)), "matrix": jnp.zeros((3, 2)), "scalar": jnp.zeros(()), "vector": jnp.zeros(4)}


def each(rules):
    return pytest.mark.parametrize("rule", rules, ids=lambda r: getattr(r, "optimizer", type(r).__name__))


def weights(rule, y=Y):
    return rule.init(y, jax.random.key(1))


def size(tree):
    return sum(a.size for a in jax.tree.leaves(tree))


@eqx.filter_jit
def walk(rule, x, y, gradients):
    """y and the state after a step for each of the gradients, which are stacked."""
    solver = mb.RuleDescent(rule, steps=1)
    step = lambda point, g: (solver.step(x, lambda y: g, *point), None)
    return jax.lax.scan(step, (y, solver.init(x, y)), gradients)[0]


def gradients_of(y, steps=4, seed=2):
    return like(jax.tree.map(lambda a: jnp.zeros((steps, *a.shape), a.dtype), y), jax.random.key(seed))


def recurrent(layers, units, inputs):
    return 4 * units * (inputs + units + 1) + (layers - 1) * 4 * units * (2 * units + 1) + units + 1


def dense(layers, units, inputs):
    return (inputs + 1) * units + (layers - 1) * (units + 1) * units + (units + 1) * 2


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (LSTM(preprocess=None), 5_061),
        (LSTM(), 5_141),
        (LSTM(layers=3, units=7), recurrent(3, 7, 2)),
        (RNNprop(), 6_641),
        (RNNprop(layers=3, units=7), 3 * 7 + recurrent(3, 7, 7)),
        (MLPOptimizer(), 1_830),
        (MLPOptimizer(layers=3, units=7), dense(3, 7, 10 + 11) + 4),
        (AdafacMLP(), 197),
        (AdafacMLP(layers=3, units=7), dense(3, 7, 28 + 11) + 7),
        (HandMade(), 1),
        (LearnedRate(), 4),
    ],
)
def test_number_of_weights(rule, count):
    assert size(weights(rule)) == count


@each(COORDINATEWISE)
def test_coordinates_may_change_places(rule):
    x, y = weights(rule), like(Y, jax.random.key(3))
    order = jax.random.permutation(jax.random.key(4), size(y))
    unravel = jax.flatten_util.ravel_pytree(y)[1]
    permuted = lambda tree: unravel(jax.flatten_util.ravel_pytree(tree)[0][order])
    g = gradients_of(y)
    assert_close(walk(rule, x, permuted(y), jax.vmap(permuted)(g))[0], permuted(walk(rule, x, y, g)[0]), 1e-6)


@each([MLPOptimizer(scale=1.0), AdafacMLP(scale=1.0), LearnedRate()])
def test_rows_and_columns_may_change_places(rule):
    x, y = weights(rule), like(Y, jax.random.key(3))
    moved = lambda tree: {**tree, "matrix": tree["matrix"][..., ::-1, :], "kernel": tree["kernel"][..., ::-1]}
    g = gradients_of(y)
    assert_close(walk(rule, x, moved(y), moved(g))[0], moved(walk(rule, x, y, g)[0]), 1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", [0.003, 0.3])
def test_hand_made_optimizers_are_those_of_optax(name, rate):
    rule, y = HandMade(name, learning_rate=rate), like(Y, jax.random.key(3))
    g = gradients_of(y, steps=5)
    transformation = OPTIMIZERS[name](rate)

    def step(point, g):
        updates, state = transformation.update(g, point[1], point[0])
        return (optax.apply_updates(point[0], updates), state), None

    expected = jax.lax.scan(step, (y, transformation.init(y)), g)[0][0]
    assert_close(walk(rule, weights(rule), y, g)[0], expected, 1e-6)


def test_a_learned_rate_is_descent_with_a_rate_for_each_array():
    y, g = like(Y, jax.random.key(3)), gradients_of(Y, steps=1)
    x = {"log_rates": {name: jnp.log(rate) for name, rate in zip(Y, [0.1, 0.2, 0.3, 0.4], strict=True)}}
    expected = {name: y[name] - jnp.exp(x["log_rates"][name]) * g[name][0] for name in Y}
    assert_close(walk(LearnedRate(), x, y, g)[0], expected, 1e-6)


@pytest.mark.parametrize(("i", "decay"), [(0, 0.9), (1, 0.99), (2, 0.999)])
def test_factors_are_those_of_adafactor(i, decay):
    rule, g = AdafacMLP(), gradients_of(Y)
    averages = walk(rule, weights(rule), Y, g)[1]["averages"]
    adafactor = optax.scale_by_factored_rms(min_dim_size_to_factor=1, decay_rate_fn=lambda step, rate: decay)
    state = jax.lax.scan(lambda s, g: (adafactor.update(g, s, Y)[1], None), adafactor.init(Y), g)[0]
    for name, kept in zip(Y, averages, strict=True):
        factored = Y[name].ndim > 1
        rows, columns = (state.v_row, state.v_col) if factored else (state.v, state.v)
        np.testing.assert_allclose(kept["row"][i].squeeze(), rows[name], rtol=1e-5)
        np.testing.assert_allclose(kept["column"][i].squeeze(), columns[name], rtol=1e-5)


def test_features_by_hand():
    g, y = jnp.array([[0.3, -2.0, 0.1], [1.0, 0.2, -0.4]]), jnp.array([[1.0, 2.0, 3.0], [-1.0, -2.0, 4.0]])
    rule, d = AdafacMLP(), np.array([0.9, 0.99, 0.999])[:, None, None]
    x = weights(rule, y)
    rates = {name: 1 - jnp.asarray(each) for name, each in rule.decays.items()}
    features, _ = rule.observe(rates, g, y, rule.start(x, y)["averages"][0])
    g, y = np.asarray(g, np.float64), np.asarray(y, np.float64)
    m, v = (1 - d) * g, 0.001 * g[None] ** 2
    row, column = (1 - d) * (g**2).mean(1, keepdims=True), (1 - d) * (g**2).mean(0, keepdims=True)
    factored = row * column / row.mean(1, keepdims=True)
    by_hand = [g[None], y[None], m, v, (v + 1e-6) ** -0.5, m * (v + 1e-6) ** -0.5, row, column]
    by_hand += [(row + 1e-8) ** -0.5, (column + 1e-8) ** -0.5, g * factored**-0.5, m * factored**-0.5]
    for found, expected in zip(features, by_hand, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@each([MLPOptimizer(), AdafacMLP()])
def test_a_small_weight_moves_a_decay(rule):
    y, g = jnp.zeros(3), jnp.ones((1, 3))
    x = weights(rule, y)
    for w, decay in [(0.0, 0.9), (0.1, 0.9607295)]:  # sigmoid(logit .9 + 1)
        x["decays"]["momentum"] = x["decays"]["momentum"].at[0].set(w)
        m = walk(rule, x, y, g)[1]["averages"][0]["momentum"][0]
        np.testing.assert_allclose(m, 1 - decay, rtol=1e-5)


@each([RNNprop(), MLPOptimizer(), AdafacMLP()])
def test_steps_are_counted(rule):
    assert walk(rule, weights(rule), Y, gradients_of(Y))[1]["steps"] == 4


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_rnnprop_sees_no_scale_of_the_loss(factor):
    rule, g = RNNprop(), gradients_of(Y)
    x = weights(rule)
    scaled = jax.tree.map(lambda a: factor * a, g)
    assert_close(walk(rule, x, Y, scaled)[0], walk(rule, x, Y, g)[0], 1e-5)


def typed(tree, kind):
    return jax.tree.map(lambda a: a.astype(kind), tree)


@each(RULES)
@pytest.mark.parametrize(("of_x", "of_y"), [("float64", "float64"), ("float32", "float64"), ("float64", "float32")])
def test_types_stay_what_they_are(rule, of_x, of_y, x64):
    x, y = typed(weights(rule), of_x), typed(Y, of_y)
    found = walk(rule, x, y, gradients_of(y))  # a scan: it would refuse a state of another type
    assert {a.dtype.name for a in jax.tree.leaves(found[0])} == {of_y}


@each(RULES)
def test_in_double_precision_nothing_is_rounded_to_single(rule, x64):
    point = (weights(rule), like(typed(Y, float), jax.random.key(3)), gradients_of(typed(Y, float)))
    exact, rounded = walk(rule, *point)[0], walk(rule, *typed(point, "float32"))[0]
    nudged = walk(rule, *jax.tree.map(lambda a: a * (1 + 1e-13), point))[0]
    distance = lambda other: float(norm(jax.tree.map(jnp.subtract, exact, other)))
    assert distance(nudged) < 1e-9 < distance(rounded) < 1e-3


@each(RULES)
def test_a_batch_is_its_members(rule):
    x = weights(rule)
    batch = like(jax.tree.map(lambda a: jnp.zeros((3, *a.shape)), Y), jax.random.key(5))
    g = jax.vmap(gradients_of)(batch)
    g = jax.tree.map(lambda a: a * jnp.arange(1.0, 4).reshape(3, *[1] * (a.ndim - 1)), g)
    together = jax.vmap(lambda y, g: walk(rule, x, y, g)[0])(batch, g)
    member = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    for i in range(3):
        assert_close(member(together, i), walk(rule, x, member(batch, i), member(g, i))[0], 1e-5)


@each(RULES)
def test_at_zero_gradients_all_derivatives_are_finite(rule):
    def end(x, factor):
        zeros = jax.tree.map(lambda a: factor * jnp.zeros((3, *a.shape)), Y)
        return sum(a.sum() for a in jax.tree.leaves(walk(rule, x, Y, zeros)[0]))

    for leaf in jax.tree.leaves(eqx.filter_jit(jax.grad(end, (0, 1)))(weights(rule), 1.0)):
        assert jnp.isfinite(leaf).all()


def valley(scale=1.0):
    """log cosh of A (w - c), and a parabola in b, with random c: smooth functions, each from (w, b) = 0."""
    a = jnp.array([[1.0, 0.3], [-0.2, 0.5]])

    def loss(y, c, key):
        off = jnp.append(y["w"] - c[:2], y["b"] - c[2])
        return jnp.sum(jnp.log(jnp.cosh(scale * (a @ off[:2])))) + off[2] ** 2 / 2

    start = lambda c, key: {"w": jnp.zeros(2), "b": jnp.zeros(())}
    return mb.from_function(start, loss, lambda key: jnp.sign(jax.random.normal(key, (3,))) * jnp.array([1, 2, 3]))


NAMES = ["adafac-mlp", "hand-made", "learned-rate", "lstm", "mlp-optimizer", "rnnprop"]
LARGER = {"adafac-mlp": {"scale": 0.1}, "mlp-optimizer": {"scale": 0.1}}  # than .001, for so few steps


@pytest.mark.parametrize("name", NAMES)
def test_the_direction_is_the_derivative_of_the_losses(name, x64):
    tasks = valley()
    method = mb.load_method(name)(tasks.subject, steps=4, window=4, second_order=True, **LARGER.get(name, {}))
    x, batch, key = (
        method.init(jax.random.key(1)),
        mb.sample_batch(tasks, jax.random.key(2), "train", 2),
        jax.random.key(3),
    )

    @jax.jit
    def estimate(x):
        direction, _, info = method.estimator(x, batch, method.estimator.init(x, batch, key), key)
        return direction, info.loss.mean()

    v = like(x, jax.random.key(5))
    slope = directional(lambda x: estimate(x)[1], x, v, h=1e-6)
    np.testing.assert_allclose(dot(estimate(x)[0], v), slope, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss_of_new_functions(name):
    tasks = valley()
    method = mb.load_method(name)(tasks.subject, steps=10, window=10, **LARGER.get(name, {}))
    x, _ = mb.fit(method, tasks, optax.adam(0.03), key=jax.random.key(0), steps=60, meta_batch=4)
    fresh = mb.sample_batch(tasks, jax.random.key(9), "test", 20)
    score = jax.jit(lambda x: method.score(x, fresh, jax.random.key(1))["loss"])
    assert score(x) < 0.8 * score(method.init(jax.random.key(0)))


@each(RULES)
def test_weights_that_do_not_fit_are_named(rule):
    x = weights(rule)
    paths, structure = jax.tree.flatten_with_path(x)
    for i, (path, leaf) in enumerate(paths):
        wrong = [jnp.zeros((*a.shape, 2)) if i == j else a for j, (_, a) in enumerate(paths)]
        with pytest.raises(mb.InputError) as raised:
            mb.RuleDescent(rule, steps=1).init(jax.tree.unflatten(structure, wrong), Y)
        assert f"x{jax.tree_util.keystr(path)} is of shape {(*leaf.shape, 2)}" in str(raised.value)


def test_learned_rates_of_other_arrays_are_named():
    with pytest.raises(mb.InputError, match=r"x\['log_rates'\]\['w'\] is none"):
        mb.RuleDescent(LearnedRate(), steps=1).init(weights(LearnedRate()), {"w": jnp.zeros(3)})


NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        *[
            (rule, {name: n})
            for rule in (LSTM, RNNprop, MLPOptimizer, AdafacMLP)
            for name in ("layers", "units")
            for n in (0, -1)
        ],
        *[(rule, {"scale": a}) for rule in (LSTM, RNNprop, MLPOptimizer, AdafacMLP) for a in (0.0, -1.0, NAN)],
        *[(rule, {"learning_rate": a}) for rule in (HandMade, LearnedRate) for a in (0.0, -0.1, NAN)],
        *[(LSTM, {"preprocess": a}) for a in (0.0, -1.0, NAN)],
        *[(RNNprop, {"decay": a}) for a in (-0.1, 1.0, NAN)],
    ],
)
def test_wrong_options_are_named_early(rule, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(mb.InputError, match=rf"^{name} = {value!r}: .* wanted\.$"):
        rule(**wrong)


def test_every_rule_is_a_method_that_explains_its_options():
    rules = {point.name: point.load() for point in entry_points(group="metabilevel.rules")}
    assert set(NAMES) <= set(rules)
    for name, rule in rules.items():
        assert issubclass(rule, mb.AbstractRule)
        factory = mb.load_method(name)
        assert {field.name for field in dataclasses.fields(rule)} < set(options(factory))
        assert all(option.help for option in options(factory).values())


@pytest.mark.parametrize(
    "options", [{"estimator": "es", "second_order": True}, {"batch": 3}], ids=["second-order", "batch"]
)
def test_options_that_would_do_nothing_are_refused(options):
    with pytest.raises(mb.InputError, match=next(reversed(options))):
        mb.load_method("lstm")(mb.load_tasks("quadratics")().subject, **options)
