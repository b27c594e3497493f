"""Omniglot: the archives and what is made of them, the splits, and the episodes."""

import io
import math
import struct
import subprocess
import sys
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metabilevel_tasks.omniglot import Omniglot, finn, omniglot, vinyals
from metabilevel_tasks.omniglot_data import OMNIGLOT, drawings, pack, quarter_turns, shrink
from PIL import Image

from metabilevel.data import DataError, load
from metabilevel.errors import InputError
from metabilevel.tasks import sample_batch

MEMBER = "images_background/Greek/character01/{:04d}_{:02d}.png"


@pytest.fixture(scope="module")
def bits(data_files) -> np.ndarray:
    """The packed drawings, [1623, 20, 98]."""
    data_files("omniglot", "omniglot28.npz")
    return load(OMNIGLOT)["bits"]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no network: a proxy at which nobody listens."""
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    return tmp_path


def unpacked(bits: np.ndarray, side: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, count=side * side).reshape(*bits.shape[:-1], side, side)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


INK = ~np.eye(105, dtype=bool)


# The archives


@pytest.mark.parametrize("name", ["images_background_small1.zip", "images_background_small2.zip"])
def test_official_archives_are_read_as_they_were_packed(data_files, bits, name):
    small, large = data_files("omniglot", name, "omniglot105.npz")
    original = np.load(large)["bits"]
    count = 0
    for character, drawing, image in drawings(small):
        np.testing.assert_array_equal(np.packbits(image), original[character, drawing])
        np.testing.assert_array_equal(np.packbits(shrink(image)), bits[character, drawing])
        count += 1
    assert count == {"images_background_small1.zip": 2720, "images_background_small2.zip": 3120}[name]


def test_all_drawings_shrink_by_the_nearest_neighbour(data_files, bits):
    (large,) = data_files("omniglot", "omniglot105.npz")
    np.testing.assert_array_equal(shrink(unpacked(np.load(large)["bits"], 105)), unpacked(bits, 28))


def test_missing_drawings_are_counted(data_files):
    small = data_files("omniglot", "images_background_small1.zip", "images_background_small2.zip")
    with pytest.raises(DataError, match=r"small1\.zip and images_background_small2\.zip have 4,840 of the 32,460"):
        pack(tuple(small))


def test_ink_is_one_and_only_drawings_are_read(tmp_path):
    members = {"/etc/passwd.png": b"no", "../../0001_01.png": b"no", "images_background/notes.txt": b"no"}
    path = archive(tmp_path / "a.zip", members | {MEMBER.format(964, 20): png(INK)})
    ((character, drawing, image),) = drawings(path)
    assert (character, drawing) == (963, 19)
    np.testing.assert_array_equal(image, np.eye(105, dtype=bool))
    assert list(tmp_path.iterdir()) == [path]


def bomb() -> bytes:
    """A small file that says it is an image of 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    crc = lambda *parts: struct.pack(">I", zlib.crc32(b"".join(parts)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + n + c + crc(n, c) for n, c in chunks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(png(INK[:28, :28]), r"size \(28, 28\)", id="small"),
        pytest.param(png(INK.astype(np.uint8)), "mode 'L'", id="grey"),
        pytest.param(png(INK)[:60], "", id="truncated"),
        pytest.param(bytes(1 << 20), "1,048,576 bytes", id="large"),
        pytest.param(b"GIF89a", "cannot identify", id="no png"),
        pytest.param(bomb(), "decompression bomb", id="bomb"),
    ],
)
def test_what_is_no_drawing_is_named(tmp_path, content, reason):
    path = archive(tmp_path / "a.zip", {MEMBER.format(7, 3): content})
    with pytest.raises(DataError, match=rf"a\.zip is not an archive .*0007_03\.png.*{reason}"):
        list(drawings(path))


def test_truncated_archives_are_named(tmp_path):
    whole = archive(tmp_path / "a.zip", {MEMBER.format(1, 1): png(INK)}).read_bytes()
    for length in range(0, len(whole), 10):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.zip is not an archive"):
            list(drawings(tmp_path / "cut.zip"))


@pytest.mark.parametrize("numbers", [(0, 1), (1624, 1), (1, 0), (1, 21)])
def test_drawings_out_of_range_are_refused(tmp_path, numbers):
    path = archive(tmp_path / "a.zip", {MEMBER.format(*numbers): png(INK)})
    with pytest.raises(DataError, match=f"drawing {numbers[1]} of a character {numbers[0]}"):
        pack((path,))


# The splits


@pytest.mark.parametrize(("split", "sizes"), [(finn, (1100, 100, 423)), (vinyals, (1028, 172, 423))])
def test_splits_part_the_characters(split, sizes):
    parts = split()
    assert tuple(len(parts[name]) for name in ("train", "valid", "test")) == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(1623))


def test_the_random_split_never_changes():
    assert [finn()[name][:4].tolist() for name in ("train", "valid", "test")] == [
        [1128, 1130, 1294, 198],
        [1455, 508, 1088, 1577],
        [211, 686, 1154, 1079],
    ]


def test_the_alphabet_split_is_the_published_one(data_files):
    (packed,) = data_files("omniglot", "omniglot28.npz")
    file = np.load(packed)
    rows = {f"{a}/{c}": row for row, (a, c) in enumerate(zip(file["alphabet"], file["character"], strict=True))}
    for part, name in {"train": "train", "valid": "val", "test": "test"}.items():
        (listed,) = data_files("omniglot", f"vinyals_split/{name}.txt")
        assert sorted(rows[line] for line in listed.read_text().split()) == vinyals()[part].tolist()


# The episodes


@pytest.fixture(scope="module")
def known(bits) -> dict[bytes, set[tuple[int, int, int]]]:
    """(character, drawing, quarter turns) of every image; a few images are had in more than one way."""
    found: dict[bytes, set[tuple[int, int, int]]] = {}
    for (turn, *rest), content in np.ndenumerate(quarter_turns(bits, 4).view("V98")[..., 0]):
        found.setdefault(content.tobytes(), set()).add((rest[0], rest[1], turn))
    return found


def sources(known, images: jax.Array) -> list[set[tuple[int, int, int]]]:
    pixels = np.asarray(images).astype(np.uint8).reshape(len(images), -1)
    return [known[row.tobytes()] for row in np.packbits(pixels, axis=-1)]


def test_quarter_turns_are_those_of_numpy(bits):
    turned = quarter_turns(bits[:5], 4)
    for turn in range(4):
        np.testing.assert_array_equal(unpacked(turned[turn], 28), np.rot90(unpacked(bits[:5], 28), turn, (-2, -1)))


@pytest.mark.parametrize("part", ["train", "valid", "test"])
@pytest.mark.parametrize("rotate", ["always", "train", "never"])
def test_episodes_are_distinct_drawings_of_distinct_characters(known, key, part, rotate):
    tasks = omniglot(ways=20, shots=2, train_shots=4, queries=3, split="vinyals", rotate=rotate)
    shots = 4 if part == "train" else 2
    episode = eqx.filter_jit(tasks.sample)(key, part)
    assert episode.support.inputs.shape == (20 * shots, 28, 28, 1)
    assert episode.query.inputs.shape == (60, 28, 28, 1)
    assert set(np.unique(episode.support.inputs)) == {0.0, 1.0}
    np.testing.assert_array_equal(episode.support.targets, np.repeat(np.arange(20), shots))
    np.testing.assert_array_equal(episode.query.targets, np.repeat(np.arange(20), 3))

    labels = np.concatenate([episode.support.targets, episode.query.targets])
    found = [*sources(known, episode.support.inputs), *sources(known, episode.query.inputs)]
    classes = []
    for label in range(20):
        mine = [source for source, other in zip(found, labels, strict=True) if other == label]
        ((character, turn),) = set.intersection(*({(c, t) for c, _, t in source} for source in mine))
        assert character in vinyals()[part]
        assert len({min(d for c, d, t in source if (c, t) == (character, turn)) for source in mine}) == shots + 3
        classes.append((character, turn))
    assert len({character for character, _ in classes}) == 20
    turned = rotate == "always" or (rotate == "train" and part == "train")
    assert {turn for _, turn in classes} == ({0, 1, 2, 3} if turned else {0})


def test_characters_drawings_and_turns_are_uniform(known, bits):
    tasks = omniglot(ways=5, shots=1, split="vinyals")
    draws = 1200
    batch = eqx.filter_jit(sample_batch)(tasks, jax.random.key(3), "valid", draws)
    first = sources(known, np.asarray(batch.support.inputs).reshape(-1, 28, 28))
    character, drawing, turn = np.array([min(source) for source in first]).T
    for values, kinds in ((character, 172), (drawing, 20), (turn, 4)):
        counts = np.unique(values, return_counts=True)[1]
        chi2 = ((counts - 5 * draws / kinds) ** 2).sum() / (5 * draws / kinds)
        assert len(counts) == kinds
        assert abs(chi2 - (kinds - 1)) < 5 * math.sqrt(2 * kinds)  # five standard deviations of chi squared
    labels = character.reshape(-1, 5)
    assert abs(np.mean([a < b for row in labels for a, b in pairwise(row)]) - 0.5) < 0.05


def test_a_batch_is_its_tasks(bits, key):
    tasks = omniglot()
    batch = eqx.filter_jit(sample_batch)(tasks, key, "train", 6)
    sample = eqx.filter_jit(tasks.sample)
    for i, own in enumerate(jax.random.split(key, 6)):
        alone = jax.tree.leaves(sample(own, "train"))
        for together, leaf in zip(jax.tree.leaves(batch), alone, strict=True):
            np.testing.assert_array_equal(together[i], leaf)


def test_a_task_of_a_pool_keeps_its_classes_and_changes_its_drawings(known):
    tasks = omniglot(ways=3, shots=2, pool=4)
    batch = eqx.filter_jit(sample_batch)(tasks, jax.random.key(5), "train", 40)
    assert tasks.subject.pool == 4
    assert set(np.unique(batch.id)) == set(range(4))
    kinds = {}
    for number, inputs in zip(np.asarray(batch.id), batch.support.inputs, strict=True):
        found = sources(known, inputs)
        classes = tuple((c, t) for c, _, t in (min(source) for source in found))
        kinds.setdefault(int(number), []).append((classes, inputs.tobytes()))
    assert len({classes for visits in kinds.values() for classes, _ in visits}) == 4
    for visits in kinds.values():
        assert len({classes for classes, _ in visits}) == 1
        assert len({content for _, content in visits}) > len(visits) / 2


@pytest.mark.parametrize("part", ["valid", "test"])
def test_other_tasks_are_in_no_pool(bits, key, part):
    pooled, free = (eqx.filter_jit(omniglot(pool=pool).sample)(key, part) for pool in (4, None))
    assert (int(pooled.id), free.id) == (-1, None)
    np.testing.assert_array_equal(pooled.query.inputs, free.query.inputs)


def test_the_default_floating_type_is_used(bits, key, x64):
    tasks = omniglot()
    episode = jax.eval_shape(lambda k: tasks.sample(k, "test"), key)
    assert episode.support.inputs.dtype == episode.query.inputs.dtype == jnp.float64


@pytest.mark.parametrize(
    ("network", "features"),
    [("conv", 16), ("conv-flatten", 64), ("conv-max-pool", 16), ("mlp", 64), ("r2d2", 3584), ("resnet12", 640)],
)
def test_networks_fit_the_drawings(bits, key, network, features):
    tasks = omniglot(ways=7, network=network, filters=16)
    inputs = jax.eval_shape(lambda: tasks.sample(key, "train").query.inputs)
    params = jax.eval_shape(tasks.subject.init, key)
    assert jax.eval_shape(tasks.subject.network.body, params["body"], inputs).shape == (7, features)
    assert jax.eval_shape(tasks.subject.predict, params, inputs).shape == (7, 7)
    assert tasks.subject.protocol == "transductive"


def test_the_protocol_is_an_option(bits):
    assert omniglot(transductive=False).subject.protocol == "non-transductive"


def test_the_drawings_are_an_argument_of_compiled_code(bits):
    tasks = omniglot()
    assert isinstance(tasks, Omniglot)
    assert any(leaf is tasks.bits for leaf in jax.tree.leaves(tasks))
    assert tasks.bits.nbytes == 4 * 1623 * 20 * 98


# Bad input, before any data are looked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 101}, "ways = 101: at most 100 with split = finn, which has train 1100, valid 100, test 423"),
        ({"ways": 173, "split": "vinyals"}, "ways = 173: at most 172"),
        ({"ways": 1}, "ways = 1: at least 2"),
        ({"train_ways": 1}, "train_ways = 1: at least 2"),
        ({"shots": 0}, "shots = 0: at least 1"),
        ({"train_shots": -1}, "train_shots = -1: at least 1"),
        ({"queries": 0}, "queries = 0: at least 1"),
        ({"filters": 0}, "filters = 0: at least 1"),
        ({"pool": 0}, "pool = 0: at least 1"),
        ({"shots": 11}, "shots = 11 and queries = 11: a character has 20 drawings"),
        ({"shots": 5, "queries": 16}, "shots = 5 and queries = 16: a character has 20 drawings"),
        ({"train_shots": 20}, "train_shots = 20 and queries = 1: a character has 20 drawings"),
    ],
)
def test_bad_options_are_one_clear_line(nowhere, options, message):
    with pytest.raises(InputError) as raised:
        omniglot(**options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, DataError)


def test_options_of_the_wrong_kind_are_named(nowhere):
    """In a process of its own: here, the annotations are enforced beforehand."""
    code = """
from metabilevel_tasks.omniglot import omniglot
for options in ({"split": "fin"}, {"rotate": True}, {"network": "resnet"}):
    try:
        omniglot(**options)
    except ValueError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, said in zip(
        run.stdout.splitlines(), ["split = 'fin'", "rotate = True", "network = 'resnet'"], strict=True
    ):
        assert line.startswith(f"{said}: one of ")


def test_missing_data_name_the_command_that_fetches_them(nowhere):
    with pytest.raises(DataError, match="metabilevel data fetch omniglot"):
        omniglot()


def test_truncated_archives_are_left_as_they_are(nowhere):
    folder = nowhere / "omniglot"
    folder.mkdir()
    path = archive(folder / "images_background.zip", {MEMBER.format(1, 1): png(INK)})
    path.write_bytes(before := path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"images_background\.zip is truncated or altered"):
        omniglot()
    assert list(folder.iterdir()) == [path]
    assert path.read_bytes() == before
