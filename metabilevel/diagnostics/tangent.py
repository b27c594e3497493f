"""The tangent view of adaptation: the neural tangent kernel of one task, and the linearised network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..errors import count
from ..figures import Curve, Panel
from ..info import norm
from ..method import Method
from ..problem import BilevelProblem, Inner, Key, Outer, Scalar, canonical
from ..tasks import Episode, TaskDistribution
from .adapted import network
from .diagnosis import Diagnosis, NotApplicable, iterative, learner_of
from .probe import as_vectors

LARGEST = 1000  # rows of a kernel: each costs a gradient and a tangent of the network
SAME = 1e-2  # how far, relative to the way gone, the method may end from descent on the support loss alone


class View(NamedTuple):
    """The tangent view of one task from one start.

    - `eigenvalues`, largest first, and `alignment`, the fraction of |labels|^2 in the eigenvectors up to each.
    - On the queries, after 0, 1, ... steps: `change` |f(y_k) - f(y_0)|, `difference` |f(y_k) - f_lin(y_k_lin)|, and
      the losses of both.
    - `strayed`: how far the method's own path ends from this one, relative to the way gone.
    """

    eigenvalues: Float[Array, " rows"]
    alignment: Float[Array, " rows"]
    change: Float[Array, " points"]
    difference: Float[Array, " points"]
    loss: Float[Array, " points"]
    linear_loss: Float[Array, " points"]
    strayed: Scalar


def tangent(
    method: Method, x: PyTree, tasks: TaskDistribution, *, key: Key, steps: int | None = None, split: str = "test"
) -> Diagnosis:
    """Adaptation to one task beside that of the network's linearisation, from a fresh x and from the trained one.

    With J = df/dy at y_0, for the outputs f of the network on the support inputs and the y that adapts:

        kernel   Theta = J J^T, [n outputs, n outputs]        linearised   f_lin(y) = f(y_0) + J (y - y_0)

    Where the linearised network is a good stand-in, adaptation is kernel regression: labels in the leading
    eigenvectors of Theta are fitted first (Jacot et al. 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720).
    Labels are centred: each output's mean over the support set is taken off. The linearised network goes down its own
    support loss by the method's inner solver, with the same rate, and both are compared on the queries.

    **Arguments:** `steps`: inner steps; those of the method, and at least 10, if None.

    **Returns:** a row for each start and step: `change` |f(y_k) - f(y_0)|, `difference` |f - f_lin|, `relative`, the
    second over the first, and the query losses of both. The panels hold eigenvalues and alignment too.

    **Raises:** `NotApplicable` where the inner solver takes no steps, y holds no parameters of the network, the inner
    loss is another than the network's loss on the support set, or the kernel has more than 1000 rows.
    """
    solver = iterative(method, "tangent")
    learner_of(tasks, "tangent")
    k_fresh, k_task, k_adapt = jax.random.split(key, 3)
    steps = max(solver.steps, 10) if steps is None else count("steps", steps, 1)
    starts = {"fresh": method.init(k_fresh), "meta-trained": x}
    views = {
        name: jax.device_get(_view(method, canonical(start, "x"), tasks, k_task, k_adapt, split, steps))
        for name, start in starts.items()
    }
    for view in views.values():
        if view.strayed > SAME:
            raise NotApplicable(
                "tangent: this method's inner loss is not the network's loss on the support set alone (its path ends "
                f"{view.strayed:.2g} of its length away), and so the linearised network says nothing of it."
            )
    caption = f"one {split} task; 90% of |labels|^2 lies in the leading "
    caption += ", ".join(
        f"{_leading(view)} of {len(view.alignment)} components ({name})" for name, view in views.items()
    )
    rows = [row for name, view in views.items() for row in _rows(name, view)]
    return Diagnosis("tangent", caption, tuple(rows), _panels(views))


def _leading(view: View) -> int:
    """Components that hold nine tenths of the labels."""
    return int((view.alignment < 0.9).sum()) + 1


def _rows(name: str, view: View) -> list[dict[str, Any]]:
    columns = {
        "change": view.change[1:],
        "difference": view.difference[1:],
        "relative": _relative(view),
        "loss": view.loss[1:],
        "linearised_loss": view.linear_loss[1:],
    }
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"start": name, "step": k, **dict(zip(columns, line, strict=True))} for k, line in enumerate(lines, 1)]


def _relative(view: View) -> Any:
    """Of the steps from the first; NaN where nothing moved, or where both diverged."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return view.difference[1:] / view.change[1:]


def _known(view: View) -> Any:
    """The eigenvalues, and NaN for those of which rounding leaves nothing."""
    values = view.eigenvalues
    return np.where(values > len(values) * np.finfo(values.dtype).eps * values[0], values, np.nan)


def _panels(views: dict[str, View]) -> tuple[Panel, ...]:
    def curves(read: Callable[[View], Any], first: int = 1, suffix: str = "") -> list[Curve]:
        values = {name: read(view).tolist() for name, view in views.items()}
        return [Curve(name + suffix, list(range(first, first + len(y))), y) for name, y in values.items()]

    aligned = curves(lambda v: v.alignment)
    losses = [*curves(lambda v: v.loss, 0), *curves(lambda v: v.linear_loss, 0, ", linearised")]
    return (
        Panel("spectrum of the kernel", "component", "eigenvalue", curves(_known), "y"),
        Panel("labels in the leading components", "components", "fraction of |labels|²", aligned),
        Panel("linearised against real", "inner step", "|f - f_lin| / |f - f₀|", curves(_relative)),
        Panel("adaptation", "inner step", "query loss", losses),
    )


@eqx.filter_jit
def _view(method: Method, x: Outer, tasks: TaskDistribution, k_task: Key, k_adapt: Key, split: Any, steps: int) -> View:
    learner, solver = learner_of(tasks, "tangent"), iterative(method, "tangent")
    task: Episode = tasks.sample(k_task, split)
    z, y0, k_inner = method.problem.begin(x, task, k_adapt)

    def outputs(y: Inner, inputs: Array) -> Array:
        return learner.predict(network(learner, y, z, x, what="tangent"), inputs)

    def linearised(y: Inner, inputs: Array) -> Array:
        away = jax.tree.map(jnp.subtract, y, y0)
        return jnp.add(*jax.jvp(lambda y: outputs(y, inputs), (y0,), (away,)))

    def walk(problem: BilevelProblem, read: Callable[[Inner, Any], Any]) -> Any:
        return solver.path(problem, z, (y0, solver.init(z, y0)), task, k_inner, length=steps, read=read)

    def descent(f: Callable[[Inner, Array], Array]) -> tuple[Inner, Array]:
        on = lambda data: lambda x, y, task, key: learner.loss(f(y, data(task).inputs), data(task).targets)
        problem = BilevelProblem(lambda x, task, key: y0, on(lambda task: task.support), on(lambda task: task.query))
        (end, _), seen = walk(problem, lambda y, i: f(y, task.query.inputs))
        return end, jnp.concatenate([f(y0, task.query.inputs)[None], seen])

    labels = as_vectors(learner, task.support)
    values, alignment = spectrum(kernel(lambda y: outputs(y, task.support.inputs), y0), labels - labels.mean(0))
    (end, real), (_, linear) = descent(outputs), descent(linearised)
    ((own, _), _) = walk(method.problem, lambda y, i: None)
    gap, way = (norm(jax.tree.map(jnp.subtract, end, other)) for other in (own, y0))
    length, loss = jax.vmap(norm), jax.vmap(lambda f: learner.loss(f, task.query.targets))
    change, difference = length(real - real[0]), length(real - linear)
    return View(values, alignment, change, difference, loss(real), loss(linear), gap / way)


def kernel(f: Callable[[Inner], Float[Array, "..."]], y: Inner) -> Float[Array, "rows rows"]:
    """Theta = J J^T for J = df/dy, a row for each entry of f(y), without ever holding J.

    Row i is J (J^T e_i): one reverse and one forward pass.

    **Raises:** `NotApplicable`, when traced, for more than 1000 rows.
    """
    flat = lambda y: f(y).reshape(-1)
    out, push = jax.linearize(flat, y)
    if len(out) > LARGEST:
        raise NotApplicable(
            f"tangent: the kernel has {len(out)} rows (support examples times outputs), and {LARGEST} are the most. "
            "Take tasks of fewer ways or shots."
        )
    pull = jax.vjp(flat, y)[1]
    theta = jax.lax.map(lambda e: push(*pull(e)), jnp.eye(len(out), dtype=out.dtype), batch_size=25)
    return (theta + theta.T) / 2


def spectrum(
    theta: Float[Array, "rows rows"], labels: Float[Array, "..."]
) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Eigenvalues of a kernel, largest first, and the fraction of |labels|^2 in the eigenvectors up to each."""
    values, vectors = jnp.linalg.eigh(theta)
    weights = (vectors.T @ labels.reshape(-1)) ** 2
    return values[::-1], jnp.cumsum(weights[::-1]) / jnp.sum(weights)
