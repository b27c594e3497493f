"""Data cleaning on MNIST, as the public bilevel benchmark poses it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from metabilevel_tasks.mnist_data import MNIST

import metabilevel as mb
from metabilevel import data, errors

from .family import OneTask

PIXELS, CLASSES = 784, 10
DECAY = 0.2


class Numbered(NamedTuple):
    """Images, and the number of each among all training examples, which is the place of its weight in x."""

    pixels: Float[Array, "n 784"]
    number: Int[Array, " n"]


def bilevel_cleaning(*, corruption: float = 0.5, train: int = 20_000, valid: int = 5000, seed: int = 0) -> OneTask:
    """A weight sigmoid(x_i) for each example i of a softmax regression y [784, 10] on labels many of which are wrong.

    G = mean over i of sigmoid(x_i) loss_i(y) + .2 |y|^2, and F is the mean cross-entropy, in nats, on clean validation
    examples, with their `error`, a rate (the benchmark's dataset "mnist", which calls it accuracy). The query of the
    split test are the 10,000 official ones. Pixels are standardised, each by its mean and deviation over the training
    part. x starts at -2 and y at 0. `Episode.truth["corrupted"]` says which training labels are wrong.

    **Arguments:**

    - `corruption`: the probability that a training label is drawn anew, uniformly: it may be right by chance.
    - `train`: training examples, drawn from MNIST's 60,000.
    - `valid`: validation examples, drawn from the rest.
    - `seed`: of the examples and of the labels.

    **Raises:** `InputError` for a corruption outside [0, 1] or more examples than there are, `DataError` where the
    data cannot be had.
    """
    if not 0 <= corruption <= 1:
        raise mb.InputError(f"corruption = {corruption}: a probability, from 0 to 1, is wanted.")
    errors.count("train", train, 1)
    errors.count("valid", valid, 1)
    errors.count("seed", seed, 0)
    arrays = data.load(MNIST)
    images, true = arrays["train_images"].reshape(-1, PIXELS), arrays["train_labels"].astype(int)
    if train + valid > len(true):
        raise mb.InputError(f"train = {train} and valid = {valid}: there are {len(true):,} examples for both together.")
    rng = np.random.default_rng(seed)
    trained, validated = np.split(rng.permutation(len(true))[: train + valid], [train])
    labels = np.where(rng.random(train) < corruption, rng.integers(0, CLASSES, train), true[trained])
    mean, deviation = images[trained].mean(0), images[trained].std(0)
    deviation[deviation == 0] = 1  # of a pixel that is always black
    standard = lambda pixels: jnp.asarray((pixels.reshape(-1, PIXELS) - mean) / deviation, float)
    support = mb.Data(Numbered(standard(images[trained]), jnp.arange(train)), jnp.asarray(labels))
    query = mb.Data(standard(images[validated]), jnp.asarray(true[validated]))
    test = mb.Data(standard(arrays["test_images"]), jnp.asarray(arrays["test_labels"].astype(int)))

    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros((PIXELS, CLASSES)),
        inner_loss=_weighted,
        outer_loss=_judged,
    )
    subject = mb.Posed(problem, lambda key: -2 * jnp.ones(train), mb.JaxoptSolver("LBFGS", maxiter=200, tol=1e-5))
    return OneTask(subject, mb.Episode(support, query, {"corrupted": jnp.asarray(labels != true[trained])}), test)


def _weighted(x: Any, y: Any, task: Any, key: Any) -> Any:
    (pixels, number), labels = task.support
    weights = jax.nn.sigmoid(x[number])
    return jnp.mean(weights * _cross_entropies(pixels @ y, labels)) + DECAY * jnp.sum(y**2)


def _judged(x: Any, y: Any, task: Any, key: Any) -> Any:
    pixels, labels = task.query
    logits = pixels @ y
    return _cross_entropies(logits, labels).mean(), {"error": jnp.mean(logits.argmax(1) != labels, dtype=logits.dtype)}


def _cross_entropies(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
