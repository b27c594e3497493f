"""Exploding and vanishing gradients along the inner path."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ..adjoints import AbstractAdjoint, Unroll, solved
from ..figures import Curve, Panel
from ..info import norm
from ..method import Method
from ..problem import Inner, Key, Outer, Task, canonical
from ..tasks import TaskDistribution
from .diagnosis import Diagnosis, increasing, iterative, over_tasks, require_outer

_STATISTICS = {"median": 0.5, "95th percentile": 0.95, "max": 1.0}
_TITLES = {
    "outer gradient": "|dF/dx|",
    "first-order gradient": "|dF/dx| without the inner Hessians",
    "inner Jacobian": "|dy_k/dy_0 v|,  |v| = 1",
}


def gradients(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    *,
    key: Key,
    steps: Sequence[int] = (1, 2, 5, 10, 20, 50),
    episodes: int = 100,
    split: str = "test",
) -> Diagnosis:
    """How the outer gradient and the inner path's Jacobian grow or vanish with the number k of inner steps.

    For every task, of the method's adaptation at test,

        |dF(x, y_k(x))/dx|,  exact and first-order,    and    |J_k v|,  J_k = dy_k/dy_0 at fixed x

    with one random unit vector v for all tasks. For gradient descent of rate a, J_k is the product of I - a H(y_i):
    it grows where a H has eigenvalues above 2 or below 0, and vanishes otherwise.

    **Arguments:** `steps`: the numbers k, each compiled anew; `episodes`: tasks of `split`.

    **Returns:** a row for each k and quantity: its median, 95th percentile and maximum over tasks, and how many tasks
    had a value that is not finite; these count as infinite.

    **Raises:** `NotApplicable` where the inner solver takes no steps, or where there is no outer variable.
    """
    iterative(method, "gradients")
    require_outer(x, "gradients")
    x, wanted = canonical(x, "x"), increasing(steps)
    k_tasks, k_direction = jax.random.split(key)
    judge = lambda one: over_tasks(one, method, x, tasks, k_tasks, episodes, split)
    exact, first_order = ([judge(partial(_gradient_norm, way, k)) for k in wanted] for way in (Unroll(), Unroll(True)))
    columns = (exact, first_order, judge(partial(_growth, wanted, k_direction)))
    norms = dict(zip(_TITLES, columns, strict=True))
    rows = [
        {"steps": k, "norm": name, **_statistics(values)}
        for name, column in norms.items()
        for k, values in zip(wanted, column, strict=True)
    ]
    panels = [_panel(name, [row for row in rows if row["norm"] == name]) for name in norms]
    caption = f"norms over {episodes} {split} tasks; nonfinite: tasks whose norm is none, counted as infinite"
    return Diagnosis("gradients", caption, tuple(rows), tuple(panels))


def _gradient_norm(adjoint: AbstractAdjoint, k: int, method: Method, x: Outer, task: Task, key: Key) -> Array:
    solver = replace(iterative(method, "gradients"), steps=k)
    return norm(jax.grad(lambda x: solved(method.problem, solver, adjoint, x, task, key)[0])(x))


def _growth(steps: list[int], direction: Key, method: Method, x: Outer, task: Task, key: Key) -> list[Array]:
    z, y0, k_inner = method.problem.begin(x, task, key)
    solver = iterative(method, "gradients")

    def walk(y: Inner) -> list[Inner]:
        point, done, seen = (y, solver.init(z, y)), 0, []
        for stop in steps:
            point, _ = solver.path(method.problem, z, point, task, k_inner, start=done, length=stop - done)
            done = stop
            seen.append(point[0])
        return seen

    return [norm(tangent) for tangent in jax.jvp(walk, (y0,), (unit(direction, y0),))[1]]


def unit(key: Key, like: PyTree) -> PyTree:
    """A vector of length 1 in a uniformly random direction, shaped like `like`."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    length = norm(drawn)
    return jax.tree.unflatten(structure, [a / length for a in drawn])


def _statistics(values: np.ndarray) -> dict[str, float | int]:
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # between two infinities numpy interpolates to NaN
        quantiles = np.quantile(np.where(finite, values, np.inf), list(_STATISTICS.values()))
    known = np.where(np.isnan(quantiles), np.inf, quantiles).tolist()
    return {**dict(zip(_STATISTICS, known, strict=True)), "nonfinite": int(np.sum(~finite))}


def _panel(name: str, rows: list[dict]) -> Panel:
    curves = [Curve(each, [row["steps"] for row in rows], [row[each] for row in rows]) for each in _STATISTICS]
    return Panel(name, "inner steps k", _TITLES[name], curves, log="xy")
