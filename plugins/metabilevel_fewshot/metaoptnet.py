"""MetaOptNet (Lee, Maji, Ravichandran & Soatto 2019, arXiv:1904.03758): a convex problem as the head."""

from typing import Literal

import jax.numpy as jnp

from metabilevel import Learner, Method, simplex_qp, simplex_residual

from .heads import among, closed_form, one_hot, positive
from .ridge import r2d2


def metaoptnet(
    learner: Learner,
    *,
    head: Literal["svm", "ridge"] = "svm",
    c: float = 0.1,
    ridge: float = 1.0,
    scale: float = 1.0,
    solver: Literal["admm", "interior-point"] = "admm",
    iterations: int | None = None,
) -> Method:
    """MetaOptNet: the head is the multi-class SVM of Crammer & Singer (2001) on the features of the support set.

    Its dual, with K = F F^T, one-hot labels Y and b = c Y - alpha,

        y = argmin_b  tr(b^T K b) / 2 + tr(b^T (Y - c K Y))   with every row of b >= 0 and of sum c,

    is solved by `simplex_qp` and differentiated through its optimality conditions; outputs = scale f F^T (c Y - y).
    The certificate's inner residual is that of the conditions. With a ridge regression as the head (MetaOptNet-RR) it
    is `r2d2` with a fixed ridge.

    **Arguments:**

    - `head`: the support vector machine, or the ridge regression.
    - `c`: of the machine, weight of the errors against the margin; positive.
    - `ridge`: of the regression, strength of the penalty; positive.
    - `scale`: of the outputs, at the start of training; an outer variable.
    - `solver`: of the quadratic program; interior-point is the slower reference for admm.
    - `iterations`: of that solver; 100 of admm and 15 of interior-point if none.
    """
    if head == "ridge":
        return r2d2(learner, ridge=ridge, scale=scale, learn_ridge=False)
    positive("c", c)
    if iterations is not None:
        positive("iterations", iterations)

    def program(support):
        labels = one_hot(learner, support)
        kernel = support.inputs @ support.inputs.T
        return kernel, labels - c * kernel @ labels, c, labels.any(0)

    def inner_loss(x, y, support):
        kernel, linear, *_ = program(support)
        return jnp.sum(y * (kernel @ y)) / 2 + jnp.sum(linear * y)

    def outputs(x, y, support, features):
        labels = one_hot(learner, support)
        return among(labels, x["scale"] * (features @ support.inputs.T) @ (c * labels - y))

    return closed_form(
        learner,
        lambda x, support: simplex_qp(*program(support), solver=solver, iterations=iterations),
        inner_loss,
        outputs,
        init=lambda key: {"scale": jnp.asarray(scale, float)},
        stationarity=lambda x, y, support: simplex_residual(*program(support), y),
    )
