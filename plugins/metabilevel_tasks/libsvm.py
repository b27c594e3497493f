"""Logistic regression on LIBSVM's data sets, each one task: the inner problem of a penalty for every feature."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metabilevel import MLP, InputError, Learner

from .libsvm_data import FEATURES, examples
from .splits import Examples, HeldOut, hold_out


def logistic_loss(outputs: Float[Array, "n 1"], targets: Int[Array, " n"]) -> Float[Array, ""]:
    """Mean over examples of log(1 + exp(-s z)) in nats, for outputs z and s = 1 for target 1, s = -1 for target 0."""
    return jax.nn.softplus(jnp.where(targets == 1, -1, 1) * outputs[:, 0]).mean()


def sign_accuracy(outputs: Float[Array, "n 1"], targets: Int[Array, " n"]) -> dict[str, Float[Array, ""]]:
    """The fraction of examples whose output is positive for target 1, and is not for target 0."""
    return {"accuracy": jnp.mean((outputs[:, 0] > 0) == (targets == 1), dtype=outputs.dtype)}


def libsvm(
    *,
    name: Literal["a9a", "w8a", "mushrooms", "ijcnn1"] = "a9a",
    train: int | None = None,
    valid: int | None = None,
    test: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> HeldOut:
    """Two classes of d features, cut in three: one task; a linear model with one output, logistic loss and accuracy.

    The query is for validation, or for the test. Weights [d, 1] and the bias start from zero; features are used as
    they are, 0 or 1 except in ijcnn1.

    **Arguments:**

    - `name`: a9a (d = 123; 32,561 examples, and 16,281 of the test), w8a (300; 49,749, 14,951), mushrooms (112;
      5,416, 2,708: a third that is the same for every seed, since there is no official test part) or ijcnn1 (22;
      49,990, 91,701).
    - `train`: examples that are trained on, the support; half of those that are not of the test if none.
    - `valid`: examples for validation, the query in training; the other half if none.
    - `test`: examples of the test, the query at test; all of them if none.
    - `noise`: fraction of the training labels that are turned round; `Episode.truth` has which.
    - `seed`: of the cut and of the noise.

    **Raises:** `InputError` for sizes that the data do not have, `DataError` where the data cannot be had.
    """
    if name not in FEATURES:
        raise InputError(f"name = {name!r}: one of {', '.join(FEATURES)} is wanted.")
    training, testing = _parts(name)
    half = len(training.labels) // 2
    return hold_out(
        Learner(MLP(FEATURES[name], (), 1, init_weights="zeros"), logistic_loss, sign_accuracy, ways=(2, 2)),
        training,
        testing,
        classes=2,
        train=half if train is None else train,
        valid=half if valid is None else valid,
        test=len(testing.labels) if test is None else test,
        seed=seed,
        noise=noise,
        prepare=lambda inputs: jnp.asarray(inputs, float),
    )


def _parts(name: str) -> tuple[Examples, Examples]:
    """What is for training and validation, and what is for the test."""
    arrays = examples()
    training, *testing = (
        Examples(arrays[f"{name}_{part}_inputs"], arrays[f"{name}_{part}_labels"])
        for part in ("train", "test")
        if f"{name}_{part}_labels" in arrays
    )
    if testing:
        return training, testing[0]
    order = np.random.default_rng(0).permutation(len(training.labels))
    third = len(order) // 3
    return training.take(order[third:]), training.take(order[:third])
