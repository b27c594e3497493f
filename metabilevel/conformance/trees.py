"""Pytrees side by side: what differs, in words."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def arrays(tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves by their paths, on the host; of keys their data."""
    return {jax.tree_util.keystr(path): _host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _host(leaf: Any) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def flat(tree: PyTree) -> np.ndarray:
    """All entries of the floating leaves in one vector of double precision."""
    leaves = [a.astype(float).ravel() for a in arrays(tree).values() if np.issubdtype(a.dtype, np.inexact)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def parts(tree: PyTree, kind: type) -> list[Any]:
    """The modules of a kind inside another module."""
    found = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in found if isinstance(node, kind)]


def mean(trees: Sequence[PyTree]) -> PyTree:
    """Of each leaf the mean, in its own precision."""
    return jax.tree.map(lambda *leaves: np.mean(np.stack([np.asarray(a) for a in leaves]), 0), *trees)


def kinds(tree: PyTree) -> dict[str, str]:
    """Of every leaf its type and shape, as `float32[3]`; and whether it is weakly typed, or no array at all."""
    return {jax.tree_util.keystr(p): _kind(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _kind(leaf: Any) -> str:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        return f"the {type(leaf).__name__} {leaf!r}"
    weak = ", weakly typed" if getattr(leaf, "weak_type", False) else ""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]{weak}"


def other_kind(got: PyTree, wanted: PyTree, name: str) -> str | None:
    """The first leaf in which `got` has another type or shape than `wanted`; None where both are alike."""
    have, want = kinds(got), kinds(wanted)
    for path in [*want, *have]:
        if have.get(path) != want.get(path):
            said = [each.get(path, "missing") for each in (have, want)]
            return f"{name}{path} is {said[0]} where {said[1]} is wanted"
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        return f"{name} has the structure {jax.tree.structure(got)} where {jax.tree.structure(wanted)} is wanted"
    return None


def unequal(got: PyTree, wanted: PyTree, name: str, tolerance: float = 0.0, floor: float = 0.0) -> str | None:
    """The leaf in which the two differ most, with both its values there; None where they differ nowhere.

    `tolerance` is relative to the largest entry of all floating leaves of `wanted`, or to `floor`; 0 compares bit for
    bit. NaN equals NaN.
    """
    have, want = arrays(got), arrays(wanted)
    if have.keys() != want.keys():
        return f"{name} has the leaves {sorted(have)} where {sorted(want)} are wanted"
    values = flat(wanted)
    scale = np.abs(values[np.isfinite(values)]).max(initial=floor)
    worst, found = 0.0, None
    for path, a in have.items():
        b = want[path]
        if a.shape != b.shape:
            return f"{name}{path} has the shape {list(a.shape)} where {list(b.shape)} is wanted"
        with np.errstate(invalid="ignore"):
            gap = np.abs(a.astype(float) - b.astype(float))
        gap = np.where((a == b) | ((a != a) & (b != b)), 0, np.where(np.isfinite(gap), gap, np.inf))
        if gap.size and gap.max() > max(worst, tolerance * scale):
            at = np.unravel_index(gap.argmax(), gap.shape)
            index = f"[{', '.join(map(str, at))}]" if at else ""
            worst, found = gap.max(), f"{name}{path}{index} is {a[at]:.6g} where {b[at]:.6g} is wanted"
    return found


def broken(tree: PyTree, name: str) -> str | None:
    """The first leaf that is not finite; None where all are."""
    for path, a in arrays(tree).items():
        if np.issubdtype(a.dtype, np.inexact) and not np.isfinite(a).all():
            return f"{name}{path} holds {np.sum(~np.isfinite(a))} of {a.size} entries that are not finite"
    return None
