"""Images of ten classes as one task: MNIST and Fashion-MNIST."""

from typing import Any

import jax.numpy as jnp

from metabilevel import classification, data

from . import nets
from .mnist_data import FASHION_MNIST, MNIST
from .splits import Examples, HeldOut, hold_out


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
    arrays, cut = data.load(MNIST), {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _held_out(arrays, 0.1307, 0.3081, network, **cut)


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
    arrays, cut = data.load(FASHION_MNIST), {"train": train, "valid": valid, "test": test, "noise": noise, "seed": seed}
    return _held_out(arrays, 0.2860, 0.3530, network, **cut)


def _held_out(arrays: data.Arrays, mean: float, std: float, network: nets.Plain, **cut: Any) -> HeldOut:
    """The task of grey images; `cut` is what `hold_out` wants to know."""
    learner = classification(nets.plain(network, (28, 28, 1), 10), ways=(10, 10))
    training, testing = (Examples(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test"))
    standardise = lambda pixels: ((jnp.asarray(pixels, float) / 255 - mean) / std)[..., None]
    return hold_out(learner, training, testing, classes=10, prepare=standardise, **cut)
