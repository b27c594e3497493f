"""The networks of the families of images, by name."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

from metabilevel import MLP, AbstractNetwork, ConvNet, InputError, R2D2Net, ResNet12

Name: TypeAlias = Literal["conv", "conv-max-pool", "r2d2", "resnet12"]
Plain: TypeAlias = Literal["linear", "mlp", "conv"]
Shape: TypeAlias = tuple[int, int, int]
_PLAIN = {"conv": ConvNet, "conv-max-pool": partial(ConvNet, down="max-pool", readout="flatten")}


def network(name: Name, dropout: float = 0.0) -> Callable[[Shape, int], AbstractNetwork]:
    """The network of that name, as a function of an image's shape and the number of ways.

    `dropout` is what r2d2 and resnet12 drop in training; resnet12 in squares of 5 pixels where images have 84 or more
    on a side, and of 2 where they have fewer (Lee et al.).

    **Raises:** `InputError` for another name, or for a dropout that the network does not have.
    """
    match name:
        case "conv" | "conv-max-pool" if dropout:
            raise InputError(f"dropout = {dropout}: the network {name} drops nothing; r2d2 and resnet12 do.")
        case "conv" | "conv-max-pool":
            return _PLAIN[name]
        case "r2d2":
            return partial(R2D2Net, dropout=dropout)
        case "resnet12":
            size = lambda shape: 5 if min(shape[:2]) >= 84 else 2
            return lambda shape, ways: ResNet12(shape, ways, drop_block=dropout, block_size=size(shape))
    raise InputError(f"network = {name!r}: one of conv, conv-max-pool, r2d2, resnet12 is wanted.")


def plain(name: Plain, shape: Shape, ways: int) -> AbstractNetwork:
    """The network of that name for images of that shape, in which no example's output depends on the others.

    **Raises:** `InputError` for another name.
    """
    match name:
        case "linear":  # a convex loss has one minimum, wherever descent begins
            return MLP(math.prod(shape), (), ways, init_weights="zeros")
        case "mlp":  # tanh, so that the inner loss has second derivatives everywhere
            return MLP(math.prod(shape), (128,), ways, "tanh")
        case "conv":
            return ConvNet(shape, ways, filters=32, blocks=3, readout="flatten", batch_norm=False)
    raise InputError(f"network = {name!r}: one of linear, mlp, conv is wanted.")
