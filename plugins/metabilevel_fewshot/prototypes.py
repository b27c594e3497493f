"""Heads without a parameter: class means (prototypical networks) and the nearest examples (NIL)."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from metabilevel import Learner, Method

from .anil import anil
from .heads import among, closed_form, one_hot, positive
from .maml import maml


def protonet(learner: Learner) -> Method:
    """Prototypical networks: y are the class means of the features, outputs minus the squared distances to them.

    Snell, Swersky & Zemel 2017, arXiv:1703.05175: the closed-form head of no step and no parameter.
    """

    def formula(x, support):
        labels = one_hot(learner, support)
        return labels.T @ support.inputs / jnp.maximum(labels.sum(0), 1)[:, None]

    def inner_loss(x, y, support):
        labels = one_hot(learner, support)
        return jnp.sum((support.inputs - labels @ y) ** 2) / 2

    def outputs(x, y, support, features):
        distances = jnp.sum((features[:, None] - y) ** 2, -1)
        return among(one_hot(learner, support), -distances)

    return closed_form(learner, formula, inner_loss, outputs)


def nil(
    learner: Learner,
    *,
    train: Literal["anil", "maml", "nil"] = "anil",
    learning_rate: float = 0.1,
    steps: int = 5,
    scale: float = 10.0,
) -> Method:
    """No inner loop at test: the support labels, weighted by the cosine similarity of the features to the query's.

        outputs = log sum_i softmax_i(scale cos(f, f_i)) Y_i

    Raghu, Raghu, Bengio & Vinyals 2020, section 5.1. The body comes from training as ANIL or MAML, whose head is
    thrown away, or as this very classifier.

    **Arguments:**

    - `train`: what trains the body.
    - `learning_rate`, `steps`: of the inner loop of that training.
    - `scale`: of the cosines in the softmax; positive.
    """
    positive("scale", scale)

    def outputs(x, y, support, features):
        labels = one_hot(learner, support)
        weights = jax.nn.softmax(scale * _unit(features) @ _unit(support.inputs).T)
        return among(labels, jnp.log(jnp.maximum(weights @ labels, jnp.finfo(weights.dtype).tiny)))

    own = closed_form(learner, lambda x, support: {}, lambda x, y, support: jnp.zeros(()), outputs)
    if train == "nil":
        return own
    trained = {"anil": anil, "maml": maml}[train](replace(learner, ways=None), learning_rate=learning_rate, steps=steps)
    return replace(own, init=trained.init, estimator=trained.estimator)


def _unit(features):
    """Rows of length 1; a row of zeros stays what it is, with a finite derivative."""
    squares = jnp.sum(features**2, -1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(features.dtype).tiny))
