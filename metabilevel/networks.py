"""Networks as pairs of functions: `outputs = head(params["head"], body(params["body"], inputs))`.

Parameters are plain pytrees of floating arrays, since an inner solver makes new ones for every task; a network
itself holds static sizes and names only, and has no state when it is applied.

Tasks have weights of their own, and `jax.vmap` of a convolution over its weights is a grouped convolution, whose
gradients XLA computes on a CPU a hundred times more slowly than a matrix product. Here every convolution is
`conv2d`: one matrix product of patches and weights, and so a batched one under `jax.vmap`.
"""

import abc
import itertools
from collections.abc import Callable, Iterable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import InputError, count, did_you_mean
from .problem import Inner, Key

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "leaky-relu": lambda x: jax.nn.leaky_relu(x, 0.1),
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
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

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """How many numbers the head gives for an example."""

    @abc.abstractmethod
    def init(self, key: Key) -> Inner:
        """Fresh parameters `{"body": ..., "head": ...}` of the default floating type."""

    @abc.abstractmethod
    def activations(
        self, params: Inner, inputs: Float[Array, "n ..."], key: Key | None = None
    ) -> list[Float[Array, "n ..."]]:
        """The output of every block of the body, in order; arguments as of `body`, which reads the last ones out."""

    @abc.abstractmethod
    def body(self, params: Inner, inputs: Float[Array, "n ..."], key: Key | None = None) -> Float[Array, "n d"]:
        """Features of a batch. `key` is the randomness of regularisers in training; None, at test, for none of them."""

    @abc.abstractmethod
    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Outputs of a batch from its features."""


class MLP(AbstractNetwork):
    """Fully connected layers; inputs of several axes are flattened.

        h_0 = inputs,   h_i = activation(N(h_{i-1} W_i) + b_i),   outputs = h_L W + b

    N is the identity, or `normalise` if `batch_norm`; b_i is then the shift (beta) of batch normalisation.

    **Arguments:**

    - `in_size`, `widths`, `out_size`: features of an input, of every hidden layer, of an output.
    - `activation`: of the hidden layers: `"relu"`, `"leaky-relu"` (slope .1), `"elu"`, `"softplus"`, `"sigmoid"` or
      `"tanh"`.
    - `init_weights`: of all layers; biases start at zero. `"fan-in"`: normal of standard deviation 1/sqrt(inputs);
      `"glorot-uniform"`; `"normal"`: of standard deviation 1; `"truncated-normal"`: .01, cut at two standard
      deviations, as in Finn et al.'s code, from which the sinusoids take several times as many steps; `"zeros"`.
    - `batch_norm`: whether the hidden layers are normalised.

    **Raises:** `InputError` for a name that is not offered or a size below 1.

    Sinusoids: `MLP(1, (40, 40), 1)` (Finn et al. 2017, section 5.1), `MLP(1, (64, 64), 1, "tanh")` (Nichol et al.
    2018, section 4). Omniglot without convolutions: `MLP(784, (256, 128, 64, 64), ways, batch_norm=True)` (Finn et
    al. 2017, section 5.2).
    """

    in_size: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    activation: str = eqx.field(static=True, default="relu")
    init_weights: str = eqx.field(static=True, default="fan-in")
    batch_norm: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        require_choice("activation", self.activation, _ACTIVATIONS)
        require_choice("init_weights", self.init_weights, _INITIALISERS)
        require_positive(in_size=self.in_size, widths=min(self.widths, default=1), out_size=self.out_size)

    @property
    def batch_statistics(self) -> bool:
        return self.batch_norm

    @property
    def outputs(self) -> int:
        return self.out_size

    def init(self, key: Key) -> Inner:
        shapes = list(itertools.pairwise((self.in_size, *self.widths, self.out_size)))
        keys = jax.random.split(key, len(shapes))
        *body, head = [new_layer(k, shape, self.init_weights) for k, shape in zip(keys, shapes, strict=True)]
        return {"body": body, "head": head}

    def activations(
        self, params: Inner, inputs: Float[Array, "n ..."], key: Key | None = None
    ) -> list[Float[Array, "n ..."]]:
        hidden, outputs = self._flat(inputs), []
        for layer in params:
            hidden = hidden @ layer["weights"]
            hidden = (normalise(hidden) if self.batch_norm else hidden) + layer["bias"]
            hidden = _ACTIVATIONS[self.activation](hidden)
            outputs.append(hidden)
        return outputs

    def body(self, params: Inner, inputs: Float[Array, "n ..."], key: Key | None = None) -> Float[Array, "n d"]:
        return self.activations(params, inputs, key)[-1] if self.widths else self._flat(inputs)

    def _flat(self, inputs: Float[Array, "n ..."]) -> Float[Array, "n d"]:
        return inputs.reshape(inputs.shape[0], self.in_size)

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return affine(params, features)


class ConvNet(AbstractNetwork):
    """Blocks that each halve the map, then a linear head. Batches are NHWC.

        block = relu(pool(gamma N(conv(maps)) + beta))

    with a 3 x 3 convolution, N = `normalise`, the shift beta (the parameter `bias`) and the factor gamma (`scale`).
    A convolution has no bias of its own: N would take it away again. Without `batch_norm` N is the identity.

    **Arguments:**

    - `in_shape`: (height, width, channels) of an image. `out_size`: number of outputs.
    - `filters`: channels of every map. `blocks`: number of blocks.
    - `down`: how a block halves n pixels. `"stride"`: convolution of stride 2 and no pooling, ceil(n / 2) are left;
      `"max-pool"`: convolution of stride 1 and pooling of 2 x 2, floor(n / 2).
    - `readout`: features are the `"mean"` over the last map, or all of it: `"flatten"`.
    - `scale`: whether there is a factor gamma.
    - `init_head`: of the head's weights, see `MLP`; convolutions are `"glorot-uniform"`. So are both in Finn et al.'s
      code after max-pooling; after a mean its head is `"normal"`, from which Omniglot is learned more slowly.
    - `batch_norm`: whether the maps are normalised.

    **Raises:** `InputError` for a name that is not offered, a size below 1, or a map that shrinks to nothing.

    `ConvNet((28, 28, 1), ways)` is Finn et al.'s net for Omniglot (2017, section 5.2),
    `ConvNet((28, 28, 1), ways, readout="flatten", scale=True)` is Nichol et al.'s (2018, section 6.1),
    `ConvNet((84, 84, 3), ways, filters=32, down="max-pool", readout="flatten")` Finn et al.'s for miniImageNet.
    """

    in_shape: tuple[int, int, int] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    filters: int = eqx.field(static=True, default=64)
    blocks: int = eqx.field(static=True, default=4)
    down: str = eqx.field(static=True, default="stride")
    readout: str = eqx.field(static=True, default="mean")
    scale: bool = eqx.field(static=True, default=False)
    init_head: str = eqx.field(static=True, default="glorot-uniform")
    batch_norm: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        require_choice("down", self.down, ("stride", "max-pool"))
        require_choice("readout", self.readout, ("mean", "flatten"))
        require_choice("init_head", self.init_head, _INITIALISERS)
        require_positive(in_shape=min(self.in_shape), out_size=self.out_size, filters=self.filters, blocks=self.blocks)
        if self.features == 0:
            raise InputError(f"blocks = {self.blocks}: nothing is left of {self.in_shape} after so many max-pools.")

    @property
    def batch_statistics(self) -> bool:
        return self.batch_norm

    @property
    def features(self) -> int:
        """The number of features that the body gives, d."""
        rounded_up = self.down == "stride"
        height, width, _ = self.in_shape
        for _ in range(self.blocks):
            height, width = (height + rounded_up) // 2, (width + rounded_up) // 2
        return self.filters * (height * width if self.readout == "flatten" else min(1, height, width))

    @property
    def outputs(self) -> int:
        return self.out_size

    def init(self, key: Key) -> Inner:
        *keys, last = jax.random.split(key, self.blocks + 1)
        body = []
        for channels, k in zip([self.in_shape[2]] + [self.filters] * (self.blocks - 1), keys, strict=True):
            body.append(new_convolution(k, 3, channels, self.filters, scale=self.scale))
        return {"body": body, "head": new_layer(last, (self.features, self.out_size), self.init_head)}

    def activations(
        self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None
    ) -> list[Float[Array, "n ..."]]:
        maps, outputs, pooled = inputs, [], self.down == "max-pool"
        for layer in params:
            maps = normalised_convolution(layer, maps, 1 if pooled else 2, self.batch_norm)
            maps = jax.nn.relu(max_pool(maps) if pooled else maps)
            outputs.append(maps)
        return outputs

    def body(self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None) -> Float[Array, "n d"]:
        maps = self.activations(params, inputs, key)[-1]
        return maps.mean((1, 2)) if self.readout == "mean" else maps.reshape(maps.shape[0], -1)

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return affine(params, features)


def conv2d(
    weights: Float[Array, "d kh kw c"], inputs: Float[Array, "n h w c"], stride: int
) -> Float[Array, "n h2 w2 d"]:
    """Cross-correlation with zero padding, of ceil(h / stride) x ceil(w / stride) pixels (TensorFlow's "SAME").

        out[n, i, j] = sum_{a, b} weights[:, a, b] @ inputs[n, stride i + a - top, stride j + b - left]

    as one product of patches [n h2 w2, kh kw c] and weights [d, kh kw c]. It is linear in either argument and made
    of slices and products only, and so are its derivatives of any order, forward and reverse. Why the output channels
    lead and the product has two axes: the weights' gradient is then [d, n h2 w2] @ [n h2 w2, kh kw c], the product
    that XLA's CPU library runs twice as fast as its transpose, and no patches are copied to transpose them.
    """
    d, kh, kw, _ = weights.shape
    patches = _patches(inputs, kh, kw, stride)
    n, h2, w2, k = patches.shape
    contract_last = (((1,), (1,)), ((), ()))
    maps = jax.lax.dot_general(patches.reshape(-1, k), weights.reshape(d, k), contract_last)
    return maps.reshape(n, h2, w2, d)


def _patches(x: Float[Array, "n h w c"], kh: int, kw: int, s: int) -> Float[Array, "n h2 w2 k"]:
    """The window of kh x kw pixels around every s-th pixel.

    With s columns taken for one wide pixel of s c channels, no slice has a stride, and s columns are copied at once.
    """
    n, h, w, c = x.shape
    h2, w2 = -(-h // s), -(-w // s)
    top, left = max(s * (h2 - 1) + kh - h, 0) // 2, max(s * (w2 - 1) + kw - w, 0) // 2
    tall, wide = h2 - (-kh // s) - 1, w2 - (-kw // s) - 1
    x = jnp.pad(x, ((0, 0), (top, tall * s - h - top), (left, wide * s - w - left), (0, 0)))
    x = x.reshape(n, tall, s, wide, s * c)
    rows = [x[:, a // s : a // s + h2, a % s] for a in range(kh)]
    return jnp.concatenate([r[:, :, b // s : b // s + w2, : (kw - b) * c] for r in rows for b in range(0, kw, s)], -1)


def max_pool(maps: Float[Array, "n h w c"], stride: Literal[1, 2] = 2) -> Float[Array, "n h2 w2 c"]:
    """The largest of every 2 x 2 square, or of all overlapping ones; NaN is larger than any number.

    With stride 2 an odd last row or column is left out; with stride 1, h - 1 rows and w - 1 columns come of h and w.
    The derivative is that of the first largest entry. (Not `reshape(...).max`, whose derivative under `jax.jit` is
    wrong on CPU, nor `jnp.maximum`, whose derivative costs a division.)
    """
    n, h, w, c = maps.shape
    if stride == 2:
        squares = maps[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
        corner = lambda i, j: squares[:, :, i, :, j]
    else:
        corner = lambda i, j: maps[:, i : h - 1 + i, j : w - 1 + j]
    larger = lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b)
    top, bottom = (larger(corner(i, 0), corner(i, 1)) for i in (0, 1))
    return larger(top, bottom)


def normalise(x: Float[Array, "n *hw c"], eps: float = 1e-3) -> Float[Array, "n *hw c"]:
    """Batch normalisation by the batch's own statistics, with neither factor nor shift: (x - mean) / sqrt(var + eps).

    Mean and (biased) variance are those of a channel over all other axes; eps is that of Finn et al.'s code. Smooth:
    a constant batch, or one of a single number, gives zeros with finite derivatives.
    """
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axes) + eps)


def normalised_convolution(
    layer: Inner, maps: Float[Array, "n h w c"], stride: int = 1, batch_norm: bool = True
) -> Float[Array, "n h2 w2 d"]:
    """gamma N(conv(maps)) + beta, with N = `normalise`, or the identity if not `batch_norm`.

    A `layer` without the factor gamma (`scale`) has none.
    """
    maps = conv2d(layer["weights"], maps, stride)
    maps = normalise(maps) if batch_norm else maps
    return (maps * layer["scale"] if "scale" in layer else maps) + layer["bias"]


def affine(params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
    """features W + b."""
    return features @ params["weights"] + params["bias"]


def new_layer(key: Key, shape: tuple[int, ...], init: str) -> dict[str, Array]:
    """Weights [..., inputs, outputs] and a bias of zeros [outputs]."""
    return {"weights": _INITIALISERS[init](key, shape), "bias": jnp.zeros(shape[-1])}


def new_convolution(key: Key, size: int, channels: int, filters: int, scale: bool = True) -> dict[str, Array]:
    """A layer of `normalised_convolution`: weights [filters, size, size, channels], shift, and factor where wanted."""
    layer = new_layer(key, (size, size, channels, filters), "glorot-uniform")
    layer["weights"] = jnp.moveaxis(layer["weights"], -1, 0)
    return layer | {"scale": jnp.ones(filters)} if scale else layer


def require_choice(name: str, given: str, allowed: Iterable[str]) -> None:
    """Raises `InputError` for a name that is not offered."""
    if given not in allowed:
        raise InputError(f"{name} = {given!r}: one of {', '.join(allowed)} is wanted.{did_you_mean(given, allowed)}")


def require_positive(**sizes: int) -> None:
    """Raises `InputError` for a size below 1."""
    for name, size in sizes.items():
        count(name, size, 1)
