"""Regularisation selection on ijcnn1, as the public bilevel benchmark poses it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from metabilevel_tasks.libsvm_data import examples

import metabilevel as mb
from metabilevel import errors

from .family import OneTask

FEATURES = 22


def logistic(y: Float[Array, " d"], part: mb.Data) -> Float[Array, ""]:
    """Mean of log(1 + exp(-s a.y)) over examples a with s = 1 or -1, in nats."""
    return jax.nn.softplus(-part.targets * (part.inputs @ y)).mean()


def bilevel_ijcnn1(*, train: int = 49_990, valid: int = 91_701, seed: int = 0) -> OneTask:
    """A penalty exp(x_j) / 2 for each of the 22 weights y of a logistic regression without a bias.

    G = mean of log(1 + exp(-s a.y)) over the training examples + sum over j of exp(x_j) y_j^2 / 2, and F is the mean
    loss over the official test examples (the benchmark's dataset "ijcnn1"). The examples keep the order of the files.
    x starts as the logarithm of uniform numbers in (0, 1), y standard normal.

    **Arguments:**

    - `train`: examples of the inner loss, the first ones.
    - `valid`: examples of the outer loss, the first ones of the test.
    - `seed`: of the start, which is the same for every run.

    **Raises:** `InputError` for sizes that the data do not have, `DataError` where the data cannot be had.
    """
    errors.count("seed", seed, 0)
    arrays, parts = examples(), []
    for name, size, part in (("train", train, "train"), ("valid", valid, "test")):
        errors.count(name, size, 1)
        labels = arrays[f"ijcnn1_{part}_labels"][:size]
        if len(labels) < size:
            raise mb.InputError(f"{name} = {size}: ijcnn1 has {len(labels):,} such examples.")
        signs = jnp.where(jnp.asarray(labels) == 1, 1.0, -1.0)
        parts.append(mb.Data(jnp.asarray(arrays[f"ijcnn1_{part}_inputs"][:size], float), signs))
    k_outer, k_inner = jax.random.split(jax.random.key(seed))

    def inner_loss(x: Any, y: Any, task: Any, key: Any) -> Any:
        return logistic(y, task.support) + jnp.exp(x) @ y**2 / 2

    problem = mb.BilevelProblem(
        init=lambda x, task, key: jax.random.normal(k_inner, (FEATURES,)),
        inner_loss=inner_loss,
        outer_loss=lambda x, y, task, key: logistic(y, task.query),
    )
    start = lambda key: -jax.random.exponential(k_outer, (FEATURES,))  # in law the logarithm of a uniform number
    return OneTask(mb.Posed(problem, start, mb.JaxoptSolver("LBFGS", maxiter=500, tol=1e-6)), mb.Episode(*parts))
