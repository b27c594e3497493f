"""Supervised learners: the commonest inner problem, written once."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .networks import AbstractNetwork
from .problem import Inner, Key, Metrics, Scalar, Task
from .tasks import Data, Inputs

Loss: TypeAlias = Callable[[Array, Array], Scalar]


class Learner(eqx.Module):
    """A network with its loss and the protocol by which it is judged.

    **Arguments:**

    - `network`: parameters are `{"body": ..., "head": ...}`, outputs are `head(body(inputs))`.
    - `loss(outputs, targets) -> scalar`, `metrics(outputs, targets) -> {name: scalar}`.
    - `transductive`: matters where one example's output depends on the others (batch statistics). If true, the
      queries are normalised together, and so inform one another; if false, each query is predicted in a batch of
      the support set and itself alone (Nichol et al. 2018, section 6.1).
    - `oracle(task, inputs) -> outputs`: the best possible prediction, where the truth behind a task is known.
    - `pool`: how many training tasks there are, where they are finitely many and carry their number (`Episode.id`).
    - `ways`: the classes of a training task and of a test task, where there are classes.
    - `note`: what else must be said beside every accuracy, such as which part of a data set there is.
    """

    network: AbstractNetwork
    loss: Loss
    metrics: Callable[[Array, Array], Metrics] = lambda outputs, targets: {}
    transductive: bool = eqx.field(static=True, default=True)
    oracle: Callable[[Task, Array], Array] | None = None
    pool: int | None = eqx.field(static=True, default=None)
    ways: tuple[int, int] | None = eqx.field(static=True, default=None)
    note: str = eqx.field(static=True, default="")

    def init(self, key: Key) -> Inner:
        return self.network.init(key)

    @property
    def protocol(self) -> str:
        """How the queries were normalised, and the `note`; printed beside every accuracy."""
        how = "transductive" if self.transductive else "non-transductive"
        how = how if self.network.batch_statistics else "no batch statistics"
        return f"{how}; {self.note}" if self.note else how

    def predict(self, params: Inner, inputs: Inputs) -> Array:
        """Outputs [n, ...] of one batch."""
        return self.network.head(params["head"], self.network.body(params["body"], inputs))

    def fit(self, params: Inner, data: Data) -> Scalar:
        """The loss on `data`: an inner objective."""
        return self.loss(self.predict(params, data.inputs), data.targets)

    def test(self, params: Inner, query: Data, support: Data) -> tuple[Scalar, Metrics]:
        """The loss and metrics on `query` under the learner's protocol: an outer objective."""
        features = self.features(params["body"], query.inputs, support.inputs)
        return self.judge(self.network.head(params["head"], features), query)

    def features(self, body: Inner, query: Inputs, support: Inputs, key: Key | None = None) -> Array:
        """Features [n, d] of the inputs `query` under the learner's protocol; `key` as in `AbstractNetwork.body`."""
        if self.transductive or not self.network.batch_statistics:
            return self.network.body(body, query, key)
        append = lambda examples, one: jnp.concatenate([examples, one[None]])
        return jax.vmap(lambda q: self.network.body(body, jax.tree.map(append, support, q), key)[-1])(query)

    def judge(self, outputs: Array, query: Data) -> tuple[Scalar, Metrics]:
        """The loss and metrics of given outputs."""
        return self.loss(outputs, query.targets), self.metrics(outputs, query.targets)


def squared_error(outputs: Array, targets: Array) -> Scalar:
    """Mean over all entries of (outputs - targets)^2."""
    return jnp.mean((outputs - targets) ** 2)


def cross_entropy(outputs: Array, targets: Array) -> Scalar:
    """Mean over examples of -log softmax(outputs)[target], in nats; `targets` are integers below outputs.shape[-1]."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def accuracy(outputs: Array, targets: Array) -> Metrics:
    """The fraction of examples whose largest output is the target's."""
    return {"accuracy": jnp.mean(outputs.argmax(-1) == targets, dtype=outputs.dtype)}


def regression(network: AbstractNetwork, **fields: Any) -> Learner:
    """Mean squared error; `fields` are further ones of `Learner`."""
    return Learner(network, squared_error, **fields)


def classification(network: AbstractNetwork, *, transductive: bool = True, **fields: Any) -> Learner:
    """Cross-entropy, with the accuracy as a metric; `fields` are further ones of `Learner`."""
    return Learner(network, cross_entropy, accuracy, transductive=transductive, **fields)
