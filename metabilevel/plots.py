"""Pictures of a run."""

import io
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from .errors import InputError
from .figures import Curve, Panel, draw
from .storage.files import replace


def curves(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws every number in `rows` against the outer step, a panel each, into the PNG file `path`.

    The number of `failed` tasks is drawn only where there were any.

    **Raises:** `InputError` where there is nothing to draw.
    """
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if name != "step" and isinstance(value, Real)
    )
    if not any(row.get("failed") for row in rows):
        names.pop("failed", None)
    if not names:
        raise InputError(f"There is nothing to draw in {path}: no row holds a number beside 'step'.")
    panels = []
    for name in names:
        held, said = [row for row in rows if name in row], name.replace("_", " ")
        line = Curve(said, [float(row["step"]) for row in held], [float(row[name]) for row in held])
        panels.append(Panel(said, "outer step", "", [line]))
    draw(path, title, panels)


def matrix(
    path: Path,
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    ratios: Sequence[Sequence[float]],
) -> None:
    """Draws the texts `cells` [rows][columns], on the colour of their ratios, into the PNG file `path`.

    Below 1 is blue and above 1 red, on a logarithmic scale from 1/4 to 4 which goes no further; NaN is grey.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 1.9 * len(columns), 1.6 + 0.7 * len(rows)), layout="constrained")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    axes = figure.add_subplot()
    axes.set_facecolor("0.75")
    logs = [[math.log2(ratio) if ratio > 0 else math.nan for ratio in row] for row in ratios]
    image = axes.imshow(logs, cmap="RdBu_r", vmin=-2, vmax=2, aspect="auto")
    for i, row in enumerate(cells):
        for j, text in enumerate(row):
            colour = "white" if abs(logs[i][j]) > 1.4 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    scale = figure.colorbar(image, ticks=range(-2, 3), extend="both", label="ratio").ax
    scale.set_yticklabels(["1/4", "1/2", "1", "2", "4"], fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    replace(path, picture.getvalue())
