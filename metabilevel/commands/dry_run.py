"""A run that is compiled, looked at and not started."""

from dataclasses import asdict
from typing import Any

import jax
import optax
from rich.table import Table

from ..compilation import Compilation
from ..planning import Plan, readable
from .experiment import Experiment
from .judgement import WIDTH


def dry_run(experiment: Experiment, plan: Plan, compilation: Compilation) -> tuple[dict[str, Any], list[Any]]:
    """What the run will take in memory and arithmetic, as a document and as what a reader sees."""
    config, work = experiment.config, experiment.operations()
    entries = optax.tree.size(experiment.start().x)
    document = {
        "device": jax.devices()[0].device_kind,
        "entries_of_x": entries,
        "way": plan.way,
        "peak": plan.peak,
        "programs": {name: each._asdict() for name, each in plan.programs.items()},
        "operations": {"a_step": work.total, "in_products": work.products, "of_all_steps": work.total * config.steps},
        "compilation": asdict(compilation),
    }
    memory = Table(
        title=f"{experiment.title}: {config.steps} outer steps of {experiment.meta_batch} tasks, not started",
        caption=f"as the compiler plans them; {plan.way}",
        min_width=WIDTH,
    )
    memory.add_column("program")
    for heading in ("arguments", "temporaries", "outputs"):
        memory.add_column(heading, justify="right")
    for name, each in plan.programs.items():
        memory.add_row(name, *(readable(size) for size in (each.arguments, each.temporaries, each.outputs)))
    held = "the compiler does not tell what memory it plans" if plan.peak is None else readable(plan.peak)
    return document, [
        memory,
        f"Peak of the process: {held}. x has {entries:,} entries.",
        f"An outer step: {work.total:.3g} floating-point operations, {work.products:.3g} of them in matrix products; "
        f"all steps: {work.total * config.steps:.3g}.",
        f"{compilation}.",
    ]
