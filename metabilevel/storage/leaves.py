"""The leaves of a pytree as bytes, and back, bit for bit."""

from typing import Any

import numpy as np


def flatten(tree: Any, within: str = "") -> tuple[dict[str, Any], Any]:
    """path -> leaf for each leaf of `tree`, and its structure. None is a leaf. Paths begin by `within`."""
    import jax

    leaves, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return {within + jax.tree_util.keystr(path) or "(root)": leaf for path, leaf in leaves}, structure


def kind(path: str, leaf: Any) -> str:
    """Type and shape in words, such as `float32[3, 4]`: leaves of one kind can replace one another.

    **Raises:** `TypeError` for a leaf that is no array, no typed key, no Python number and not None.
    """
    import jax

    if leaf is None or type(leaf) in (bool, int, float):
        return type(leaf).__name__
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)) and leaf.dtype != object:
        return f"{leaf.dtype}{list(leaf.shape)}"
    raise TypeError(f"The leaf {path} is {type(leaf).__name__}: only arrays, keys, numbers and None can be saved.")


def encode(leaf: Any) -> bytes:
    """The bytes of a leaf that has a `kind`."""
    if type(leaf) is float:
        return leaf.hex().encode()
    if leaf is None or type(leaf) in (bool, int):
        return str(leaf).encode()
    return np.asarray(_key_data(leaf) if _is_key(leaf) else leaf).tobytes()


def decode(data: bytes, like: Any) -> Any:
    """The leaf whose bytes are `data`, and whose kind is that of `like`."""
    if like is None:
        return None
    if type(like) is bool:
        return data == b"True"
    if type(like) is int:
        return int(data)
    if type(like) is float:
        return float.fromhex(data.decode())
    import jax

    if _is_key(like):
        bits = jax.numpy.asarray(_array(data, _key_data(like)))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like))
    array = _array(data, like)
    return jax.numpy.asarray(array) if isinstance(like, jax.Array) else array[()]


def _array(data: bytes, like: Any) -> np.ndarray:
    return np.frombuffer(data, like.dtype).reshape(like.shape).copy()


def _key_data(key: Any) -> Any:
    import jax

    return jax.random.key_data(key)


def _is_key(leaf: Any) -> bool:
    import jax

    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
