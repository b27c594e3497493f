"""Pictures of one sinusoid task: what nets predict before and after they adapt to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Curve, Panel


def unseen_task(
    nets: Mapping[str, tuple[mb.Method, Any]], tasks: mb.TaskDistribution, key: Any, steps: Sequence[int]
) -> list[Panel]:
    """A panel for each net (a method that descends, and its x): its predictions after each of `steps` steps on one
    test task of `tasks`, whose queries are a grid."""
    import jax

    task = tasks.sample(key, "test")
    points = lambda data: (data.inputs[:, 0].tolist(), data.targets[:, 0].tolist())
    (grid, truth), given = points(task.query), points(task.support)

    def outputs(method: mb.Method, x: Any, k: int) -> Any:
        y = replace(method, solver=replace(method.solver, steps=k)).adapt(x, task, key)
        return tasks.subject.predict(y, task.query.inputs)[:, 0]

    panels = []
    for name, (method, x) in nets.items():
        predictions = jax.jit(lambda x, method=method: [outputs(method, x, k) for k in steps])(x)
        ours = [Curve(_after(k), grid, y.tolist()) for k, y in zip(steps, predictions, strict=True)]
        true, data = Curve("true sinusoid", grid, truth, style="truth"), Curve("the points", *given, style="data")
        panels.append(Panel(f"{name}, an unseen task", "x", "y", [true, *ours, data]))
    return panels


def _after(steps: int) -> str:
    return {0: "before adaptation", 1: "after 1 step"}.get(steps, f"after {steps} steps")
