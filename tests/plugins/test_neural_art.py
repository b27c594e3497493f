"""Neural art: the photographs, the net of the maps and its weights, and the loss of the pixels."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metabilevel_tasks.feature_nets import FeatureNet, random_net, read_net
from metabilevel_tasks.neural_art import gram
from metabilevel_tasks.photos_data import PHOTOS, unpack

import metabilevel as mb
from metabilevel import InputError, data
from metabilevel.data import DataError


@pytest.fixture
def family(data_files):
    data_files("photos", *(file.filename for file in PHOTOS.files))
    return mb.load_tasks("neural-art")


@pytest.fixture
def photographs(data_files):
    data_files("photos", *(file.filename for file in PHOTOS.files))
    return data.load(PHOTOS)


def saved(path, net: FeatureNet, **changed: np.ndarray):
    """`net` in a file of weights, with some arrays changed; None takes one out."""
    arrays = {}
    for b, block in enumerate(net.blocks, 1):
        for n, layer in enumerate(block, 1):
            arrays[f"conv{b}_{n}_weights"] = np.asarray(layer["weights"]).transpose(0, 3, 1, 2)
            arrays[f"conv{b}_{n}_bias"] = np.asarray(layer["bias"])
    arrays |= changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_the_photographs_are_whole_and_no_two_splits_share_one(family, photographs):
    small, large = family(), family(size=128)
    for tasks, crops in ((small, 24), (large, 6)):
        assert [len(part) // crops for part in (tasks.train, tasks.valid, tasks.test)] == [12, 6, 6]
    number_8 = photographs["landscape"][list(photographs["landscape_number"]).index(8)]
    crop = number_8[128:256, 256:384]  # the last of six
    assert any((np.asarray(one) == crop).all() for one in large.test)
    assert not any((np.asarray(one) == crop).all() for part in (large.train, large.valid) for one in part)
    tiles = {one.tobytes() for one in np.asarray(small.test)}
    assert {crop[:64, :64].tobytes(), crop[64:, 64:].tobytes()} <= tiles


def test_missing_photographs_name_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"kodak_half\.npz is not there, and is published nowhere") as caught:
        data.load(PHOTOS)
    assert "by hand" in str(caught.value)


def test_broken_photographs_are_named(tmp_path):
    paths = tmp_path / "kodak_half.npz", tmp_path / "styles.npz"
    paths[0].write_bytes(b"PK")
    with pytest.raises(DataError, match=r"kodak_half\.npz has no packed pictures"):
        unpack(paths)


def test_each_term_is_zero_where_it_should_be(family, key):
    tasks = family()
    art, task = tasks.subject, tasks.sample(key, "test")
    judge = jax.jit(lambda y: art.judge(y, task, key))
    loss, own = judge(task.content)
    assert own["content"] < 1e-10
    np.testing.assert_allclose(loss, own["style"] + 3 * own["variation"], rtol=1e-6)
    assert judge(art.painting)[1]["style"] < 1e-10
    assert judge(jnp.full_like(art.painting, 0.3))[1]["variation"] < 1e-10
    assert all(term > 0.01 for term in judge(art.init(task, key))[1].values())


def test_a_gram_matrix_is_symmetric_semidefinite_and_forgets_where_things_are(x64, key):
    maps = jax.random.normal(key, (6, 4, 5))
    products = gram(maps)
    np.testing.assert_allclose(products, np.einsum("hwc,hwd->cd", maps, maps) / 24, rtol=1e-12)
    np.testing.assert_array_equal(products, products.T)
    assert np.linalg.eigvalsh(products).min() > -1e-12
    shuffled = jax.random.permutation(key, maps.reshape(24, 5)).reshape(6, 4, 5)
    np.testing.assert_allclose(gram(shuffled), products, rtol=1e-12)


def test_the_gradient_is_that_of_differences(x64, family, key):
    tasks = family()
    art, task = tasks.subject, tasks.sample(key, "train")
    y = art.init(task, key)
    loss = jax.jit(lambda y: art.loss(y, task, key))
    along = jax.random.normal(jax.random.key(1), y.shape)
    h = 1e-6
    difference = (loss(y + h * along) - loss(y - h * along)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(y), along), difference, rtol=1e-5)


def test_maps_are_those_of_plain_convolutions(x64, key):
    net = random_net(3)
    image = jax.random.uniform(key, (8, 8, 3))
    x = (image - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    for number, (block, found) in enumerate(zip(net.blocks, net.maps(image), strict=True)):
        if number:
            x = sum(x[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        layout = ("NHWC", "OHWI", "NHWC")
        x = jax.lax.conv_general_dilated(x[None], block[0]["weights"], (1, 1), "SAME", dimension_numbers=layout)[0]
        x = jnp.maximum(x, 0)
        np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-12)


def test_losses_of_both_sizes_are_comparable_and_the_same_weights_serve_both(family, key):
    starts, x = {}, None
    for size in (64, 128):
        tasks = family(size=size, style="great_wave")
        art, task = tasks.subject, tasks.sample(key, "test")
        starts[size] = jax.jit(lambda y, art=art, task=task: art.terms(y, task))(art.init(task, key))
        method = mb.load_method("lstm")(art, steps=2, window=1)
        x = method.init(key) if x is None else x  # those of the smaller size
        assert jax.eval_shape(method.adapt, x, task, key).shape == (size, size, 3)
    np.testing.assert_allclose(starts[64]["variation"], starts[128]["variation"], rtol=0.05)
    np.testing.assert_allclose(starts[64]["style"], starts[128]["style"], rtol=0.2)


def test_weights_of_ones_own_go_there_and_back(family, key, tmp_path):
    own = family(weights=saved(tmp_path / "own.npz", random_net(5)))
    known = family(seed=5)
    task, y = known.sample(key, "test"), known.subject.painting**2
    for at, other in zip(own.subject.judge(y, task, key), known.subject.judge(y, task, key), strict=True):
        jax.tree.map(np.testing.assert_array_equal, at, other)
    assert "own.npz" in own.subject.protocol
    assert "random He-normal weights, seed 5" in known.subject.protocol


def test_blocks_of_several_convolutions_are_read(tmp_path):
    layer = lambda out, inputs: {"weights": jnp.ones((out, 3, 3, inputs)), "bias": jnp.zeros(out)}
    net = FeatureNet([[layer(5, 3), layer(7, 5)], [layer(4, 7)]])
    found = read_net(Path(saved(tmp_path / "deep.npz", net)))
    jax.tree.map(np.testing.assert_array_equal, found, net)
    first, second = found.maps(jnp.ones((6, 6, 3)))
    assert (first.shape, second.shape) == ((6, 6, 5), (3, 3, 4))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conv2_1_weights": np.ones((32, 3, 3, 16), "f")}, r"'conv2_1_weights' is float32 of shape \[32, 3, 3, 16\]"),
        ({"conv3_1_bias": None}, r"has no array 'conv3_1_bias', of shape \[64\]"),
        ({"conv1_1_weights": None}, r"has no array 'conv1_1_weights', of shape \[out, 3, 3, 3\]"),
        ({"conv1_1_bias": np.full(16, np.nan)}, "finite floating numbers"),
        ({"conv1_1_bias": np.zeros(16, int)}, r"'conv1_1_bias' is int64 of shape \[16\]"),
        ({"conv1_1_bias": np.array([None] * 16)}, r"is no \.npz file of weights"),
    ],
)
def test_weights_that_do_not_fit_are_named(family, tmp_path, changed, message):
    path = saved(tmp_path / "own.npz", random_net(0), **changed)
    with pytest.raises(InputError, match=message) as caught:
        family(weights=path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_weights_is_refused(family, tmp_path):
    (tmp_path / "text.npz").write_text("weights")
    for path in (tmp_path / "text.npz", tmp_path / "absent.npz", tmp_path):
        with pytest.raises(InputError, match=r"is no \.npz file of weights that can be read"):
            family(weights=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"style": "mona_lisa"}, "'style' is 'mona_lisa'"), ({"size": 96}, "'size' is 96"),
     ({"style_factor": -1.0}, "style_factor = -1")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(family, options, message):
    with pytest.raises(InputError, match=message):
        family(**options)
