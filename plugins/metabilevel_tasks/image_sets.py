"""Whole data sets of images as one task each: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from metabilevel import classification, data

from . import nets
from .cifar_data import photographs
from .mnist_data import FASHION_MNIST, MNIST
from .splits import Examples, HeldOut, hold_out

Channels: TypeAlias = tuple[float, ...]
Cut: TypeAlias = dict[str, Any]


def _family(name: str, about: str, make: Callable[[nets.Plain, Cut], HeldOut]) -> Callable[..., HeldOut]:
    """A task family with the options that all these have."""

    def family(
        *,
        train: int = 1000,
        valid: int = 1000,
        test: int = 2000,
        noise: float = 0.0,
        network: nets.Plain = "linear",
        seed: int = 0,
    ) -> HeldOut:
        return make(network, {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed})

    family.__name__ = family.__qualname__ = name
    family.__doc__ = f"""{about}

    One task, cut in three, whose query is for validation or for the test; cross-entropy and accuracy.

    **Arguments:**

    - `train`: images that are trained on, the support.
    - `valid`: images for validation, the query in training.
    - `test`: images of the test, the query at test.
    - `noise`: fraction of the training labels replaced by another class, drawn uniformly; `Episode.truth` has which.
    - `network`: linear is softmax regression from zero, mlp has one hidden layer of 128 tanh units, conv three
      convolutions of 32 filters and stride 2; none normalises by the batch.
    - `seed`: of the cut and of the noise.

    **Raises:** `InputError` for sizes that the data do not have, `DataError` where the data cannot be had.
    """
    return family


mnist = _family(
    "mnist",
    """Digits, 28 x 28: 60,000 images for training and validation, 10,000 for the test.

    Pixels in [0, 1] are standardised by the mean and the standard deviation of the 60,000, .1307 and .3081.""",
    lambda network, cut: _grey(MNIST, 0.1307, 0.3081, network, cut),
)
fashion_mnist = _family(
    "fashion_mnist",
    """Clothes, 28 x 28: 60,000 images for training and validation, 10,000 for the test.

    Pixels in [0, 1] are standardised by the mean and the standard deviation of the 60,000, .2860 and .3530.""",
    lambda network, cut: _grey(FASHION_MNIST, 0.2860, 0.3530, network, cut),
)
cifar10 = _family(
    "cifar10",
    """Photographs of 10 classes, 32 x 32: 50,000 for training and validation, 10,000 for the test.

    With the packed files 10,000 and 2,000. Channels in [0, 1] are standardised by their means and standard deviations
    over the 50,000, (.4914, .4822, .4465) and (.2470, .2435, .2616).""",
    lambda network, cut: _photographs(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), network, cut),
)
cifar100 = _family(
    "cifar100",
    """Photographs of 100 classes, 32 x 32: 50,000 for training and validation, 10,000 for the test.

    With the packed files 14,000 and 10,000. Channels in [0, 1] are standardised by their means and standard deviations
    over the 50,000, (.5071, .4865, .4409) and (.2673, .2564, .2762).""",
    lambda network, cut: _photographs(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), network, cut),
)


def _grey(dataset: data.DataSet, mean: float, std: float, network: nets.Plain, cut: Cut) -> HeldOut:
    arrays = data.load(dataset)
    training, testing = (
        Examples(arrays[f"{part}_images"][..., None], arrays[f"{part}_labels"]) for part in ("train", "test")
    )
    return _held_out(training, testing, 10, (mean,), (std,), network, cut)


def _photographs(classes: Literal[10, 100], mean: Channels, std: Channels, network: nets.Plain, cut: Cut) -> HeldOut:
    flat = lambda part: Examples(part.reshape(-1, *part.shape[2:]), np.repeat(np.arange(classes), part.shape[1]))
    training, testing = map(flat, photographs(classes).values())
    return _held_out(training, testing, classes, mean, std, network, cut)


def _held_out(
    training: Examples,
    testing: Examples,
    classes: int,
    mean: Channels,
    std: Channels,
    network: nets.Plain,
    cut: Cut,
) -> HeldOut:
    """The task of images, uint8 [n, h, w, c]; `cut` says `hold_out` where and how to cut."""
    learner = classification(nets.plain(network, training.inputs.shape[1:], classes), ways=(classes, classes))
    standardise = lambda pixels: (jnp.asarray(pixels, float) / 255 - jnp.array(mean)) / jnp.array(std)
    return hold_out(learner, training, testing, classes=classes, prepare=standardise, **cut)
