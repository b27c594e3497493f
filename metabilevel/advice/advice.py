"""Estimators compared on one's own problem, and one of them recommended."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..figures import Curve, Panel, draw

if TYPE_CHECKING:
    from rich.table import Table

NEAR = 1.1  # times the shortest time: what counts as fast as that, so that memory decides
MOST = 10.0  # of an error that is drawn
BLIND = 1e-2  # of the tolerance: errors below it are all the same


@dataclass(frozen=True)
class Row:
    """One estimator on the problem; all but the first three are None, but for `note`, where it was not run.

    - `error`: |g - reference| / |reference|, and `cosine` of the angle between them, of the reference that is asked
      for; `path_error` and `solution_error` of both, the second None where there is none.
    - `seconds`: median of one hypergradient; `compile_seconds` apart, while another compiles beside it.
    - `bytes`: temporaries of the compiled program, as the compiler plans them.
    - `certificate`: what the hypergradient said of itself, "success" or what speaks against it.
    - `note`: why it was not run, or what it does not see of x.
    """

    estimator: str
    family: str
    line: str
    error: float | None = None
    cosine: float | None = None
    path_error: float | None = None
    solution_error: float | None = None
    seconds: float | None = None
    compile_seconds: float | None = None
    bytes: int | None = None
    certificate: str | None = None
    note: str = ""

    @property
    def cost(self) -> tuple[float, float, float]:
        """Error, seconds and bytes."""
        known = lambda value: float("inf") if value is None else float(value)
        return known(self.error), known(self.seconds), known(self.bytes or 0)


@dataclass(frozen=True)
class Advice:
    """What `advise` found.

    - `rows`: every estimator; `front`: the names of those that no other beats in error, time and memory at once.
    - `recommended`: a name, None where no estimator gave a finite gradient; `reason` in a sentence, and `line`, the
      Python to paste.
    - `reference`: in words, what errors are errors from, and how that was validated; `remarks` beside it.
    """

    rows: tuple[Row, ...]
    front: tuple[str, ...]
    recommended: str | None
    reason: str
    line: str
    reference: str
    remarks: tuple[str, ...]
    tolerance: float

    def __str__(self) -> str:
        return f"{self.reason}\n\n    {self.line}\n"

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return asdict(self)

    def table(self, title: str) -> "Table":
        """The rows that ran, to be printed by rich: a star marks the front, an arrow what is recommended."""
        from rich.table import Table

        table = Table(title=f"{title}: estimators of the hypergradient", caption="* no other is better in all three")
        left, numbers = ("", "estimator"), ["error", "cosine", "ms", "MiB", "compile s"]
        for heading in (*left, *numbers, "certificate"):
            table.add_column(heading, justify="right" if heading in numbers else "left")
        for row in sorted((row for row in self.rows if row.error is not None), key=lambda row: row.cost[1]):
            mark = "->" if row.estimator == self.recommended else "*" if row.estimator in self.front else ""
            said = ": ".join(filter(None, [(row.certificate or "").replace("_", " "), row.note]))
            _, seconds, size = row.cost
            cells = f"{row.error:.1e}", f"{row.cosine:.4f}", f"{1e3 * seconds:.3g}", f"{size / 2**20:.3g}"
            table.add_row(mark, row.estimator, *cells, f"{row.compile_seconds:.2g}", said)
        return table

    def left_out(self) -> "Table":
        """The rows that did not run, with their reasons."""
        from rich.table import Table

        table = Table(title="not run", min_width=72)
        table.add_column("estimator")
        table.add_column("reason")
        for row in self.rows:
            if row.error is None:
                table.add_row(row.estimator, row.note)
        return table

    def draw(self, path: Path, title: str) -> None:
        """Draws error against time and against memory into the PNG file `path`, with the front as a line."""
        draw(path, f"{title}: estimators of the hypergradient", self.panels())

    def panels(self) -> tuple[Panel, ...]:
        """The Pareto picture, as data."""
        ran = [row for row in self.rows if row.error is not None and row.cost[0] < float("inf")]
        least = self.tolerance * BLIND
        ways = ("time of one hypergradient, ms", 1, 1e3), ("temporary memory, MiB", 2, 2**-20)
        return tuple(self._panel(label, ran, least, which, unit) for label, which, unit in ways)

    def _panel(self, label: str, ran: Sequence[Row], least: float, which: int, unit: float) -> Panel:
        at = lambda row: (max(row.cost[which], 1.0 if which == 2 else 0.0) * unit, min(max(row.cost[0], least), MOST))
        curves = []
        for family in dict.fromkeys(row.family for row in ran):
            x, y = zip(*(at(row) for row in ran if row.family == family), strict=True)
            curves.append(Curve(family, x, y, style="points"))
        best, lowest = [], float("inf")
        for x, y in sorted(map(at, ran)):
            if y < lowest:
                best, lowest = [*best, (x, y)], y
        if best:
            curves.append(Curve("the front", *zip(*best, strict=True), style="truth"))
        chosen = [at(row) for row in ran if row.estimator == self.recommended]
        if chosen:
            curves.append(Curve("recommended", *zip(*chosen, strict=True), style="data"))
        return Panel(
            f"error against {label.split(',')[0]}", label, f"relative error ({least:g} or more)", curves, log="xy"
        )


def front(rows: Sequence[Row], tolerance: float) -> tuple[str, ...]:
    """The names of the rows that ran and that no other row beats: better in one of error, time and memory, and not
    worse in the others. Errors far below the tolerance are alike."""
    costs = {
        row.estimator: (max(row.cost[0], BLIND * tolerance), *row.cost[1:]) for row in rows if row.error is not None
    }
    beats = lambda a, b: a != b and all(u <= v for u, v in zip(a, b, strict=True))
    inside = lambda cost: cost[0] < float("inf") and not any(beats(other, cost) for other in costs.values())
    return tuple(name for name, cost in costs.items() if inside(cost))


def recommend(rows: Sequence[Row], tolerance: float) -> tuple[Row | None, str]:
    """The fastest row whose error is below `tolerance` and whose certificate has nothing against it; of several about
    as fast, the one of least memory. Where none is, that of the least error. And a sentence that says so."""
    finite = [row for row in rows if row.error is not None and row.cost[0] < float("inf")]
    trusted = [row for row in finite if row.certificate == "success"]
    good = [row for row in trusted if row.cost[0] <= tolerance]
    if not finite:
        return None, "No estimator gave a finite hypergradient."
    if not good:
        best = min(trusted or finite, key=lambda row: row.cost)
        against = "" if best.certificate == "success" else f" ({(best.certificate or '').replace('_', ' ')})"
        return best, (
            f"No estimator has an error below {tolerance:g} and a certificate with nothing against it: "
            f"{best.estimator} is nearest, with {best.cost[0]:.1e}{against}."
        )
    fastest = min(row.cost[1] for row in good)
    best = min((row for row in good if row.cost[1] <= NEAR * fastest), key=lambda row: row.cost[::-1])
    near = sum(row.cost[1] <= NEAR * fastest for row in good)
    if len(good) == 1:
        return best, f"{_said(best, 'the only one')} whose error is below {tolerance:g} and that is not doubtful."
    which = "the fastest" if near == 1 else f"of the {near} that are about the fastest the one of least memory,"
    which += f" of the {len(good)}" if near == 1 else f" among the {len(good)}"
    return best, f"{_said(best, which)} whose error is below {tolerance:g} and that are not doubtful."


def _said(row: Row, others: str) -> str:
    error, seconds, size = row.cost
    took = f"{1e3 * seconds:.3g} ms and {size / 2**20:.3g} MiB"
    return f"{row.estimator}, with an error of {error:.1e} in {took}, is {others}"
