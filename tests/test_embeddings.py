"""R2D2Net and ResNet12: against the textbook's, and what their regularisers drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import like

from metabilevel import R2D2Net, ResNet12
from metabilevel.embeddings import drop, drop_squares

R2D2 = R2D2Net((17, 16, 2), 3, widths=(4, 3, 5), dropout=0.5)
RESNET = ResNet12((17, 16, 2), 3, widths=(4, 3, 5), drop_block=0.3, block_size=2)
both = pytest.mark.parametrize("network", [R2D2, RESNET], ids=["r2d2", "resnet"])


def drawn(network, key):
    return like(jax.eval_shape(network.init, key), key), jax.random.normal(key, (4, *network.in_shape))


def drawn_shapes(network, key):
    params, inputs = jax.eval_shape(lambda k: drawn(network, k), key)
    return params["body"], inputs


def conv(layer, maps):
    dimensions = ("NHWC", "OHWI", "NHWC")
    maps = jax.lax.conv_general_dilated(maps, layer["weights"], (1, 1), "SAME", dimension_numbers=dimensions)
    maps = (maps - maps.mean((0, 1, 2))) / jnp.sqrt(maps.var((0, 1, 2)) + 1e-3)
    return layer["scale"] * maps + layer["bias"]


def leaky(maps):
    return jnp.where(maps > 0, maps, maps / 10)


def pool(maps, stride=2):
    return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, stride, stride, 1), "VALID")


def flat(*maps):
    return jnp.concatenate([m.reshape(len(m), -1) for m in maps], 1)


def r2d2(body, maps):
    one, two, three = body
    second = leaky(pool(conv(two, leaky(pool(conv(one, maps))))))
    return flat(pool(second, 1), leaky(pool(conv(three, second), 1)))


def resnet(body, maps):
    for block in body:
        one, two, three = block["path"]
        maps = pool(leaky(conv(three, leaky(conv(two, leaky(conv(one, maps))))) + conv(block["shortcut"], maps)))
    return flat(maps)


@pytest.mark.parametrize(("network", "textbook"), [(R2D2, r2d2), (RESNET, resnet)], ids=["r2d2", "resnet"])
def test_they_are_the_textbooks(network, textbook, key, x64):
    params, inputs = drawn(network, key)
    ours, theirs = jax.jit(lambda p, i: (network.body(p, i), textbook(p, i)))(params["body"], inputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
    assert ours.shape == (4, network.features)


@both
def test_regularisers_draw_from_the_key(network, key):
    params, inputs = drawn(network, key)
    body = jax.jit(lambda k: network.body(params["body"], inputs, k))
    first, again, other = (np.asarray(body(jax.random.key(i))) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert 0.1 < np.mean((first == 0) & (other != 0)) < 0.4
    assert np.isfinite(first).all()


@both
def test_without_a_rate_nothing_is_drawn(network, key):
    still = type(network)(network.in_shape, network.out_size, network.widths)
    draws = lambda net: "random" in str(jax.make_jaxpr(net.body)(*drawn_shapes(net, key), key))
    assert (draws(network), draws(still)) == (True, False)


def test_r2d2_drops_from_its_last_two_blocks(key):
    params, inputs = drawn(R2D2, key)
    dropped = [np.mean(a == 0) for a in jax.jit(lambda k: R2D2.activations(params["body"], inputs, k))(key)]
    assert dropped[0] == 0
    np.testing.assert_allclose(dropped[1:], 0.5, atol=0.12)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean(rate, key):
    maps = drop(key, jnp.ones((50, 10, 10, 4)), rate)
    np.testing.assert_allclose(np.unique(maps), [0, 1 / (1 - rate)], rtol=1e-6)
    np.testing.assert_allclose(maps.mean(), 1, atol=0.02)


@pytest.mark.parametrize(("height", "width", "size"), [(9, 7, 3), (6, 6, 1), (4, 2, 5), (3, 3, 3)])
def test_drop_squares_drops_whole_squares_of_the_right_part(height, width, size, key):
    rate, side = 0.08, min(size, height, width)
    maps = np.asarray(drop_squares(key, jnp.ones((200, height, width, 3)), rate, size))
    gone = maps == 0
    covered = np.zeros_like(gone)
    for i in range(height - side + 1):
        for j in range(width - side + 1):
            whole = gone[:, i : i + side, j : j + side].all((1, 2), keepdims=True)
            covered[:, i : i + side, j : j + side] |= whole
    np.testing.assert_array_equal(covered, gone)
    assert rate / 2 < gone.mean() < 1.15 * rate
    np.testing.assert_allclose(maps.mean(), 1, rtol=1e-4)


def test_drop_squares_may_drop_everything(key):
    maps = np.asarray(drop_squares(key, jnp.ones((1, 1, 1, 1)), 0.999, 1))
    np.testing.assert_array_equal(maps, 0)
