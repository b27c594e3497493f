"""One data set cut in three: the one task of hyperparameter optimisation and of data hyper-cleaning."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from metabilevel import Data, Episode, InputError, Learner, TaskDistribution, errors


class HeldOut(TaskDistribution):
    """One task, the same at every draw: `sample` uses no key, and one episode is an evaluation.

    The support is always the training part. The query is the validation part in the splits train and valid, and the
    test part in test: `fit` tunes hyperparameters on the validation part, and `evaluate` trains with them on the same
    training part and judges on a part by which nothing was chosen. `Episode.truth["corrupted"]` says which training
    labels are wrong, where labels were replaced.
    """

    single: ClassVar[bool] = True
    subject: Learner
    train: Data
    valid: Data
    test: Data
    corrupted: Bool[Array, " train"] | None = None

    def sample(self, key, split):
        truth = {} if self.corrupted is None else {"corrupted": self.corrupted}
        return Episode(self.train, self.test if split == "test" else self.valid, truth)


class Examples(NamedTuple):
    """A file's examples in main memory: arrays [n, ...], and the classes, integers [n]."""

    inputs: PyTree[np.ndarray]
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Examples":
        """Those of the numbers `rows`."""
        return jax.tree.map(lambda a: a[rows], self)


def hold_out(
    learner: Learner,
    training: Examples,
    testing: Examples,
    *,
    classes: int,
    train: int,
    valid: int,
    test: int,
    seed: int,
    noise: float,
    prepare: Callable[[Any], Any],
) -> HeldOut:
    """`valid` and then `train` examples of one shuffle of `training`, and `test` of one of `testing`.

    So the validation and test parts are the same whatever `train` and `noise` are.

    **Arguments:**

    - `learner`: its note is replaced by the sizes, which must be said beside every accuracy.
    - `classes`: of which `noise`, the fraction of the training labels that are replaced, draws a wrong one uniformly.
    - `seed`: of both shuffles, and of which labels are wrong.
    - `prepare(inputs) -> inputs`: from what is stored to floating arrays on the device.

    **Raises:** `InputError` for a size below 1 or above what there is, a negative seed, a noise outside [0, 1].
    """
    for name, size in {"train": train, "valid": valid, "test": test}.items():
        errors.count(name, size, 1)
    errors.count("seed", seed, 0)
    if train + valid > len(training.labels):
        sizes = f"train = {train} and valid = {valid}"
        raise InputError(f"{sizes}: there are {len(training.labels):,} examples for both together.")
    if test > len(testing.labels):
        raise InputError(f"test = {test}: there are {len(testing.labels):,} test examples.")
    if not 0 <= noise <= 1:
        raise InputError(f"noise = {noise}: a fraction of the training labels, from 0 to 1, is wanted.")
    rng = np.random.default_rng(seed)
    order, tested = rng.permutation(len(training.labels)), rng.permutation(len(testing.labels))[:test]
    inputs, labels = training.take(order[valid : valid + train])
    corrupted = np.zeros(train, bool)
    corrupted[rng.permutation(train)[: round(noise * train)]] = True
    labels = np.where(corrupted, (labels + rng.integers(1, classes, train)) % classes, labels)
    on_device = lambda inputs, labels: Data(prepare(inputs), jnp.asarray(labels, int))
    wrong = f" (labels {noise:.3g} wrong)" if noise else ""
    available = [f"{len(examples.labels):,}" for examples in (training, testing)]
    note = f"{train:,} training{wrong} and {valid:,} validation examples of {available[0]}"
    return HeldOut(
        subject=dataclasses.replace(learner, note=f"{note}, {test:,} test examples of {available[1]}"),
        train=on_device(inputs, labels),
        valid=on_device(*training.take(order[:valid])),
        test=on_device(*testing.take(tested)),
        corrupted=jnp.asarray(corrupted) if noise else None,
    )
