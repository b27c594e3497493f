"""What a linear probe reads out of every block."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..evaluation import interval
from ..figures import Curve, Panel
from ..learner import Learner
from ..method import Method
from ..problem import Key, Metrics, Outer, Task, canonical
from ..solvers import AbstractIterativeSolver
from ..tasks import Data, TaskDistribution
from .adapted import activations, adaptation, block_names, parts
from .diagnosis import Diagnosis, NotApplicable, learner_of, over_tasks

ITSELF = "the method itself"


def probe(
    method: Method,
    x: PyTree,
    tasks: TaskDistribution,
    *,
    key: Key,
    episodes: int = 100,
    split: str = "test",
    ridge: float = 1e-2,
) -> Diagnosis:
    """Ridge regression from every block's frozen features to the labels, beside the method's own score.

    For every task the probe is fitted on the support set (to one-hot labels, or to the targets) and judged on the
    queries, before and after adaptation. Where y is no part of the body, both are the same.

    **Arguments:** `ridge`: strength of the penalty, in units of the features' mean squared length on the support set.

    **Returns:** a row for each block, with `"the method itself"` last, time and metric (the learner's, or the loss
    where it has none): the mean over tasks and half its 95% confidence interval.

    **Raises:** `NotApplicable` for tasks of no learner, or where neither x nor y holds the body of its network.
    """
    learner = learner_of(tasks, "probe")
    found = over_tasks(partial(_judged, learner, ridge), method, canonical(x, "x"), tasks, key, episodes, split)
    names = [*block_names(len(found["after"]) - 1), ITSELF]
    rows, panels = [], []
    for metric in found["after"][-1]:
        curves = []
        for when in ("before", "after"):
            scores = found[when]
            means = [interval(score[metric]) for score in scores]
            for name, score in zip(names, means, strict=False):  # where no steps are taken, no method is before them
                rows.append(
                    {"block": name, "adaptation": when, "metric": metric, "mean": score.mean, "ci95": score.ci95}
                )
            curves.append(Curve(when, list(range(len(means))), [m.mean for m in means], [m.ci95 for m in means]))
        within = (0.0, 1.0) if metric == "accuracy" else None
        panels.append(Panel(f"linear probe of every block: {metric}", "", metric, curves, ticks=names, within=within))
    caption = f"fitted on the support sets, judged on the queries of {episodes} {split} tasks"
    return Diagnosis("probe", caption, tuple(rows), tuple(panels))


def _judged(learner: Learner, ridge: float, method: Method, x: Outer, task: Task, key: Key) -> dict[str, list[Metrics]]:
    """Scores of every block and, last, of the method itself."""
    z, start, end = adaptation(method, x, task, key)
    if isinstance(method.solver, AbstractIterativeSolver):
        before, after = method.curve(x, task, key, [0, method.solver.steps])
        own = {"before": [_chosen(before)], "after": [_chosen(after)]}
    else:
        own = {"before": [], "after": [_chosen(method.test(x, task, key))]}
    found = {}
    for when, y in (("before", start), ("after", end)):
        body = parts(learner, y, z, x).get("body")
        if body is None:
            raise NotApplicable("probe: neither x nor y of this method holds the body of the learner's network.")
        support = learner.network.activations(body, task.support.inputs)
        query = activations(learner, body, task.query.inputs, task.support.inputs)
        scores = [_probed(learner, ridge, *block, task) for block in zip(support, query, strict=True)]
        found[when] = scores + own[when]
    return found


def _probed(learner: Learner, ridge: float, support: Array, query: Array, task: Task) -> Metrics:
    targets = as_vectors(learner, task.support)
    flat = lambda maps: maps.reshape(len(maps), -1)
    outputs = ridge_outputs(flat(support), targets, flat(query), ridge)
    if not jnp.issubdtype(task.query.targets.dtype, jnp.integer):
        outputs = outputs.reshape(task.query.targets.shape)
    loss, metrics = learner.judge(outputs, task.query)
    return _chosen({"loss": loss, **metrics})


def _chosen(metrics: Metrics) -> Metrics:
    """The metrics without the loss, which means nothing of a regression to labels; the loss where there is no other."""
    return {name: value for name, value in metrics.items() if name != "loss"} or metrics


def as_vectors(learner: Learner, data: Data) -> Float[Array, "n k"]:
    """Classes as rows of the unit matrix; other targets as they are, flat."""
    if jnp.issubdtype(data.targets.dtype, jnp.integer):
        return jax.nn.one_hot(data.targets, learner.network.outputs)
    return data.targets.reshape(len(data.targets), -1)


def ridge_outputs(
    support: Float[Array, "n d"], targets: Float[Array, "n k"], query: Float[Array, "m d"], ridge: float
) -> Float[Array, "m k"]:
    """Predictions W^T q + b of the (W, b) that minimise |S W + b - targets|^2 + n lambda |W|^2.

    lambda is `ridge` times the mean over examples of |s|^2, centred; b has no penalty. Solved among the n examples:
    blocks have more features than tasks have examples.
    """
    centre, mean = support.mean(0), targets.mean(0)
    s, q = support - centre, query - centre
    gram = s @ s.T
    strength = ridge * jnp.trace(gram)
    penalty = jnp.where(strength > 0, strength, 1) * jnp.eye(len(gram), dtype=gram.dtype)
    return q @ s.T @ jnp.linalg.solve(gram + penalty, targets - mean) + mean
