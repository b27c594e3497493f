"""Networks as pairs of functions: `outputs = head(params["head"], body(params["body"], inputs))`.

Parameters are plain pytrees of floating arrays, since an inner solver makes new ones for every task; a network
itself holds its static shape only, and has neither state nor randomness when applied. Batches are NHWC.

Tasks have weights of their own, and `jax.vmap` of a convolution over its weights is a grouped convolution, whose
gradients XLA computes a hundred times slower than a matrix product on CPU. Every convolution here is `conv2d`, which
is written as one product, and so is a batched product under `vmap`.
"""

import abc
import itertools
from collections.abc import Callable
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .problem import Inner, Key

Activation: TypeAlias = Literal["relu", "tanh", "elu", "leaky-relu", "sigmoid", "softplus"]
Initialiser: TypeAlias = Literal["fan-in", "glorot-uniform", "normal", "truncated-normal", "zeros"]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "leaky-relu": lambda x: jax.nn.leaky_relu(x, 0.1),
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}
_INITIALISERS: dict[str, Callable[[Key, tuple[int, ...]], Array]] = {
    "fan-in": jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "glorot-uniform": jax.nn.initializers.glorot_uniform(),
    "normal": jax.nn.initializers.normal(1.0),
    "truncated-normal": jax.nn.initializers.truncated_normal(0.01),
    "zeros": jax.nn.initializers.zeros,
}


class AbstractNetwork(eqx.Module):
    """Parameters `{"body": ..., "head": ...}` and the two functions that use them."""

    @property
    @abc.abstractmethod
    def batch_statistics(self) -> bool:
        """Whether the output for one example depends on the other examples of its batch."""

    @abc.abstractmethod
    def init(self, key: Key) -> Inner:
        """Fresh parameters `{"body": ..., "head": ...}` of the default floating type."""

    @abc.abstractmethod
    def body(self, params: Inner, inputs: Float[Array, "n ..."]) -> Float[Array, "n d"]:
        """Features of a batch."""

    @abc.abstractmethod
    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Outputs of a batch from its features."""


class MLP(AbstractNetwork):
    """Fully connected layers; inputs of several axes are flattened.

        h_0 = inputs,   h_i = activation(N(h_{i-1} W_i) + b_i),   outputs = h_L W + b

    with N the identity, or `normalise` if `batch_norm`; b is then batch normalisation's beta.

    **Arguments:**

    - `in_size`, `widths`, `out_size`: features of the input, of every hidden layer, of the output.
    - `init`: of all weights. `"fan-in"`: normal, standard deviation 1/sqrt(inputs); `"truncated-normal"`: .01, cut
      at two standard deviations (Finn et al.'s code, with which the sinusoids take some five times longer);
      `"glorot-uniform"`; `"normal"`: standard deviation 1; `"zeros"`. Biases start at zero.

    Sinusoid: `MLP(1, (40, 40), 1)` in Finn et al. 2017 (section 5.1), `MLP(1, (64, 64), 1, "tanh")` in Nichol et al.
    2018 (section 4). Omniglot without convolutions: `MLP(784, (256, 128, 64, 64), ways, batch_norm=True)` in Finn et
    al. (section 5.2).
    """

    in_size: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True, default="relu")
    init_weights: Initialiser = eqx.field(static=True, default="fan-in")
    batch_norm: bool = eqx.field(static=True, default=False)

    @property
    def batch_statistics(self) -> bool:
        return self.batch_norm

    def init(self, key: Key) -> Inner:
        sizes = (self.in_size, *self.widths, self.out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = itertools.pairwise(sizes)
        *body, head = [_affine(k, shape, self.init_weights) for k, shape in zip(keys, shapes, strict=True)]
        return {"body": body, "head": head}

    def body(self, params: Inner, inputs: Float[Array, "n ..."]) -> Float[Array, "n d"]:
        hidden = inputs.reshape(inputs.shape[0], self.in_size)
        for layer in params:
            hidden = hidden @ layer["weights"]
            hidden = (normalise(hidden) if self.batch_norm else hidden) + layer["bias"]
            hidden = _ACTIVATIONS[self.activation](hidden)
        return hidden

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return features @ params["weights"] + params["bias"]


class ConvNet(AbstractNetwork):
    """Blocks of 3 x 3 convolution, batch normalisation, ReLU, each halving the map; then a linear head.

    The convolutions have no bias of their own: normalisation would take it away again.

    **Arguments:**

    - `in_shape`: (height, width, channels) of an image; `out_size`: the number of outputs.
    - `down`: how a block halves the map: `"stride"`: a convolution of stride 2 (n -> ceil(n / 2)); `"max-pool"`:
      2 x 2 pooling after a convolution of stride 1 (n -> floor(n / 2)).
    - `readout`: features are the `"mean"` over the last map, [n, filters], or all of it: `"flatten"`.
    - `scale`: whether batch normalisation learns a factor (gamma) as well as a shift (beta).
    - `init_head`: of the head's weights, see `MLP`; convolutions are `"glorot-uniform"`.

    `ConvNet((28, 28, 1), ways)` is the Omniglot net of Finn et al. 2017 (section 5.2);
    `ConvNet((28, 28, 1), ways, readout="flatten", scale=True)` that of Nichol et al. 2018 (section 6.1);
    `ConvNet((84, 84, 3), ways, filters=32, down="max-pool", readout="flatten")` Finn et al.'s mini-ImageNet net.
    """

    in_shape: tuple[int, int, int] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    filters: int = eqx.field(static=True, default=64)
    blocks: int = eqx.field(static=True, default=4)
    down: Literal["stride", "max-pool"] = eqx.field(static=True, default="stride")
    readout: Literal["mean", "flatten"] = eqx.field(static=True, default="mean")
    scale: bool = eqx.field(static=True, default=False)
    init_head: Initialiser = eqx.field(static=True, default="glorot-uniform")

    @property
    def batch_statistics(self) -> bool:
        return True

    @property
    def features(self) -> int:
        """The number of features that the body gives."""
        halve = (lambda n: -(-n // 2)) if self.down == "stride" else (lambda n: n // 2)
        height, width, _ = self.in_shape
        for _ in range(self.blocks):
            height, width = halve(height), halve(width)
        return self.filters * (1 if self.readout == "mean" else height * width)

    def init(self, key: Key) -> Inner:
        *keys, last = jax.random.split(key, self.blocks + 1)
        channels = (self.in_shape[2], *[self.filters] * self.blocks)
        body = [_affine(k, (3, 3, *channels[i : i + 2]), "glorot-uniform") for i, k in enumerate(keys)]
        body = [layer | {"weights": jnp.moveaxis(layer["weights"], -1, 0)} for layer in body]
        if self.scale:
            body = [layer | {"scale": jnp.ones(self.filters)} for layer in body]
        return {"body": body, "head": _affine(last, (self.features, self.out_size), self.init_head)}

    def body(self, params: Inner, inputs: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
        maps = inputs
        for layer in params:
            maps = normalise(conv2d(layer["weights"], maps, stride=2 if self.down == "stride" else 1))
            maps = maps * layer["scale"] if self.scale else maps
            maps = maps + layer["bias"]
            maps = jax.nn.relu(maps if self.down == "stride" else max_pool(maps))
        return maps.mean((1, 2)) if self.readout == "mean" else maps.reshape(maps.shape[0], -1)

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return features @ params["weights"] + params["bias"]


def conv2d(
    weights: Float[Array, "d kh kw c"], inputs: Float[Array, "n h w c"], stride: int
) -> Float[Array, "n h2 w2 d"]:
    """Cross-correlation with zero padding to ceil(h / stride) x ceil(w / stride) (the "SAME" of TensorFlow).

        out[n, i, j] = sum_{a, b} weights[:, a, b] @ inputs[n, stride i + a - top, stride j + b - left]

    as one product of the patches, [n h2 w2, kh kw c], with the weights, [d, kh kw c]. It is linear in either argument
    and made of slices and products only, so that any order of derivative, forward or reverse, is as well. With the
    output channels leading, the products for the value, for the inputs' gradient and for the weights' gradient are
    all of the kind that XLA's CPU library runs at full speed (`[kh kw c, d]` halves that of the last).
    """
    patches = _patches(inputs, *weights.shape[1:3], stride)
    return jnp.einsum("nhwk,dk->nhwd", patches, weights.reshape(weights.shape[0], -1))


def _patches(x: Float[Array, "n h w c"], kh: int, kw: int, s: int) -> Float[Array, "n h2 w2 k"]:
    """Windows of kh x kw pixels, s apart. With s neighbouring columns as one wide pixel no slice has a stride, and
    as many columns of a window as one wide pixel holds are copied at once."""
    n, h, w, c = x.shape
    h2, w2 = -(-h // s), -(-w // s)
    top, left = max(s * (h2 - 1) + kh - h, 0) // 2, max(s * (w2 - 1) + kw - w, 0) // 2
    tall, wide = h2 - (-kh // s) - 1, w2 - (-kw // s) - 1
    x = jnp.pad(x, ((0, 0), (top, tall * s - h - top), (left, wide * s - w - left), (0, 0)))
    x = x.reshape(n, tall, s, wide, s * c)
    rows = [x[:, a // s : a // s + h2, a % s] for a in range(kh)]
    windows = [row[:, :, b // s : b // s + w2, : (kw - b) * c] for row in rows for b in range(0, kw, s)]
    return jnp.concatenate(windows, -1)


def max_pool(maps: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """The largest of every 2 x 2 square; an odd last row or column is left out."""
    h, w = 2 * (maps.shape[1] // 2), 2 * (maps.shape[2] // 2)
    top = jnp.maximum(maps[:, 0:h:2, 0:w:2], maps[:, 0:h:2, 1:w:2])
    bottom = jnp.maximum(maps[:, 1:h:2, 0:w:2], maps[:, 1:h:2, 1:w:2])
    return jnp.maximum(top, bottom)


def normalise(x: Float[Array, "n *hw c"], eps: float = 1e-3) -> Float[Array, "n *hw c"]:
    """Batch normalisation by the batch's own statistics, without scale or shift: (x - mean) / sqrt(var + eps).

    Mean and (biased) variance are per channel, over all other axes. eps as in Finn et al.'s code. Smooth everywhere:
    a constant input, or a single one, gives zeros.
    """
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axes) + eps)


def _affine(key: Key, shape: tuple[int, ...], init: str) -> dict[str, Array]:
    return {"weights": _INITIALISERS[init](key, shape), "bias": jnp.zeros(shape[-1])}
