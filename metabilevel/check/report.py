"""What a check of a hypergradient found."""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import Curve, Panel, draw

if TYPE_CHECKING:
    from rich.table import Table


class Verdict(enum.StrEnum):
    """What is to be held of a hypergradient."""

    RIGHT = "right"
    NOT_CONVERGED = "inner solve not converged"
    NO_MINIMUM = "inner solve at no minimum"
    TRUNCATED = "linear solve truncated"
    FIRST_ORDER = "second derivatives dropped"
    STOPPED = "inner solve taken for a constant"
    WINDOWED = "inner solve differentiated in part"
    DEAD_LEAF = "dead leaf"
    NOISE = "noise"
    SIGN = "wrong sign"
    SCALE = "wrong scale"
    WRONG = "wrong"
    COARSE = "float32 too coarse"
    NONFINITE = "not finite"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Series:
    """Relative errors of a hypergradient against a number that can be raised: inner steps, terms of a series."""

    of: str
    numbers: Sequence[int]
    errors: Sequence[float]


@dataclass(frozen=True)
class Finding:
    """A verdict and its reason in a sentence or two; `series` is what shows it, where there is one."""

    verdict: Verdict
    reason: str
    series: Series | None = None


@dataclass(frozen=True)
class Check:
    """A hypergradient held against central differences.

    - `verdict`, and the `reason` in words; `right` is whether the verdict is that.
    - `error`: root mean square, over the random directions, of slope minus difference, relative to the differences.
    - `rows`: for each direction its name, the `slope` <hypergradient, direction>, the central `difference`, its own
      `uncertainty`, and the `error` of the slope relative to it (to the slope, where the difference is zero).
    - `steps` and `sweep`, each [directions][step sizes]: the step sizes and the differences there, whose plateau is
      the `difference`.
    - `series`: the error against inner steps, or terms, where the verdict speaks of them.
    """

    verdict: Verdict
    reason: str
    error: float
    rows: tuple[Mapping[str, Any], ...]
    steps: Sequence[Sequence[float]]
    sweep: Sequence[Sequence[float]]
    series: Series | None = None

    @property
    def right(self) -> bool:
        return self.verdict is Verdict.RIGHT

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {**asdict(self), "right": self.right}

    def table(self, title: str) -> "Table":
        """The rows, to be printed by rich."""
        from rich.table import Table

        table = Table(
            title=f"{title}: check",
            caption=f"{self.verdict}; relative error {self.error:.2g} over the random directions",
        )
        table.add_column("direction")
        for heading in ("hypergradient", "difference", "uncertainty", "relative error"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            numbers = [row[name] for name in ("slope", "difference", "uncertainty", "error")]
            table.add_row(str(row["direction"]), *(f"{n:.6g}" if i < 2 else f"{n:.1e}" for i, n in enumerate(numbers)))
        return table

    def panels(self) -> tuple[Panel, ...]:
        """The sweep, in which a plateau lies low where the hypergradient is right, and high where it is not."""
        curves = []
        for row, steps, values in zip(self.rows, self.steps, self.sweep, strict=True):
            scale = max(abs(row["slope"]), abs(row["difference"]))
            away = [abs(value - row["slope"]) / scale if scale else math.nan for value in values]
            curves.append(_curve(str(row["direction"]), steps, away))
        found = [Panel("the sweep of step sizes", "step size h", "|difference - slope|, relative", curves, log="xy")]
        if self.series is not None:
            of = self.series.of
            line = _curve("error", self.series.numbers, self.series.errors)
            found.append(Panel(f"error against {of}", of, "relative error", [line], log="xy"))
        return tuple(found)

    def draw(self, path: Path, title: str) -> None:
        """Draws the panels into the PNG file `path`."""
        draw(path, f"{title}: {self.verdict}", self.panels())


def _curve(name: str, x: Sequence[float | int], y: Sequence[float]) -> Curve:
    """What a logarithmic axis can show."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if a > 0 and 0 < b < math.inf]
    return Curve(name, [a for a, _ in kept], [b for _, b in kept])
