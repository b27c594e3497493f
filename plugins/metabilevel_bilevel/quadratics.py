"""Quadratics of the public bilevel benchmark, with their value function in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import metabilevel as mb
from metabilevel import errors

from .family import OneTask


class Factors(NamedTuple):
    """The vectors a [n, d], b [n, k], c [n, k] and e [n, d] of the rank-one terms."""

    a: Float[Array, "n d"]
    b: Float[Array, "n k"]
    c: Float[Array, "n k"]
    e: Float[Array, "n d"]


class Value(NamedTuple):
    """h(x) = F(x, y*(x)) = x.Hx / 2 + s.x + h(0), with the symmetric `hessian` H [k, k] and the `slope` s [k]."""

    hessian: Float[Array, "k k"]
    slope: Float[Array, " k"]
    constant: Float[Array, ""]

    def __call__(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        """h(x)."""
        return x @ self.hessian @ x / 2 + self.slope @ x + self.constant

    def gradient(self, x: Float[Array, " k"]) -> Float[Array, " k"]:
        """dh/dx."""
        return self.hessian @ x + self.slope

    def gap(self, x: Float[Array, " k"]) -> Float[Array, ""]:
        """h(x) - min h = d.Hd / 2 for d = x - `minimiser`: no difference of nearly equal numbers."""
        d = x - self.minimiser
        return d @ self.hessian @ d / 2

    @property
    def minimiser(self) -> Float[Array, " k"]:
        """Where h is least."""
        return -jnp.linalg.solve(self.hessian, self.slope)


def loss(x: Float[Array, " k"], y: Float[Array, " d"], part: mb.Data) -> Float[Array, ""]:
    """Mean over the examples of a part of a task; see `bilevel_quadratics`."""
    a, b, c, e = part.inputs
    terms = ((a @ y) ** 2 + (b @ x) ** 2) / 2 + (c @ x) * (e @ y) + part.targets @ jnp.concatenate([y, x])
    return terms.mean()


def mean_form(part: mb.Data) -> tuple[Float[Array, "dk dk"], Float[Array, " dk"]]:
    """M and l with loss(x, y) = z.Mz / 2 + l.z for z = (y, x)."""
    a, b, c, e = part.inputs
    gram = lambda u, v: u.T @ v / len(u)
    return jnp.block([[gram(a, a), gram(e, c)], [gram(c, e), gram(b, b)]]), part.targets.mean(0)


def inner_solution(task: mb.Episode) -> tuple[Float[Array, "d k"], Float[Array, " d"]]:
    """J and y*(0) of y*(x) = J x + y*(0), where dG/dy = 0."""
    m, linear = mean_form(task.support)
    d = task.support.inputs.a.shape[1]
    solved = -jnp.linalg.solve(m[:d, :d], jnp.concatenate([m[:d, d:], linear[:d, None]], 1))
    return solved[:, :-1], solved[:, -1]


def value_function(task: mb.Episode) -> Value:
    """h: F along the plane z = P x + p of the points (y*(x), x)."""
    jacobian, start = inner_solution(task)
    m, linear = mean_form(task.query)
    k = jacobian.shape[1]
    plane, origin = jnp.concatenate([jacobian, jnp.eye(k)]), jnp.concatenate([start, jnp.zeros(k)])
    return Value(plane.T @ m @ plane, plane.T @ (m @ origin + linear), origin @ m @ origin / 2 + linear @ origin)


def bilevel_quadratics(
    *,
    train: int = 32_768,
    valid: int = 1024,
    inner_dimension: int = 100,
    outer_dimension: int = 10,
    mu: float = 0.1,
    cross: float = 0.1,
    seed: int = 0,
) -> OneTask:
    """Quadratics of y in R^d and x in R^k, from x = (-2, ..., -2) and y = 0; both losses are means over examples of

        (a.y)^2 / 2 + (b.x)^2 / 2 + (c.x) (e.y) + l.(y, x)

    with vectors of their own (the benchmark's dataset "quadratic"). a and b are normal, with covariances of
    eigenvalues from mu to 1, evenly spaced in the logarithm; one eigenvalue of b's is 0. c = U S u and e = V u share a
    normal u, with orthogonal U and V, and S has singular values from mu to `cross`; l is standard normal.

    The benchmark keeps the matrices a a^T, b b^T and c e^T of every example. Here their factors are kept, 3 (d + k)
    numbers in place of d^2 + k^2 + dk + d + k: a thirty-fourth for d = 100 and k = 10.

    **Arguments:**

    - `train`: examples of the inner loss.
    - `valid`: examples of the outer loss.
    - `inner_dimension`: d.
    - `outer_dimension`: k.
    - `mu`: the least positive eigenvalue, and the least singular value of the cross terms; above 0 and up to 1.
    - `cross`: the largest singular value of the cross terms.
    - `seed`: of all vectors.

    **Raises:** `InputError` for counts below 1, mu or cross out of range, or a value function without a minimum.
    """
    sizes = {"train": train, "valid": valid, "inner_dimension": inner_dimension, "outer_dimension": outer_dimension}
    for name, size in sizes.items():
        errors.count(name, size, 1)
    errors.count("seed", seed, 0)
    errors.number("cross", cross, 0, above=True)
    if not 0 < mu <= 1:
        raise mb.InputError(f"mu = {mu}: an eigenvalue above 0 and up to 1, the largest one, is wanted.")
    rng = np.random.default_rng(seed)
    draw = lambda n: _examples(rng, n, inner_dimension, outer_dimension, mu, cross)
    task = mb.Episode(draw(train), draw(valid))
    least = jnp.linalg.eigvalsh(value_function(task).hessian)[0]
    if not least > 0:
        wrong = f"the least curvature of its value function is {least:.3g}, so that it has no minimum"
        raise mb.InputError(f"seed = {seed}, train = {train}: {wrong}. Take another seed, more examples or less cross.")

    def solution(x, task):
        jacobian, start = inner_solution(task)
        return jacobian @ x + start

    problem = mb.BilevelProblem(
        init=lambda x, task, key: jnp.zeros(inner_dimension),
        inner_loss=lambda x, y, task, key: loss(x, y, task.support),
        outer_loss=lambda x, y, task, key: loss(x, y, task.query),
    )
    subject = mb.Posed(problem, lambda key: -2 * jnp.ones(outer_dimension), mb.ClosedForm(solution))
    return OneTask(subject, task)


def _examples(rng: np.random.Generator, n: int, d: int, k: int, mu: float, cross: float) -> mb.Data:
    """n of them, drawn in double precision."""
    turned = lambda size, *given: np.linalg.svd(rng.normal(size=(size, *given)))

    def correlated(roots: np.ndarray) -> np.ndarray:
        u = turned(len(roots), 1)[0]
        return rng.normal(size=(n, len(roots))) @ (u * roots) @ u.T

    a = correlated(np.sqrt(np.geomspace(mu, 1, d)))
    b = correlated(np.append(0, np.sqrt(np.geomspace(mu, 1, k - 1))))
    u, _, v = turned(k, d)
    least, shared = min(d, k), rng.normal(size=(n, d))
    c = shared[:, :least] * np.geomspace(mu, cross, least) @ u[:, :least].T
    factors = Factors(*(jnp.asarray(each, float) for each in (a, b, c, shared @ v.T)))
    return mb.Data(factors, jnp.asarray(rng.normal(size=(n, d + k)), float))
