"""20 newsgroups as one task, with sparse inputs: softmax regression on the words of a post."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from metabilevel import AbstractNetwork, InputError, classification, data, errors

from .newsgroups_data import counts
from .splits import Examples, HeldOut, hold_out

_GROUPS = 20
_PARTS = ("train", "test")
_SLOTS = 32  # entries of a row that are added at once


class SparseLinear(AbstractNetwork):
    """outputs_i = sum_j values_ij W[columns_ij] + b, for rows that are kept as their entries, from W and b of zero.

    Inputs are `{"columns": integers [n, m], "values": [n, m]}`, of which some values are 0 where a row has fewer than
    m entries; m is a multiple of 32. The body is the sum, W [columns, outputs] its parameter, and b is the head's. The
    sum is taken 32 entries at a time, so that no array has n m outputs numbers, and its derivative is a scatter-add.
    """

    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    @property
    def batch_statistics(self) -> bool:
        return False

    @property
    def outputs(self) -> int:
        return self.out_size

    def init(self, key):
        return {
            "body": {"weights": jnp.zeros((self.in_size, self.out_size))},
            "head": {"bias": jnp.zeros(self.out_size)},
        }

    def activations(self, params, inputs, key=None):
        weights, n = params["weights"], len(inputs["columns"])
        slots = jax.tree.map(lambda a: a.reshape(n, -1, _SLOTS).swapaxes(0, 1), inputs)
        add = lambda sums, slot: sums + jnp.einsum("nm,nmk->nk", slot["values"], weights[slot["columns"]])
        start = jnp.zeros((n, self.out_size), jnp.result_type(weights, inputs["values"]))
        return [jax.lax.scan(lambda sums, slot: (add(sums, slot), None), start, slots)[0]]

    def body(self, params, inputs, key=None):
        return self.activations(params, inputs, key)[-1]

    def head(self, params, features):
        return features + params["bias"]


def newsgroups(
    *,
    words: int = 10_000,
    longest: int = 512,
    train: int = 1000,
    valid: int = 1000,
    test: int = 2000,
    noise: float = 0.0,
    seed: int = 0,
) -> HeldOut:
    """Posts of 20 groups, cut in three: one task; softmax regression on their words, cross-entropy and accuracy.

    The query is for validation, or for the test. 11,314 posts are for training and validation, 7,532 later ones for
    the test; headers, footers and quotes are not removed. A word that occurs c times in a post and in d of the 11,314
    has the value (1 + log c) (1 + log(11315 / (1 + d))) there, and a post's values are divided by their Euclidean
    norm. So gradients are small, and learning rates of gradient descent large: about 30.

    **Arguments:**

    - `words`: the number of features, those words that the most of the 11,314 posts have; 130,107 for all.
    - `longest`: a post with more words keeps so many, of the largest values; all posts are whole from 5,888 on, and
      98 in 100 by default.
    - `train`: posts that are trained on, the support.
    - `valid`: posts for validation, the query in training.
    - `test`: posts of the test, the query at test.
    - `noise`: fraction of the training labels replaced by another group, drawn uniformly; `Episode.truth` has which.
    - `seed`: of the cut and of the noise.

    **Raises:** `InputError` for sizes that the data do not have, `DataError` where the data cannot be had.
    """
    errors.count("words", words, 1)
    errors.count("longest", longest, 1)
    arrays = counts()
    known = 1 + arrays["train_words"].max()
    if words > known:
        raise InputError(f"words = {words}: there are {known:,} words.")
    first = len(arrays["train_labels"])
    return hold_out(
        classification(SparseLinear(words, _GROUPS), ways=(_GROUPS, _GROUPS)),
        Examples(np.arange(first), arrays["train_labels"]),
        Examples(np.arange(first, first + len(arrays["test_labels"])), arrays["test_labels"]),
        classes=_GROUPS,
        train=train,
        valid=valid,
        test=test,
        seed=seed,
        noise=noise,
        prepare=weighted(arrays, words, longest).padded,
    )


class Rows(NamedTuple):
    """A sparse matrix: the entries of row i are those from `starts[i]` up to, not including, `starts[i + 1]`."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def padded(self, rows: np.ndarray) -> dict[str, Array]:
        """Those of the numbers `rows`, as `SparseLinear` takes them, with as many entries as the longest needs."""
        sizes = np.diff(self.starts)[rows]
        place = np.arange(-(-max(1, sizes.max()) // _SLOTS) * _SLOTS)
        entry = np.where(place < sizes[:, None], self.starts[rows, None] + place, -1)
        take = lambda entries: np.where(entry < 0, 0, entries[entry])
        return {"columns": jnp.asarray(take(self.columns), jnp.int32), "values": jnp.asarray(take(self.values), float)}


def weighted(arrays: data.Arrays, words: int, longest: int) -> Rows:
    """The values of all posts, training file first, for the `words` commonest words; see `newsgroups`."""
    word, count = (np.concatenate([arrays[f"{part}_{of}"] for part in _PARTS]) for of in ("words", "counts"))
    sizes = np.concatenate([np.diff(arrays[f"{part}_starts"]) for part in _PARTS])
    frequency = np.bincount(arrays["train_words"])
    column = np.argsort(np.argsort(-frequency, kind="stable"))[word]
    value = (1 + np.log(count)) * (1 + np.log((1 + len(arrays["train_labels"])) / (1 + frequency[word])))
    post = np.repeat(np.arange(len(sizes)), sizes)

    order = np.lexsort((-value, post))
    order = order[column[order] < words]
    rank = np.arange(len(order)) - np.searchsorted(post[order], post[order])
    kept = order[rank < longest]
    norm = np.sqrt(np.bincount(post[kept], value[kept] ** 2, len(sizes)))
    starts = np.searchsorted(post[kept], np.arange(len(sizes) + 1))
    return Rows(starts, column[kept], value[kept] / norm[post[kept]])
