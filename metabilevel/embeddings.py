"""The larger networks of few-shot classification; what `networks` says of parameters and convolutions holds here too.

Both normalise by the statistics of the batch, with a trained factor and shift, in training and at test.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import InputError
from .networks import (
    AbstractNetwork,
    affine,
    max_pool,
    new_convolution,
    new_layer,
    normalised_convolution,
    require_positive,
)
from .problem import Inner, Key


class R2D2Net(AbstractNetwork):
    """The embedding of R2-D2: four blocks, of which the last two give the features. Batches are NHWC.

        block = dropout(leaky_relu(pool(gamma N(conv(maps)) + beta)))

    with a 3 x 3 convolution, N = `normalise`, the largest of 2 x 2 pixels and a slope of .1. Pools have stride 2; that
    of the last block has stride 1, and the maps of the last block but one are pooled in the same way once more before
    both are flattened and joined. So h pixels leave h // 2 // 2 // 2 - 1 of them in either.

    **Arguments:**

    - `in_shape`: (height, width, channels) of an image. `out_size`: number of outputs.
    - `widths`: channels of each block, of two blocks or more.
    - `dropout`: the probability with which an entry of the last two blocks is dropped in training.

    **Raises:** `InputError` for sizes below 1, a probability outside [0, 1), or maps that shrink to nothing.

    Bertinetto, Henriques, Torr and Vedaldi 2019 (arXiv:1805.08136), section 4.2; where that is silent, their code.
    With the default widths 28 x 28 pixels have 3,584 features, 32 x 32 have 8,064, 84 x 84 have 72,576. Dropout was .1
    on miniImageNet and .4 on CIFAR-FS.
    """

    in_shape: tuple[int, int, int] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True, default=(96, 192, 384, 512))
    dropout: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        require_positive(in_shape=min(self.in_shape), out_size=self.out_size, widths=min(self.widths, default=1))
        _require_probability("dropout", self.dropout)
        if len(self.widths) < 2:
            raise InputError(f"widths = {self.widths}: features are of the last two blocks, and so two are wanted.")
        if self.features <= 0:
            raise InputError(f"in_shape = {self.in_shape}: nothing is left of it after {len(self.widths)} max-pools.")

    @property
    def batch_statistics(self) -> bool:
        return True

    @property
    def features(self) -> int:
        """The number of features that the body gives, d."""
        height, width = (max(0, (size >> len(self.widths) - 1) - 1) for size in self.in_shape[:2])
        return sum(self.widths[-2:]) * height * width

    @property
    def outputs(self) -> int:
        return self.out_size

    def init(self, key: Key) -> Inner:
        *keys, last = jax.random.split(key, len(self.widths) + 1)
        channels = (self.in_shape[2], *self.widths[:-1])
        body = [new_convolution(k, 3, c, d) for k, c, d in zip(keys, channels, self.widths, strict=True)]
        return {"body": body, "head": new_layer(last, (self.features, self.out_size), "glorot-uniform")}

    def activations(
        self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None
    ) -> list[Float[Array, "n ..."]]:
        maps, outputs, last = inputs, [], len(params) - 1
        for i, layer in enumerate(params):
            maps = max_pool(normalised_convolution(layer, maps), stride=1 if i == last else 2)
            maps = _leaky_relu(maps)
            if key is not None and self.dropout and i >= last - 1:
                maps = drop(jax.random.fold_in(key, i), maps, self.dropout)
            outputs.append(maps)
        return outputs

    def body(self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None) -> Float[Array, "n d"]:
        *_, before, last = self.activations(params, inputs, key)
        return jnp.concatenate([_flat(max_pool(before, stride=1)), _flat(last)], -1)

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return affine(params, features)


class ResNet12(AbstractNetwork):
    """Residual blocks of three convolutions, and no pooling over the last map, which is flattened. Batches are NHWC.

        block = drop(pool(leaky_relu(c3(leaky_relu(c2(leaky_relu(c1(maps))))) + shortcut(maps))))

    where c1, c2, c3 (3 x 3) and the shortcut (1 x 1) are convolutions with gamma N(.) + beta behind them, N =
    `normalise`, the slope is .1 and the pool takes the largest of 2 x 2 pixels.

    **Arguments:**

    - `in_shape`: (height, width, channels) of an image. `out_size`: number of outputs.
    - `widths`: channels of each block.
    - `drop_block`: the part of each block's output that is dropped in training: whole squares of the last two blocks
      (`drop_squares`), single entries of those before them (`drop`).
    - `block_size`: pixels of a side of such a square.

    **Raises:** `InputError` for sizes below 1, a probability outside [0, 1), or maps that shrink to nothing.

    Lee, Maji, Ravichandran and Soatto 2019, MetaOptNet (arXiv:1904.03758), section 4.1; where that is silent, their
    code. 84 x 84 pixels have 16,000 features, 32 x 32 have 2,560. They drop .1, in squares of 5 on miniImageNet and of
    2 on CIFAR-FS, and let the part that is dropped grow over the first 40 epochs; here it is constant.
    """

    in_shape: tuple[int, int, int] = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True, default=(64, 160, 320, 640))
    drop_block: float = eqx.field(static=True, default=0.0)
    block_size: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        require_positive(in_shape=min(self.in_shape), out_size=self.out_size, widths=min(self.widths, default=0))
        require_positive(block_size=self.block_size)
        _require_probability("drop_block", self.drop_block)
        if self.features == 0:
            raise InputError(f"in_shape = {self.in_shape}: nothing is left of it after {len(self.widths)} max-pools.")

    @property
    def batch_statistics(self) -> bool:
        return True

    @property
    def features(self) -> int:
        """The number of features that the body gives, d."""
        height, width = (size >> len(self.widths) for size in self.in_shape[:2])
        return self.widths[-1] * height * width

    @property
    def outputs(self) -> int:
        return self.out_size

    def init(self, key: Key) -> Inner:
        *keys, last = jax.random.split(key, len(self.widths) + 1)
        channels = (self.in_shape[2], *self.widths[:-1])
        body = [_new_residual_block(k, c, d) for k, c, d in zip(keys, channels, self.widths, strict=True)]
        return {"body": body, "head": new_layer(last, (self.features, self.out_size), "glorot-uniform")}

    def activations(
        self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None
    ) -> list[Float[Array, "n ..."]]:
        maps, outputs = inputs, []
        for i, block in enumerate(params):
            maps = max_pool(_residual(block, maps))
            if key is not None and self.drop_block:
                k = jax.random.fold_in(key, i)
                squares = i >= len(params) - 2
                maps = (
                    drop_squares(k, maps, self.drop_block, self.block_size)
                    if squares
                    else drop(k, maps, self.drop_block)
                )
            outputs.append(maps)
        return outputs

    def body(self, params: Inner, inputs: Float[Array, "n h w c"], key: Key | None = None) -> Float[Array, "n d"]:
        return _flat(self.activations(params, inputs, key)[-1])

    def head(self, params: Inner, features: Float[Array, "n d"]) -> Float[Array, "n out"]:
        return affine(params, features)


def drop(key: Key, maps: Float[Array, "n h w c"], rate: float) -> Float[Array, "n h w c"]:
    """Dropout: each entry becomes 0 with probability `rate`, and is divided by 1 - rate otherwise."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, maps.shape), maps / (1 - rate), 0.0)


def drop_squares(key: Key, maps: Float[Array, "n h w c"], rate: float, size: int) -> Float[Array, "n h w c"]:
    """DropBlock (Ghiasi, Lin and Le 2018, arXiv:1810.12890, algorithm 1): squares of b x b pixels become 0.

    b is `size`, or the map's shorter side where that is less. A square starts at each of the (h - b + 1)(w - b + 1)
    places where it fits with probability

        rate / b^2  *  h w / ((h - b + 1)(w - b + 1))

    in every channel by itself, so that a part of about `rate` is dropped (somewhat less, where squares overlap). What
    is kept is multiplied by the number of entries over that of those kept.
    """
    n, h, w, c = maps.shape
    b = min(size, h, w)
    places = (h - b + 1, w - b + 1)
    probability = min(1.0, rate / b**2 * h * w / (places[0] * places[1]))
    starts = jax.random.bernoulli(key, probability, (n, *places, c)).astype(maps.dtype)
    padded = jnp.pad(starts, ((0, 0), (b - 1, b - 1), (b - 1, b - 1), (0, 0)))
    kept = 1 - jax.lax.reduce_window(padded, 0.0, jax.lax.max, (1, b, b, 1), (1, 1, 1, 1), "VALID")
    return maps * kept * (kept.size / jnp.maximum(kept.sum(), 1))


def _new_residual_block(key: Key, channels: int, filters: int) -> Inner:
    *keys, last = jax.random.split(key, 4)
    path = [new_convolution(k, 3, c, filters) for k, c in zip(keys, (channels, filters, filters), strict=True)]
    return {"path": path, "shortcut": new_convolution(last, 1, channels, filters)}


def _residual(block: Inner, inputs: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
    first, second, third = block["path"]
    maps = _leaky_relu(normalised_convolution(first, inputs))
    maps = _leaky_relu(normalised_convolution(second, maps))
    return _leaky_relu(normalised_convolution(third, maps) + normalised_convolution(block["shortcut"], inputs))


def _leaky_relu(maps: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    return jax.nn.leaky_relu(maps, 0.1)


def _flat(maps: Float[Array, "n h w c"]) -> Float[Array, "n d"]:
    return maps.reshape(maps.shape[0], -1)


def _require_probability(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} = {value}: a probability of 0 or more and less than 1 is wanted.")
