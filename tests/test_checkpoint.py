"""A checkpoint comes back bit for bit, or not at all."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metabilevel.errors import CheckpointError
from metabilevel.storage.checkpoint import checkpoints, restore, save


class State(NamedTuple):
    x: Any
    optimizer: Any
    key: Any
    rest: Any


def state(seed: int) -> State:
    """One leaf of each kind; other seeds, other values."""
    key = jax.random.key(seed)
    x = {"w": jax.random.normal(key, (2, 3)), "half": jnp.full(3, seed + 0.1, jnp.bfloat16), "none": jnp.zeros((0, 2))}
    rest = {
        "numpy": np.array([seed, -0.0, np.inf, np.nan]),
        "scalar": np.float64(seed + 0.1),
        "flags": jnp.array([True, False]),
        "count": 10**30 + seed,
        "rate": 0.1 + seed,
        "nan": float("nan"),
        "on": seed == 0,
        "off": seed != 0,
        "nothing": None,
    }
    keys = (key, jax.random.split(jax.random.key(seed, impl="rbg"), 3))
    return State(x, optax.adam(0.1).init(x), keys, rest)


def bits(tree: Any) -> list[Any]:
    """Each leaf as type, dtype and bytes."""

    def of(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return str(leaf.dtype), np.asarray(jax.random.key_data(leaf)).tobytes()
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return type(leaf), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
        return type(leaf), repr(leaf)

    return [of(leaf) for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)]


def test_bits_come_back(tmp_path: Path):
    path = save(tmp_path, 12, state(0), {"config": "abc", "loss": float("inf")})
    assert path.name == "00000012.ckpt"
    step, tree, metadata = restore(tmp_path, state(1))
    assert (step, metadata) == (12, {"config": "abc", "loss": float("inf")})
    assert bits(tree) == bits(state(0)) != bits(state(1))
    assert jax.tree.structure(tree) == jax.tree.structure(state(0))
    assert jax.random.normal(tree.key[0]) == jax.random.normal(jax.random.key(0))


def test_double_precision_comes_back(tmp_path: Path):
    with jax.enable_x64(True):
        x = jnp.array([1 / 3, 1e300])
        save(tmp_path, 1, x, {})
        assert bits(restore(tmp_path, jnp.zeros(2)).tree) == bits(x)
    with pytest.raises(CheckpointError, match=r"\(root\) of float64\[2\], where \(root\) of float32\[2\] is wanted"):
        restore(tmp_path, jnp.zeros(2))


def test_newest_two_are_kept(tmp_path: Path):
    for step in (9, 10, 99_999_999, 100_000_000):
        save(tmp_path, step, {"a": step}, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["99999999.ckpt", "100000000.ckpt"]
    assert restore(tmp_path, {"a": 0}).tree == {"a": 100_000_000}


def test_later_steps_of_an_abandoned_future_go(tmp_path: Path):
    for step in (10, 20, 15):
        save(tmp_path, step, step, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["00000010.ckpt", "00000015.ckpt"]


def test_every_flipped_bit_is_found(tmp_path: Path):
    tree = {"a": np.arange(3.0), "b": 5}
    content = bytearray(save(tmp_path, 2, tree, {"note": "x"}).read_bytes())
    newest = tmp_path / "00000002.ckpt"
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        newest.write_bytes(content)
        content[place] ^= 1 << place % 8
        with pytest.warns(UserWarning, match="00000002.ckpt is damaged"), pytest.raises(CheckpointError):
            restore(tmp_path, tree)
    newest.write_bytes(content)
    assert restore(tmp_path, tree).step == 2


@pytest.mark.parametrize("length", [0, 10, 30, 200, -1])
def test_truncated_newest_gives_way_to_the_one_before(tmp_path: Path, length: int):
    save(tmp_path, 1, {"a": 1.0}, {})
    newest = save(tmp_path, 2, {"a": 2.0}, {})
    newest.write_bytes(newest.read_bytes()[:length])
    with pytest.warns(UserWarning, match=r"00000002\.ckpt is damaged \(.+\); the one before it is tried"):
        assert restore(tmp_path, {"a": 0.0})[:2] == (1, {"a": 1.0})


def test_nothing_to_restore(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds none"):
        restore(tmp_path / "absent", 0)
    for step in (1, 2):
        save(tmp_path, step, 0, {}).write_bytes(b"junk")
    reason = r"damaged: 00000001\.ckpt, 00000002\.ckpt"
    with pytest.warns(UserWarning, match="one before"), pytest.raises(CheckpointError, match=reason):
        restore(tmp_path, 0)


KEY = jax.random.key(0)
SAVED = {"b": np.zeros((2, 3), np.float32), "k": KEY, "n": 1}


@pytest.mark.parametrize(
    ("like", "difference"),
    [
        (SAVED | {"b": np.zeros((3, 2), np.float32)}, "['b'] of float32[2, 3], where ['b'] of float32[3, 2]"),
        (SAVED | {"b": np.zeros((2, 3), np.int32)}, "['b'] of float32[2, 3], where ['b'] of int32[2, 3]"),
        (SAVED | {"k": jax.random.key(0, impl="rbg")}, "['k'] of key<fry>[], where ['k'] of key<rbg>[]"),
        (SAVED | {"k": jax.random.key_data(KEY)}, "['k'] of key<fry>[], where ['k'] of uint32[2]"),
        (SAVED | {"n": 1.0}, "['n'] of int, where ['n'] of float"),
        (SAVED | {"n": None}, "['n'] of int, where ['n'] of NoneType"),
        (SAVED | {"n": True}, "['n'] of int, where ['n'] of bool"),
        (SAVED | {"a": 1}, "['b'] of float32[2, 3], where ['a'] of int"),
        (SAVED | {"z": 1}, "no further leaf, where ['z'] of int"),
        ({"b": SAVED["b"]}, "['k'] of key<fry>[], where no further leaf"),
        (list(SAVED.values()), "['b'] of float32[2, 3], where [0] of float32[2, 3]"),
    ],
)
def test_first_leaf_that_differs_is_named(tmp_path: Path, like: Any, difference: str):
    save(tmp_path, 1, SAVED, {})
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, like)
    assert str(error.value).endswith(f"00000001.ckpt does not fit: it holds {difference} is wanted.")


def test_a_part_is_restored_whatever_else_there_is(tmp_path: Path):
    was = {"x": {"b": np.ones(2), "w": np.arange(3)}, "carry": np.zeros(4), "rest": 1}
    save(tmp_path, 3, was, {})
    step, tree, _ = restore(tmp_path, {"b": np.zeros(2), "w": np.zeros(3, int)}, "['x']")
    assert (step, bits(tree)) == (3, bits(was["x"]))
    assert bits(restore(tmp_path, np.ones(4), "['carry']").tree) == bits(was["carry"])
    with pytest.raises(CheckpointError, match=r"holds \['x'\]\['b'\] of float64\[2\], where \['x'\]\['w'\] of int64"):
        restore(tmp_path, {"w": np.zeros(3, int)}, "['x']")


@pytest.mark.parametrize("leaf", [jnp.tanh, "text", np.array([None]), {1, 2}])
def test_other_leaves_are_refused_and_nothing_is_written(tmp_path: Path, leaf: Any):
    with pytest.raises(TypeError, match=rf"\['net'\]\[0\] is {type(leaf).__name__}"):
        save(tmp_path, 1, {"net": [leaf]}, {})
    assert not list(tmp_path.iterdir())
