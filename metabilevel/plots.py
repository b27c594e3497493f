"""Pictures of a run."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from .errors import InputError
from .figures import Curve, Panel, draw


def curves(path: Path, title: str, rows: Sequence[Mapping[str, Any]], x: str = "step") -> None:
    """Draws every number in `rows` against `x`, a panel each, into the PNG file `path`.

    The number of `failed` tasks is drawn only where there were any.

    **Raises:** `InputError` where there is nothing to draw.
    """
    names = dict.fromkeys(name for row in rows for name, value in row.items() if name != x and isinstance(value, Real))
    if not any(row.get("failed") for row in rows):
        names.pop("failed", None)
    if not names:
        raise InputError(f"There is nothing to draw in {path}: no row holds a number beside {x!r}.")
    panels = []
    for name in names:
        held = [row for row in rows if name in row]
        line = Curve(name, [float(row[x]) for row in held], [float(row[name]) for row in held])
        panels.append(Panel(name.replace("_", " "), x, "", [line]))
    draw(path, title, panels)
