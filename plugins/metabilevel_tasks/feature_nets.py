"""Convolutional nets of which only the maps are wanted: what a picture shows, and in what manner."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metabilevel import InputError, networks

from .cifar_data import BROKEN

CHANNELS = (16, 32, 64, 64)  # of the blocks of the random net, of one convolution each
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as VGG nets want them


class FeatureNet(eqx.Module):
    """Blocks of 3 x 3 convolutions, each followed by ReLU; between two blocks the mean of every 2 x 2 square, as Gatys
    et al. (2015, arXiv:1508.06576, methods) have it in place of a maximum.

    `blocks` hold layers {"weights": [out, 3, 3, in], "bias": [out]}. The weights are shared by all tasks; patches and
    one matrix product are still 5 to 30 times faster for the gradient in the image than XLA's own convolution, which
    in a loop on a CPU takes a slow path.
    """

    blocks: list[list[dict[str, Array]]]

    def maps(self, image: Float[Array, "h w 3"]) -> list[Float[Array, "_ _ _"]]:
        """The first map [height, width, channels] of every block; `image` has channels in [0, 1]."""
        x, found = ((image - jnp.array(MEANS)) / jnp.array(DEVIATIONS))[None], []
        for number, block in enumerate(self.blocks):
            x = _halved(x) if number else x
            maps = []
            for layer in block:
                x = jax.nn.relu(networks.conv2d(layer["weights"], x, 1) + layer["bias"])
                maps.append(x)
            found.append(maps[0][0])
        return found


def random_net(seed: int) -> FeatureNet:
    """Four blocks of one convolution with normal weights of variance 2 / inputs, under which ReLU keeps the second
    moment, and no bias. Random maps do for textures and styles (He, Wang & Hopcroft 2016, arXiv:1606.04801)."""
    draw, sizes = jax.nn.initializers.he_normal(in_axis=(1, 2, 3), out_axis=0), (3, *CHANNELS)
    keys = jax.random.split(jax.random.key(seed), len(CHANNELS))
    weights = [draw(k, (out, 3, 3, n)) for k, n, out in zip(keys, sizes, CHANNELS, strict=False)]
    return FeatureNet([[{"weights": w, "bias": jnp.zeros(len(w))}] for w in weights])


def read_net(path: Path) -> FeatureNet:
    """The net whose weights an `.npz` file has, without pickle: for the n-th convolution of block b the arrays
    `conv<b>_<n>_weights` [out, in, 3, 3] and `conv<b>_<n>_bias` [out], both counted from 1; VGG's names, and PyTorch's
    order of axes.

    **Raises:** `InputError`, one line that names the file and the array which is wrong.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened}
    except BROKEN as error:
        raise InputError(f"{path} is no .npz file of weights that can be read: {error}") from error
    places = [tuple(map(int, found.groups())) for name in arrays if (found := re.fullmatch(_NAME, name))]
    blocks, channels = [], 3
    for b in range(1, 1 + max((b for b, _ in places), default=1)):
        blocks.append([])
        for n in range(1, 1 + max((n for other, n in places if other == b), default=1)):
            weights = _array(path, arrays, f"conv{b}_{n}_weights", (None, channels, 3, 3))
            channels = len(weights)
            bias = _array(path, arrays, f"conv{b}_{n}_bias", (channels,))
            blocks[-1].append({"weights": weights.transpose(0, 2, 3, 1), "bias": bias})
    return FeatureNet(blocks)


_NAME = r"conv([1-9])_([1-9]\d?)_weights"


def _array(path: Path, arrays: dict[str, np.ndarray], name: str, shape: tuple[int | None, ...]) -> Array:
    wanted = f"[{', '.join('out' if size is None else str(size) for size in shape)}]"
    if name not in arrays:
        raise InputError(f"{path} has no array {name!r}, of shape {wanted}; it has {', '.join(arrays) or 'none'}.")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(a == b or b is None for a, b in zip(array.shape, shape, strict=True))
    if not (fits and array.size and np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
        kind = f"{array.dtype} of shape {list(array.shape)}"
        raise InputError(f"{path}: the array {name!r} is {kind}; finite floating numbers of shape {wanted} are wanted.")
    return jnp.asarray(array, float)


def _halved(x: Any) -> Any:
    """The mean of every 2 x 2 square of [n, h, w, c]; an odd last row or column is left out."""
    n, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
