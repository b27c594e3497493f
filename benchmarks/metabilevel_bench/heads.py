"""The support vector machine alone (Crammer & Singer's dual), on given features: 8 episodes, 5-way 5-shot.

Features are normal; many entries of the solution are zero, and some just so. There implicit gradients of general
solvers of quadratic programs go wrong. The truth is an interior point's, in double precision.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import optax

import metabilevel as mb
from metabilevel.bench import Case, Race, compiled

from . import PEERS

EPISODES, WAYS, SHOTS, WIDTH, C = 8, 5, 5, 64, 0.1
KEY = jax.random.key(0)


def mean_loss(solve: Callable[..., Any], x: Any, labels: Any) -> Any:
    """The query loss of all episodes; `solve(kernel, linear) -> b`."""

    def one(support: Any, query: Any) -> Any:
        one_hot, kernel = jax.nn.one_hot(labels, WAYS, dtype=support.dtype), support @ support.T
        dual = solve(kernel, one_hot - C * kernel @ one_hot)
        outputs = x[2] * query @ support.T @ (C * one_hot - dual)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    return jax.vmap(one)(*x[:2]).mean()


def osqp(kernel: Any, linear: Any) -> Any:
    """jaxopt's solver, with its implicit derivative, on dense matrices (by products alone it takes far longer)."""
    n, k = linear.shape
    quadratic, sums = jnp.kron(kernel, jnp.eye(k)), jnp.kron(jnp.eye(n), jnp.ones((1, k)))
    equal, least = (sums, jnp.full(n, C)), (-jnp.eye(n * k), jnp.zeros(n * k))
    given = {"params_obj": (quadratic, linear.ravel()), "params_eq": equal, "params_ineq": least}
    return jaxopt.OSQP().run(**given).params.primal.reshape(n, k)


def projected(kernel: Any, linear: Any) -> Any:
    """jaxopt's projected gradient, with its implicit derivative."""
    project = lambda b, _: jax.vmap(lambda row: jaxopt.projection.projection_simplex(row, C))(b)
    loss = lambda b, kernel, linear: jnp.sum(b * (kernel @ b)) / 2 + jnp.sum(linear * b)
    solver = jaxopt.ProjectedGradient(loss, project, tol=1e-5, maxiter=1000)
    return solver.run(jnp.full(linear.shape, C / linear.shape[1]), None, kernel, linear).params


def build(quick: bool) -> Case:
    """Small sizes are 2 episodes."""
    episodes, labels = 2 if quick else EPISODES, jnp.repeat(jnp.arange(WAYS), SHOTS)
    k_means, k_noise = jax.random.split(KEY)
    means = jax.random.normal(k_means, (episodes, 1, WAYS, 1, WIDTH))
    features = means + jax.random.normal(k_noise, (episodes, 2, WAYS, SHOTS, WIDTH))
    features = features.reshape(episodes, 2, WAYS * SHOTS, WIDTH)
    x = (features[:, 0], features[:, 1], jnp.ones(()))
    gradient = lambda solve: jax.value_and_grad(partial(mean_loss, solve))
    with jax.enable_x64(True):
        exact = lambda kernel, linear: mb.simplex_qp(kernel, linear, C, solver="interior-point", iterations=30)
        truth = jax.device_get(jax.jit(gradient(exact))(*jax.tree.map(lambda a: jnp.asarray(a, float), (x,)), labels))
    library = lambda kernel, linear: mb.simplex_qp(kernel, linear, C)
    interior = lambda kernel, linear: mb.simplex_qp(kernel, linear, C, solver="interior-point")
    solvers = {"metabilevel": library, "metabilevel, interior point": interior, "jaxopt OSQP": osqp,
               "jaxopt projected gradient": projected}  # fmt: skip
    repeated = jnp.broadcast_to(labels, (episodes, len(labels)))
    return Case(
        {name: compiled(gradient(solve), x, labels) for name, solve in solvers.items()},
        truth=truth,
        x=x,
        arrays={"support.targets": repeated, "query.targets": repeated, "ways": WAYS, "c": C},
        gradient_tolerance=1e-4,
    )


HEAD = Race("svm-head", "The support vector machine and its gradient, 8 episodes, 5-way 5-shot, 64 features.",
            build, {"jaxopt OSQP": 8.0, "qpth": 5.0}, PEERS)  # fmt: skip
