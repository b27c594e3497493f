"""Differentiable closed-form heads: R2-D2 and LR-D2 (Bertinetto, Henriques, Torr & Vedaldi 2019, arXiv:1805.08136)."""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from metabilevel import Learner, Method

from .heads import among, closed_form, is_labelled, one_hot, positive, with_bias


def ridge_regression(
    inputs: Float[Array, "n d"], targets: Float[Array, "n k"], strength: Float[Array, ""]
) -> Float[Array, "d k"]:
    """argmin over W of |X W - Y|^2 + strength |W|^2, by the smaller of two systems (the Woodbury identity).

        W = X^T (X X^T + strength I)^-1 Y   if n <= d,   else   (X^T X + strength I)^-1 X^T Y

    A positive strength makes the system positive definite; where it is too small for the precision at hand, the
    Cholesky factor and W are NaN, which training and evaluation report.
    """
    n, d = inputs.shape
    gram = inputs @ inputs.T if n <= d else inputs.T @ inputs
    factor = jax.scipy.linalg.cho_factor(gram + strength * jnp.eye(min(n, d)), lower=True)
    if n <= d:
        return inputs.T @ jax.scipy.linalg.cho_solve(factor, targets)
    return jax.scipy.linalg.cho_solve(factor, inputs.T @ targets)


def logistic_regression(
    inputs: Float[Array, "n d"], labels: Float[Array, "n k"], strength: Float[Array, ""], iterations: int
) -> Float[Array, "d k"]:
    """Newton's method (iteratively reweighted least squares) from W = 0 for k independent logistic regressions,

        minimise over W   sum of log(1 + exp((1 - 2 Y) * X W)) + strength |W|^2 / 2,    Y in {0, 1},

    each step a weighted ridge regression in the kernel form: W = X^T (X X^T + strength S^-1)^-1 Z with S = mu (1 - mu)
    and Z = X W + (Y - mu) / S (Bertinetto et al. 2019, section 3.2).
    """
    gram = inputs @ inputs.T

    def one_class(y):
        def step(scores, _):
            mu = jax.nn.sigmoid(scores)
            s = jnp.maximum(mu * (1 - mu), jnp.finfo(scores.dtype).eps)
            factor = jax.scipy.linalg.cho_factor(gram + jnp.diag(strength / s), lower=True)
            dual = jax.scipy.linalg.cho_solve(factor, scores + (y - mu) / s)
            return gram @ dual, dual

        return jax.lax.scan(step, jnp.zeros_like(y), length=iterations)[1][-1]

    return inputs.T @ jax.vmap(one_class, 1, 1)(labels)


def r2d2(learner: Learner, *, ridge: float = 1.0, scale: float = 10.0, learn_ridge: bool = True) -> Method:
    """R2-D2: the head is a ridge regression to one-hot labels on the features of the support set, in closed form.

        y = argmin_W |[f, 1] W - Y|^2 / n + ridge |W|^2,     outputs = scale [f, 1] y + bias

    x holds the body, log ridge, scale and bias. In regression Y are the targets themselves, and
    outputs = [f, 1] y. (The authors' ridge of 50 is for several thousand features.)

    **Arguments:**

    - `ridge`: strength of the penalty, at the start of training; positive.
    - `scale`: of the outputs, at the start of training.
    - `learn_ridge`: whether the strength is an outer variable.
    """
    fixed = math.log(positive("ridge", ridge))
    strength = lambda x: jnp.exp(x.get("log_ridge", fixed))
    wanted = lambda support: one_hot(learner, support) if is_labelled(support) else support.targets

    def formula(x, support):
        n = len(support.targets)
        return ridge_regression(with_bias(support.inputs), wanted(support), n * strength(x))

    def inner_loss(x, y, support):
        errors = with_bias(support.inputs) @ y - wanted(support)
        return jnp.sum(errors**2) / len(errors) + strength(x) * jnp.sum(y**2)

    def outputs(x, y, support, features):
        scores = with_bias(features) @ y
        return among(one_hot(learner, support), x["scale"] * scores + x["bias"]) if is_labelled(support) else scores

    init = lambda key: _scaled(scale) | ({"log_ridge": jnp.asarray(fixed, float)} if learn_ridge else {})
    return closed_form(learner, formula, inner_loss, outputs, init=init)


def lrd2(learner: Learner, *, ridge: float = 1.0, scale: float = 1.0, iterations: int = 5) -> Method:
    """LR-D2: the head is a logistic regression of each class against the others, by a few steps of Newton's method.

        y ~ argmin_W  sum over examples and classes of log(1 + exp(+-[f, 1] W)) + ridge |W|^2 / 2,
        outputs = scale [f, 1] y + bias

    x holds the body, log ridge, scale and bias. The certificate's inner residual says how far from converged y is.

    **Arguments:**

    - `ridge`: strength of the penalty, at the start of training; positive.
    - `scale`: of the outputs, at the start of training.
    - `iterations`: Newton steps (the paper: 1, 5, 10).
    """
    fixed, steps = math.log(positive("ridge", ridge)), int(positive("iterations", iterations))

    def formula(x, support):
        labels = one_hot(learner, support)
        return logistic_regression(with_bias(support.inputs), labels, jnp.exp(x["log_ridge"]), steps)

    def inner_loss(x, y, support):
        losses = optax.sigmoid_binary_cross_entropy(with_bias(support.inputs) @ y, one_hot(learner, support))
        return jnp.sum(losses) + jnp.exp(x["log_ridge"]) * jnp.sum(y**2) / 2

    def outputs(x, y, support, features):
        return among(one_hot(learner, support), x["scale"] * with_bias(features) @ y + x["bias"])

    init = lambda key: {**_scaled(scale), "log_ridge": jnp.asarray(fixed, float)}
    return closed_form(learner, formula, inner_loss, outputs, init=init)


def _scaled(scale: float) -> dict[str, Array]:
    return {"scale": jnp.asarray(scale, float), "bias": jnp.zeros(())}
