"""Single examples of a data set, for methods whose outer variable decides what they count for."""

from typing import Any

import jax
from jaxtyping import Array, Float

from metabilevel import Data, Learner


def losses(learner: Learner, y: Any, data: Data) -> Float[Array, " n"]:
    """The loss of every example alone."""
    alone = lambda output, target: learner.loss(output[None], target[None])
    return jax.vmap(alone)(learner.predict(y, data.inputs), data.targets)


def minibatch(data: Data, size: int | None, key: Any) -> Data:
    """`size` examples drawn with replacement; all of them if None."""
    if size is None:
        return data
    rows = jax.random.randint(key, (size,), 0, len(data.targets))
    return jax.tree.map(lambda a: a[rows], data)
