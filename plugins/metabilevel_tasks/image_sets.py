"""Whole data sets of images as one task each: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

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


def mnist(
    *,
    train: int = 1000,
    valid: int = 1000,
    test: int = 2000,
    noise: float = 0.0,
    network: nets.Plain = "linear",
    seed: int = 0,
) -> HeldOut:
    """Digits, 28 x 28, cut in three: one task, whose query is for validation or for the test; cross-entropy, accuracy.

    60,000 images are for training and validation, 10,000 for the test. Pixels in [0, 1] are standardised by the mean
    and the standard deviation of the 60,000, .1307 and .3081.

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
    cut = {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _grey(MNIST, 0.1307, 0.3081, network, cut)


def fashion_mnist(
    *,
    train: int = 1000,
    valid: int = 1000,
    test: int = 2000,
    noise: float = 0.0,
    network: nets.Plain = "linear",
    seed: int = 0,
) -> HeldOut:
    """Clothes, 28 x 28, cut in three: one task, whose query is for validation or for the test; cross-entropy, accuracy.

    60,000 images are for training and validation, 10,000 for the test. Pixels in [0, 1] are standardised by the mean
    and the standard deviation of the 60,000, .2860 and .3530.

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
    cut = {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _grey(FASHION_MNIST, 0.2860, 0.3530, network, cut)


def cifar10(
    *,
    train: int = 1000,
    valid: int = 1000,
    test: int = 2000,
    noise: float = 0.0,
    network: nets.Plain = "linear",
    seed: int = 0,
) -> HeldOut:
    """Photographs of 10 classes, 32 x 32, cut in three: one task; cross-entropy and accuracy.

    The query is for validation, or for the test. 50,000 images are for training and validation, 10,000 for the test, or
    10,000 and 2,000 with the packed files. Channels in [0, 1] are standardised by their means and standard
    deviations over the 50,000, (.4914, .4822, .4465) and (.2470, .2435, .2616).

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
    cut = {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _photographs(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), network, cut)


def cifar100(
    *,
    train: int = 1000,
    valid: int = 1000,
    test: int = 2000,
    noise: float = 0.0,
    network: nets.Plain = "linear",
    seed: int = 0,
) -> HeldOut:
    """Photographs of 100 classes, 32 x 32, cut in three: one task; cross-entropy and accuracy.

    The query is for validation, or for the test. 50,000 images are for training and validation, 10,000 for the test, or
    14,000 and 10,000 with the packed files. Channels in [0, 1] are standardised by their means and standard
    deviations over the 50,000, (.5071, .4865, .4409) and (.2673, .2564, .2762).

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
    cut = {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _photographs(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), network, cut)


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
