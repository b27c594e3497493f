"""`metabilevel solve`."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import Any

import click
import jax
import numpy as np
from rich.console import RenderableType
from rich.table import Table

from .. import hypergradients
from ..check.examine import require_deterministic
from ..errors import ComputationError
from ..hypergradients import Solution
from ..info import Certificate, Result
from ..plots import curves
from ..problem import Outer
from ..storage.files import replace, write_json
from .experiment import OPTIMIZERS
from .interrupts import Interrupts
from .judgement import numbers
from .output import json_option, note, show
from .problem_file import CONTENTS, ProblemFile, load_case
from .types import Count, Folder, Positive

PICTURE, DOCUMENT, SOLVED = "curves.png", "result.json", "x.npz"
SHOWN = 10  # rows of a history that are printed


@click.command("solve")
@click.argument("file", type=ProblemFile(), metavar="FILE.py[:NAME]")
@click.option("--steps", type=Count(1), default=100, show_default=True, help="Outer steps.")
@click.option("--outer-optimizer", type=click.Choice(list(OPTIMIZERS)), default="adam", show_default=True)
@click.option("--outer-learning-rate", type=Positive(), default=0.01, show_default=True)
@click.option("--seed", type=Count(0, 2**32 - 1), help="Of all randomness. [default: the file's key]")
@click.option("--out", type=Folder(), metavar="DIR", help=f"Where {DOCUMENT}, {SOLVED} and {PICTURE} go, if anywhere.")
@json_option
def command(
    file: tuple[Path, str | None],
    steps: int,
    outer_optimizer: str,
    outer_learning_rate: float,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    with Interrupts():
        case = load_case(*file)
        require_deterministic(case.problem, case.x, case.task, case.key)
        note(f"Solving {case.title} by {steps} steps of {outer_optimizer} ...")
        found = hypergradients.solve(
            case.problem,
            case.x,
            case.task,
            key=case.key if seed is None else jax.random.key(seed),
            solver=case.solver,
            adjoint=case.adjoint,
            optimizer=OPTIMIZERS[outer_optimizer](outer_learning_rate),
            steps=steps,
        )
    document = {
        "problem": case.title,
        "steps": steps,
        "optimizer": outer_optimizer,
        "learning_rate": outer_learning_rate,
        "seed": seed,
        "result": Result[found.result],
        "success": bool(found.result == Result.success),
        "certificate": _evidence(found.certificate),
        "x": numbers(found.x),
        "history": found.history,
    }
    parts: list[RenderableType] = [_table(case.title, found)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / DOCUMENT, document)
        replace(out / SOLVED, _archive(found.x))
        curves(out / PICTURE, case.title, found.history)
        parts.append(f"Written to {out}")
    show(as_json, document, *parts)
    if found.result != Result.success:
        raise ComputationError(f"{case.title}: {Result[found.result]}.")


def _evidence(certificate: Certificate) -> dict[str, float]:
    """Every number of a certificate that there is."""
    values = {each.name: getattr(certificate, each.name) for each in fields(certificate) if each.name != "result"}
    return {name: np.asarray(value).item() for name, value in values.items() if value is not None}


def _table(title: str, found: Solution) -> Table:
    """Rows from the first to the last step; below them x, where it is small, and the certificate."""
    history = found.history
    evidence = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in _evidence(found.certificate).items()]
    lines = [
        "each row is of the x before its step",
        ", ".join(f"{name} = {value:.4g}" for name, value in numbers(found.x).items()),
        f"certificate of the last x: {Result[found.certificate.result]} ({', '.join(evidence)})",
    ]
    table = Table(title=title, caption="\n".join(filter(None, lines)), min_width=72)
    names = [name for name, value in history[0].items() if isinstance(value, Real)]
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in _some(history):
        table.add_row(*(f"{row[name]:.5g}" if isinstance(row[name], float) else str(row[name]) for name in names))
    return table


def _some(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row, the last, and some between."""
    chosen = np.unique(np.linspace(0, len(history) - 1, min(SHOWN, len(history))).round().astype(int))
    return [history[i] for i in chosen]


def _archive(x: Outer) -> bytes:
    """The leaves of x by their names, as an .npz file."""
    leaves = {f"x{jax.tree_util.keystr(path)}": np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(x)}
    file = io.BytesIO()
    np.savez(file, **leaves)  # pyright: ignore[reportArgumentType] - the names are those of arrays
    return file.getvalue()


command.help = "\n\n".join(
    [
        "Minimise the outer loss of a problem of your own.",
        "Each outer step solves the inner problem, from where the last solve stopped or, where its start depends on x, "
        "from there, and follows its hypergradient. "
        "Exit status 1 where the result is not one to be trusted.",
        CONTENTS,
    ]
)
