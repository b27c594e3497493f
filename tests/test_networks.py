"""Networks: the convolution against XLA's own, derivatives of every order, the papers' shapes, and bad sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import directional, dot

from metabilevel import MLP, ConvNet, InputError, R2D2Net, ResNet12
from metabilevel.networks import conv2d, max_pool, normalise

pytestmark = pytest.mark.usefixtures("optimised")  # a compiler may get a convolution wrong

SMALL = {
    "mlp": MLP(6, (5, 4), 3, "tanh"),
    "mlp-bn": MLP(6, (5, 4), 3, "softplus", batch_norm=True),
    "stride-mean": ConvNet((7, 6, 2), 3, filters=4, blocks=2),
    "max-pool-flatten-scale": ConvNet(
        (9, 6, 2), 3, filters=4, blocks=2, down="max-pool", readout="flatten", scale=True
    ),
    "stride-plain": ConvNet((4, 5, 2), 3, filters=2, blocks=2, readout="flatten", batch_norm=False),
    "r2d2": R2D2Net((5, 6, 2), 3, widths=(4, 3)),
    "resnet": ResNet12((3, 4, 2), 3, widths=(4,)),
}
small = pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)


def draw(tree, seed=0):
    """Standard normal numbers in the shapes of `tree` (by numpy: no compilation for each shape)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), tree)


def parameters(network, *leading):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return draw(jax.tree.map(lambda a: jax.ShapeDtypeStruct((*leading, *a.shape), a.dtype), shapes))


def images(network, n=4):
    return draw(np.empty((n, network.in_size) if isinstance(network, MLP) else (n, *network.in_shape)), seed=1)


def loss(network, params, inputs):
    """A smooth function of the outputs in which no example and no output has a special part."""
    outputs = network.head(params["head"], network.body(params["body"], inputs))
    return jnp.sum(jnp.sin(outputs + jnp.arange(outputs.size).reshape(outputs.shape)))


def textbook(weights, inputs, stride):
    dimensions = ("NHWC", "OHWI", "NHWC")
    return jax.lax.conv_general_dilated(inputs, weights, (stride, stride), "SAME", dimension_numbers=dimensions)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "channels"),
    [((8, 8), (3, 3), 2, 1), ((7, 5), (3, 3), 2, 4), ((6, 7), (3, 3), 1, 4), ((1, 2), (4, 2), 3, 2)],
)
def test_conv2d_and_its_derivatives_are_those_of_xla(size, kernel, stride, channels, x64):
    at, v, u = (draw((np.empty((5, *kernel, channels)), np.empty((2, *size, channels))), seed) for seed in range(3))

    def derivatives(conv):
        nonlinear = lambda a: jnp.sum(jnp.sin(conv(*a, stride)))
        forward = jax.jvp(jax.grad(nonlinear), (at,), (v,))
        reverse = jax.grad(lambda a: dot(jax.grad(nonlinear)(a), u))(at)
        return conv(*at, stride), forward, reverse

    ours, theirs = jax.jit(lambda: (derivatives(conv2d), derivatives(textbook)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11), ours, theirs)


@pytest.mark.parametrize(("h", "w"), [(4, 6), (5, 7), (3, 2)])
def test_max_pool_is_the_largest_of_each_square(h, w):
    maps = draw(np.empty((2, h, w, 3)))
    expected = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(maps), expected)


def test_max_pool_shares_out_one_derivative_where_entries_tie():
    derivative = jax.grad(lambda maps: 3 * max_pool(maps).sum())(jnp.ones((1, 4, 5, 1)))
    np.testing.assert_array_equal(derivative[0, :, :, 0].reshape(2, 2, 5).sum(1), [[3, 0, 3, 0, 0]] * 2)


@pytest.mark.parametrize(("h", "w"), [(4, 6), (2, 3), (1, 2)])
def test_overlapping_max_pool_is_the_largest_of_every_square(h, w):
    maps = draw(np.empty((2, h, w, 3)))
    expected = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    np.testing.assert_array_equal(max_pool(maps, stride=1), expected)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_max_pool_keeps_nan(where):
    assert jnp.isnan(max_pool(jnp.arange(4.0).at[where].set(jnp.nan).reshape(1, 2, 2, 1))).all()


@pytest.mark.parametrize(("scale", "batch_norm"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("readout", ["mean", "flatten"])
@pytest.mark.parametrize("down", ["stride", "max-pool"])
def test_conv_net_is_the_textbooks(down, readout, scale, batch_norm, x64):
    network = ConvNet((9, 7, 2), 3, 4, blocks=2, down=down, readout=readout, scale=scale, batch_norm=batch_norm)
    params, inputs = parameters(network), images(network)

    def outputs(params, maps):
        for layer in params["body"]:
            maps = textbook(layer["weights"], maps, 2 if down == "stride" else 1)
            if batch_norm:
                maps = (maps - maps.mean((0, 1, 2))) / jnp.sqrt(maps.var((0, 1, 2)) + 1e-3)
            maps = jnp.maximum(layer.get("scale", 1.0) * maps + layer["bias"], 0)
            if down == "max-pool":
                maps = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        features = maps.mean((1, 2)) if readout == "mean" else maps.reshape(len(maps), -1)
        return features @ params["head"]["weights"] + params["head"]["bias"]

    ours = jax.jit(lambda p, i: network.head(p["head"], network.body(p["body"], i)))(params, inputs)
    np.testing.assert_allclose(ours, jax.jit(outputs)(params, inputs), rtol=1e-12, atol=1e-12)
    assert ("scale" in params["body"][0]) is scale


@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp_is_the_textbooks(batch_norm, x64):
    network = MLP(6, (5, 4), 3, "tanh", batch_norm=batch_norm)
    params, hidden = parameters(network), images(network)
    ours = network.head(params["head"], network.body(params["body"], hidden.reshape(4, 3, 2, 1)))
    for layer in params["body"]:
        hidden = hidden @ layer["weights"]
        if batch_norm:
            hidden = (hidden - hidden.mean(0)) / jnp.sqrt(hidden.var(0) + 1e-3)
        hidden = jnp.tanh(hidden + layer["bias"])
    np.testing.assert_allclose(ours, hidden @ params["head"]["weights"] + params["head"]["bias"], rtol=1e-12)


@small
def test_gradients_are_those_of_finite_differences(network, x64):
    params, inputs = parameters(network), images(network)
    v, u = draw(params, seed=2), draw(params, seed=3)
    value = lambda p: loss(network, p, inputs)
    slope = lambda p: dot(jax.grad(value)(p), u)
    both = lambda p: jnp.stack([value(p), slope(p)])

    @jax.jit
    def derivatives(p):
        forward = jax.jvp(both, (p,), (v,))[1]
        reverse = jnp.stack([dot(jax.grad(f)(p), v) for f in (value, slope)])
        return forward, reverse, directional(both, p, v)

    forward, reverse, expected = derivatives(params)
    np.testing.assert_allclose(forward, expected, rtol=1e-6)
    np.testing.assert_allclose(reverse, expected, rtol=1e-6)


@small
def test_vmap_over_parameters_is_a_loop(network, x64):
    params, inputs = parameters(network, 3), images(network)
    step = jax.value_and_grad(lambda p: loss(network, p, inputs))
    together, one_by_one = jax.jit(lambda p: (jax.vmap(step)(p), jax.lax.map(step, p)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), together, one_by_one)


@small
def test_batch_statistics_are_declared(network):
    body = lambda inputs: network.body(parameters(network)["body"], inputs)
    whole, part = jax.jit(lambda i: (body(i)[:2], body(i[:2])))(images(network))
    assert network.batch_statistics is not np.allclose(whole, part, atol=1e-5)


@small
def test_activations_are_those_of_every_block(network):
    params, inputs = parameters(network)["body"], images(network)
    outputs, features = jax.jit(lambda i: (network.activations(params, i), network.body(params, i)))(inputs)
    assert len(outputs) == len(params)
    assert all(len(output) == len(inputs) for output in outputs)
    last = np.asarray(outputs[-1])
    if isinstance(network, ConvNet) and network.readout == "mean":
        np.testing.assert_allclose(features, last.mean((1, 2)), rtol=1e-6)
    else:
        np.testing.assert_array_equal(features[:, -last[0].size :], last.reshape(len(inputs), -1))


@small
@pytest.mark.parametrize("double", [False, True])
def test_parameters_and_outputs_are_of_the_default_type(network, double, key):
    with jax.enable_x64(double):
        inputs = jnp.zeros(images(network).shape)
        params, outputs = jax.eval_shape(lambda k: ((p := network.init(k)), loss(network, p, inputs)), key)
        assert {a.dtype for a in jax.tree.leaves((params, outputs))} == {jnp.zeros(()).dtype}


@pytest.mark.parametrize("network", [MLP(2, (2,), 2), ConvNet((4, 4, 1), 1, filters=1, blocks=2)], ids=["mlp", "conv"])
def test_layers_start_from_numbers_of_their_own(network, key):
    params = jax.jit(network.init)(key)
    firsts = [float(layer["weights"].ravel()[0]) for layer in (*params["body"], params["head"])]
    assert len(set(firsts)) == len(firsts)
    assert all((layer["bias"] == 0).all() for layer in (*params["body"], params["head"]))


@pytest.mark.parametrize("n", [1, 5])
def test_normalise_is_smooth_at_a_constant_batch(n, x64):
    x, v = jnp.full((n, 1, 1, 2), 3.0), jnp.arange(2.0 * n).reshape(n, 1, 1, 2)
    scalar = lambda x: jnp.sum(normalise(x) * v)
    centred = v - v.mean(0)
    np.testing.assert_array_equal(normalise(x), 0)
    np.testing.assert_allclose(jax.grad(scalar)(x), centred / jnp.sqrt(1e-3), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(jax.jvp(jax.grad(scalar), (x,), (v,))[1], 0, atol=1e-9)
    np.testing.assert_allclose(jax.grad(lambda x: dot(jax.grad(scalar)(x), v))(x), 0, atol=1e-9)


def test_normalise_has_mean_zero_and_variance_one(x64):
    x = 5 + 3 * draw(np.empty((6, 4, 4, 2)))
    np.testing.assert_allclose(normalise(x, eps=0.0).mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(normalise(x, eps=0.0).var((0, 1, 2)), 1, rtol=1e-12)


PAPERS = {
    "Finn 2017, sinusoid": (MLP(1, (40, 40), 1), (1,), 40, 1761),
    "Nichol 2018, sinusoid": (MLP(1, (64, 64), 1, "tanh"), (1,), 64, 4353),
    "Finn 2017, Omniglot by MLP": (MLP(784, (256, 128, 64, 64), 5, batch_norm=True), (28, 28, 1), 64, 246_597),
    "Finn 2017, Omniglot": (ConvNet((28, 28, 1), 5), (28, 28, 1), 64, 111_749),
    "Nichol 2018, Omniglot": (ConvNet((28, 28, 1), 5, readout="flatten", scale=True), (28, 28, 1), 256, 112_965),
    "max-pool, Omniglot": (ConvNet((28, 28, 1), 5, down="max-pool", readout="flatten"), (28, 28, 1), 64, 111_749),
    "Bertinetto 2019, Omniglot": (R2D2Net((28, 28, 1), 5), (28, 28, 1), 3584, 2_620_069),
    "Bertinetto 2019, CIFAR-FS": (R2D2Net((32, 32, 3), 5), (32, 32, 3), 8064, 2_644_197),
    "Bertinetto 2019, miniImageNet": (R2D2Net((84, 84, 3), 5), (84, 84, 3), 72_576, 2_966_757),
    "Lee 2019, CIFAR-FS": (ResNet12((32, 32, 3), 5), (32, 32, 3), 2560, 12_437_125),
    "Lee 2019, miniImageNet": (ResNet12((84, 84, 3), 5), (84, 84, 3), 16_000, 12_504_325),
    "Finn 2017, miniImageNet": (
        ConvNet((84, 84, 3), 5, filters=32, down="max-pool", readout="flatten"), (84, 84, 3), 800, 32_645,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("network", "shape", "features", "size"), PAPERS.values(), ids=PAPERS)
def test_the_papers_networks_have_their_shapes(network, shape, features, size, key):
    def both(key):
        params = network.init(key)
        hidden = network.body(params["body"], jnp.ones((3, *shape)))
        return params, hidden, network.head(params["head"], hidden)

    params, hidden, outputs = jax.eval_shape(both, key)
    assert (hidden.shape, outputs.shape) == ((3, features), (3, network.out_size))
    assert sum(a.size for a in jax.tree.leaves(params)) == size


@pytest.mark.parametrize(("init", "std"), [("fan-in", 0.1), ("glorot-uniform", 0.1), ("normal", 1), ("zeros", 0)])
def test_initial_weights_have_their_spread(init, std, key):
    weights = MLP(100, (), 100, init_weights=init).init(key)["head"]["weights"]
    np.testing.assert_allclose(weights.std(), std, rtol=0.03)


def test_the_truncated_normal_is_cut_at_two_standard_deviations(key):
    weights = MLP(100, (), 100, init_weights="truncated-normal").init(key)["head"]["weights"]
    assert 0.0195 < jnp.abs(weights).max() <= 0.02


@pytest.mark.parametrize("down", ["stride", "max-pool"])
def test_tasks_with_weights_of_their_own_need_no_grouped_convolution(down):
    network = ConvNet((8, 8, 1), 2, filters=2, blocks=2, down=down)
    inputs = images(network)

    def adapted(params):
        step = jax.tree.map(jnp.subtract, params, jax.grad(lambda p: loss(network, p, inputs))(params))
        return loss(network, step, inputs)

    jaxpr = str(jax.make_jaxpr(jax.vmap(jax.grad(adapted)))(parameters(network, 3)))
    assert "conv_general_dilated" not in jaxpr
    assert "dot_general" in jaxpr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(1, (40, 0), 1), "widths = 0"),
        (lambda: MLP(1, (40,), 1, "rleu"), "Did you mean 'relu'"),
        (lambda: MLP(1, (40,), 1, init_weights="glorot"), "init_weights = 'glorot'"),
        (lambda: ConvNet((28, 28, 1), 0), "out_size = 0"),
        (lambda: ConvNet((28, 28, 1), 5, down="pool"), "down = 'pool'"),
        (lambda: ConvNet((28, 28, 1), 5, readout="max"), "readout = 'max'"),
        (lambda: ConvNet((28, 28, 1), 5, blocks=5, down="max-pool"), "nothing is left"),
        (lambda: R2D2Net((15, 28, 1), 5), r"in_shape = \(15, 28, 1\): nothing is left of it after 4 max-pools"),
        (lambda: R2D2Net((28, 28, 1), 5, widths=(64,)), r"widths = \(64,\): features are of the last two"),
        (lambda: R2D2Net((28, 28, 1), 5, dropout=1.0), "dropout = 1.0: a probability"),
        (lambda: ResNet12((28, 15, 1), 5), "nothing is left of it after 4"),
        (lambda: ResNet12((28, 28, 1), 5, widths=()), "widths = 0"),
        (lambda: ResNet12((28, 28, 1), 5, drop_block=-0.1), "drop_block = -0.1: a probability"),
        (lambda: ResNet12((28, 28, 1), 5, block_size=0), "block_size = 0"),
    ],
)
def test_sizes_and_names_that_do_not_exist(make, message):
    with pytest.raises(InputError, match=message):
        make()
