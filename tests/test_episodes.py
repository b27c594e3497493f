"""Few-shot tasks of given arrays: which images they are made of, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metabilevel as mb

# Every pixel of an image says which image it is: class and number within the class. Classes differ in size.
SIZES = {"ant": 5, "bee": 9, "cat": 6, "dog": 7, "eel": 5, "fox": 12, "gnu": 8, "hen": 5, "ibis": 6, "jay": 5}
NAMES = np.array([name for name, size in SIZES.items() for _ in range(size)])
NUMBERS = np.concatenate([np.arange(size) for size in SIZES.values()])
SHUFFLE = np.random.default_rng(0).permutation(len(NAMES))
LABELS = NAMES[SHUFFLE]
CODES = (20 * np.searchsorted(list(SIZES), NAMES) + NUMBERS).astype(np.uint8)[SHUFFLE]
IMAGES = np.broadcast_to(CODES[:, None, None], (len(CODES), 6, 5)).copy()
SPLITS = {"train": ["ant", "bee", "cat", "dog"], "valid": ["eel", "fox", "gnu"], "test": ["hen", "ibis", "jay"]}
SMALL = {"ways": 3, "shots": 1, "train_shots": 2, "queries": 3, "splits": SPLITS}


def tasks(images=IMAGES, labels=LABELS, **options):
    return mb.few_shot(images, labels, **SMALL | options)


def codes(data: mb.Data) -> np.ndarray:
    """The class and the number of every image."""
    assert (data.inputs == data.inputs[:, :1, :1]).all()
    return np.stack(np.divmod(np.rint(255 * np.asarray(data.inputs[:, 0, 0, 0])).astype(int), 20), -1)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_episodes_are_distinct_images_of_distinct_classes_of_the_split(split):
    batch = eqx.filter_jit(mb.sample_batch)(tasks(), jax.random.key(0), split, 200)
    shots = 2 if split == "train" else 1
    assert batch.support.inputs.shape == (200, 3 * shots, 6, 5, 1)
    assert batch.query.inputs.shape == (200, 9, 6, 5, 1)
    found = set()
    for i in range(200):
        support, query = (jax.tree.map(lambda a, i=i: a[i], part) for part in (batch.support, batch.query))
        np.testing.assert_array_equal(support.targets, np.repeat(np.arange(3), shots))
        np.testing.assert_array_equal(query.targets, np.repeat(np.arange(3), 3))
        mine = np.concatenate([codes(support).reshape(3, -1, 2), codes(query).reshape(3, -1, 2)], 1)
        assert all(len({tuple(image) for image in images}) == shots + 3 for images in mine)
        assert (mine[..., 0] == mine[:, :1, 0]).all()
        assert len(set(mine[:, 0, 0])) == 3
        found |= {tuple(image) for images in mine for image in images}
    all_of_them = {(list(SIZES).index(name), i) for name in SPLITS[split] for i in range(SIZES[name])}
    assert found == all_of_them


def test_labels_are_in_random_order():
    batch = mb.sample_batch(tasks(), jax.random.key(1), "test", 300)
    first = [codes(jax.tree.map(lambda a, i=i: a[i], batch.support))[0, 0] for i in range(300)]
    assert all(70 < count < 130 for count in np.unique(first, return_counts=True)[1])


def test_a_task_of_a_pool_keeps_its_classes_and_labels():
    pooled = tasks(pool=3)
    batch = mb.sample_batch(pooled, jax.random.key(1), "train", 40)
    assert (pooled.subject.pool, set(np.unique(batch.id))) == (3, {0, 1, 2})
    for number in range(3):
        visits = [codes(jax.tree.map(lambda a, i=i: a[i], batch.support)) for i in np.flatnonzero(batch.id == number)]
        assert len({v[:, 0].tobytes() for v in visits}) == 1
        assert len({v[:, 1].tobytes() for v in visits}) > 1
    assert (mb.sample_batch(pooled, jax.random.key(1), "test", 4).id == -1).all()
    assert tasks().sample(jax.random.key(1), "train").id is None


def test_classes_are_split_by_fractions_and_a_seed():
    def classes(seed):
        made = mb.few_shot(IMAGES, LABELS, ways=2, shots=1, queries=1, splits=(0.5, 0.2, 0.3), seed=seed)
        parts = {
            split: np.asarray(made.images[made.first[rows], 0, 0, 0]) // 20 for split, rows in made.classes.items()
        }
        assert sorted(np.concatenate(list(parts.values()))) == list(range(10))
        assert [len(part) for part in parts.values()] == [5, 2, 3]
        return {split: tuple(part) for split, part in parts.items()}

    assert classes(0) == classes(0) != classes(1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, bool])
def test_pixels_are_scaled_by_their_type(dtype):
    images = (IMAGES > 90) if dtype is bool else IMAGES.astype(dtype)
    inputs = tasks(images).sample(jax.random.key(0), "test").query.inputs
    scale = 255 if dtype == np.uint8 else 1
    assert set(np.unique(np.rint(inputs * scale))) <= set(np.unique(images).astype(float))
    assert inputs.dtype == jnp.zeros(()).dtype
    assert tasks(images).images.dtype == (np.uint8 if dtype == np.uint8 else np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_are_standardised_over_the_training_classes(dtype, x64):
    rng = np.random.default_rng(1)
    images = rng.integers(0, [100, 200, 1], (len(LABELS), 4, 3, 3)).astype(dtype)
    made = tasks(images, standardise=True)
    known = images[np.isin(LABELS, SPLITS["train"])].astype(float)
    expected = (known - known.mean((0, 1, 2))) / np.maximum(known.std((0, 1, 2)), 1e-9)
    inputs = made.sample(jax.random.key(0), "train").query.inputs
    for image in np.asarray(inputs):
        assert np.abs(expected - image).max((1, 2, 3)).min() < 1e-6


def test_a_channel_axis_lists_and_any_names_will_do(key):
    names = [("class", str(label)) for label in LABELS]
    splits = {split: [("class", name) for name in members] for split, members in SPLITS.items()}
    plain, listed = tasks(), tasks([image[..., None] for image in IMAGES], names, splits=splits)
    for a, b in zip(
        jax.tree.leaves(plain.sample(key, "train")), jax.tree.leaves(listed.sample(key, "train")), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_network_and_the_protocol_are_options(key):
    made = tasks(network=lambda shape, ways: mb.MLP(int(np.prod(shape)), (), ways), transductive=False, note="a note")
    assert made.subject.protocol == "no batch statistics; a note"
    assert tasks(note="240 images a class").subject.protocol == "transductive; 240 images a class"
    assert made.subject.init(key)["head"]["weights"].shape == (30, 3)


def test_meta_training_on_arrays_of_ones_own_learns():
    import optax

    rng = np.random.default_rng(0)
    means = rng.normal(size=(30, 6, 6))
    labels = np.repeat(np.arange(30), 10)
    images = means[labels] + 0.5 * rng.normal(size=(300, 6, 6))
    flat = lambda shape, ways: mb.MLP(36, (32,), ways)
    made = mb.few_shot(images, labels, ways=3, shots=2, queries=5, network=flat)
    method = mb.load_method("maml")(made.subject, learning_rate=0.5)
    x, _ = mb.fit(method, made, optax.adam(1e-2), key=jax.random.key(0), steps=60, meta_batch=8)
    scores = mb.evaluate(method, x, made, key=jax.random.key(1), episodes=100, steps=[0, 1])
    assert scores[0]["accuracy"].mean < 0.5 < 0.75 < scores[1]["accuracy"].mean


def without(array, index, value):
    changed = array.astype(np.float32)
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 1}, "ways = 1: an integer of 2 or more"),
        ({"train_ways": 1}, "train_ways = 1: an integer of 2 or more"),
        ({"queries": 0}, "queries = 0"),
        ({"pool": 0}, "pool = 0"),
        ({"ways": 4}, "ways = 4: valid has 3 of all 10 classes"),
        ({"shots": 3}, "The class 'eel' of valid has 5 images: too few for 3 shots and 3 queries"),
        ({"train_shots": 4}, "The class 'ant' of train has 5 images: too few for 4 shots and 3 queries"),
        ({"labels": LABELS[:-1]}, "There are 68 images and 67 labels"),
        ({"labels": [[0]] * 68}, r"labels\[0\] = \[0\]: the name of a class"),
        ({"images": without(IMAGES, 7, np.nan)}, r"images\[7\] holds NaN or infinity; 1 of 68 images do"),
        ({"images": [*IMAGES[:67], IMAGES[0, 1:]]}, r"images\[0\] is uint8 of shape \(6, 5\), and images\[67\] is"),
        ({"images": [*IMAGES[:67], IMAGES[0] / 2]}, r"images\[67\] is float64"),
        ({"images": IMAGES[:, 0]}, r"shape \(68, 5\): \[n, h, w\]"),
        ({"images": IMAGES.astype(int)}, "images holds int64: uint8"),
        ({"splits": (0.5, 0.5)}, r"splits = \(0.5, 0.5\): three fractions"),
        ({"splits": (0.5, 0.6, 0.1)}, "three fractions that sum to 1"),
        ({"splits": {"training": ["ant"]}}, "splits names 'training': one of train, valid, test"),
        ({"splits": {"train": ["ant", "bee", "cow"]}}, "the class 'cow' in train, and no image"),
        ({"splits": SPLITS | {"test": ["hen", "ant", "jay"]}}, "the class 'ant' twice, in train and in test"),
        ({"splits": {}}, "there are classes in none of them"),
        ({"splits": {"test": SPLITS["test"]}, "standardise": True}, "training classes, and there are none"),
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_refused(change, message):
    with pytest.raises(mb.InputError, match=message):
        tasks(**change)


def test_an_empty_split_is_refused_where_it_is_sampled(key):
    made = tasks(splits={"train": SPLITS["train"], "test": SPLITS["test"]})
    assert made.sample(key, "test").support.inputs.shape == (3, 6, 5, 1)
    with pytest.raises(mb.InputError, match="split = 'valid': it has no classes"):
        made.sample(key, "valid")
