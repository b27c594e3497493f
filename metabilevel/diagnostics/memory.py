"""What a hypergradient costs in memory, as the compiler plans it."""

from collections.abc import Sequence
from dataclasses import replace

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..adjoints import AbstractAdjoint, StopGradient, Unroll, solved
from ..figures import Curve, Panel
from ..method import Method
from ..planning import footprint
from ..problem import canonical
from ..solvers import AbstractInnerSolver
from ..tasks import TaskDistribution
from .diagnosis import Diagnosis, NotApplicable, increasing, iterative, require_outer

ADJOINTS: dict[str, AbstractAdjoint] = {
    "Unroll()": Unroll(),
    "Unroll(mixed_mode=True)": Unroll(mixed_mode=True),
    "Unroll(checkpoint='sqrt')": Unroll(checkpoint="sqrt"),
    "Unroll(first_order=True)": Unroll(first_order=True),
    "StopGradient()": StopGradient(),
}


def memory(
    method: Method, x: PyTree, tasks: TaskDistribution, *, steps: Sequence[int] = (1, 4, 16, 64), split: str = "test"
) -> Diagnosis:
    """Temporary memory of one task's outer gradient against the number k of inner steps, for every adjoint.

    Of the method's adaptation at test. The gradient is compiled and not run: the bytes are those of the compiler's
    own plan, beside arguments and results. Reverse mode through k steps keeps something of each step, and so grows
    like k; with square-root checkpoints it grows like sqrt(k); first-order gradients keep nothing of them.

    **Returns:** a row for each adjoint and k, with `bytes`, which are also given in `MiB`.

    **Raises:** `NotApplicable` where the inner solver takes no steps, where there is no outer variable, or where the
    compiler does not tell its plan.
    """
    solver = iterative(method, "memory")
    require_outer(x, "memory")
    x, wanted = canonical(x, "x"), increasing(steps)
    measured = {
        name: [_bytes(method, replace(solver, steps=k), adjoint, x, tasks, split) for k in wanted]
        for name, adjoint in ADJOINTS.items()
    }
    rows = [
        {"adjoint": name, "steps": k, "bytes": size, "MiB": size / 2**20}
        for name, sizes in measured.items()
        for k, size in zip(wanted, sizes, strict=True)
    ]
    curves = [_curve(name, [row for row in rows if row["adjoint"] == name]) for name in measured]
    panel = Panel("outer gradient of one task", "inner steps k", "temporary memory, MiB", curves, log="xy")
    return Diagnosis("memory", f"temporary memory as compiled for {jax.default_backend()}", tuple(rows), (panel,))


def _curve(name: str, rows: list[dict]) -> Curve:
    """Zero has no place on a logarithmic axis: the legend says where it is."""
    zero = ", ".join(str(row["steps"]) for row in rows if not row["bytes"])
    drawn = [row for row in rows if row["bytes"]]
    label = f"{name}: 0 at k = {zero}" if zero else name
    return Curve(label, [row["steps"] for row in drawn], [row["MiB"] for row in drawn])


def _bytes(
    method: Method,
    solver: AbstractInnerSolver,
    adjoint: AbstractAdjoint,
    x: PyTree,
    tasks: TaskDistribution,
    split: str,
) -> int:
    key = jax.eval_shape(lambda: jax.random.key(0))
    task = eqx.filter_eval_shape(tasks.sample, key, split)
    loss = lambda x, task, key: solved(method.problem, solver, adjoint, x, task, key)[0]
    planned = footprint(jax.grad(loss), x, task, key)
    if planned is None:
        raise NotApplicable(f"memory: the compiler for {jax.default_backend()} does not tell what it plans.")
    return planned.temporaries
