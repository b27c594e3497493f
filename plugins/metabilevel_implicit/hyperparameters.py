"""Weight decay, one or millions, by the implicit function theorem."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from metabilevel import Implicit, InputError, Learner, Method

from .tuning import Inverse, Optimizer, descent, tuning
from .tuning import inverse as by_name

Per = Literal["net", "leaf", "weight"]


def implicit_hpo(
    learner: Learner,
    *,
    per: Per = "leaf",
    decay: float = 1e-3,
    inverse: Inverse = "neumann",
    terms: int = 20,
    scale: float | None = None,
    damping: float = 0.0,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.1,
    steps: int = 10,
    test_steps: int = 500,
    warm_start: bool = True,
) -> Method:
    """Hyperparameters by implicit differentiation (Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590):

        minimise over x   loss of y(x) on the query set,   y(x) = argmin_y  loss on the support set + sum exp(x) y^2 / 2

    with x the logarithm of a weight decay, one for the net, for each of its arrays, or for every weight. The inner
    problem is followed by a few steps between outer ones, from where it stood.

    **Arguments:**

    - `per`: what has a decay of its own.
    - `decay`: at the start; positive.
    - `inverse`: of the inner Hessian.
    - `terms`: of the Neumann series, iterations of another inverse, or the rank of Nystrom's.
    - `scale`: of the Neumann series, the inner learning rate in the paper; 1 / the largest eigenvalue if not given.
    - `damping`: of conjugate gradients and Nystrom.
    - `optimizer`: of the inner problem, on the full batch.
    - `learning_rate`: of that optimizer; sgd diverges where a decay outgrows 2 / learning_rate.
    - `steps`: of that optimizer between two outer steps.
    - `test_steps`: from a fresh start, to judge x.
    - `warm_start`: whether the weights are kept from one outer step to the next.

    **Raises:** `InputError` for a decay without a logarithm, or an option that the inverse has no use for.
    """
    if not decay > 0:
        raise InputError(f"decay = {decay}: a positive number is wanted, of which x is the logarithm.")
    adjoint = Implicit(by_name(inverse, terms, scale, damping))
    solver = lambda steps: descent(optimizer, learning_rate, steps)
    inner_loss = lambda x, y, task: learner.fit(y, task.support) + penalty(x, y)
    return tuning(
        learner, lambda key: decays(learner, per, decay, key), inner_loss,
        solver=solver(steps), adjoint=adjoint, test_solver=solver(test_steps), warm_start=warm_start,
    )  # fmt: skip


def t1t2(
    learner: Learner,
    *,
    per: Per = "leaf",
    decay: float = 1e-3,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.1,
    steps: int = 1,
    test_steps: int = 500,
) -> Method:
    """T1-T2 (Luketina et al. 2016, arXiv:1511.06727): `implicit-hpo` with the inner Hessian taken for the identity.

    **Arguments:**

    - `per`: what has a decay of its own.
    - `decay`: at the start; positive.
    - `optimizer`: of the inner problem, on the full batch.
    - `learning_rate`: of the inner optimizer.
    - `steps`: of the inner optimizer between two outer steps.
    - `test_steps`: of the inner optimizer from a fresh start, to judge x.
    """
    return implicit_hpo(
        learner, per=per, decay=decay, inverse="identity", optimizer=optimizer, learning_rate=learning_rate,
        steps=steps, test_steps=test_steps,
    )  # fmt: skip


def weight_decay(
    learner: Learner,
    *,
    decay: float = 1e-3,
    inverse: Inverse = "neumann",
    terms: int = 5,
    scale: float | None = None,
    optimizer: Optimizer = "adam",
    learning_rate: float = 1e-3,
    steps: int = 25,
    test_steps: int = 500,
) -> Method:
    """A weight decay for every weight, a million of them for a net of a million: `implicit-hpo` with `per` = weight.

    **Arguments:**

    - `decay`: at the start; positive.
    - `inverse`: of the inner Hessian.
    - `terms`: of the Neumann series, iterations of another inverse, or the rank of Nystrom's.
    - `scale`: of the Neumann series; 1 / the largest eigenvalue if not given.
    - `optimizer`: of the inner problem, on the full batch.
    - `learning_rate`: of the inner optimizer.
    - `steps`: of the inner optimizer between two outer steps.
    - `test_steps`: of the inner optimizer from a fresh start, to judge x.
    """
    return implicit_hpo(
        learner, per="weight", decay=decay, inverse=inverse, terms=terms, scale=scale, optimizer=optimizer,
        learning_rate=learning_rate, steps=steps, test_steps=test_steps,
    )  # fmt: skip


def decays(learner: Learner, per: Per, decay: float, key: Any) -> Any:
    """log decays: a scalar, a scalar for each array, or an array like each array of the parameters."""
    log = jnp.log(jnp.asarray(decay, float))
    if per == "net":
        return log
    shape = lambda a: a.shape if per == "weight" else ()
    return jax.tree.map(lambda a: jnp.full(shape(a), log), jax.eval_shape(learner.init, key))


def penalty(x: Any, y: Any) -> Any:
    """sum exp(x) y^2 / 2, with x as `decays` gives it."""
    logs = jax.tree.map(lambda _: x, y) if isinstance(x, jax.Array) else x
    return sum(jax.tree.leaves(jax.tree.map(lambda log, a: jnp.sum(jnp.exp(log) * a**2) / 2, logs, y)))
