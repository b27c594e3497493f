"""What the documents of the workloads say: tables for the eye, a page and a picture for the docs."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import InputError
from ..storage.files import read_json, replace
from .workload import OURS

PAGE, PICTURE = "speed.md", "speed.png"
COLUMNS = ("candidate", "time", "quartiles", "ratio", "of peak", "compile", "memory", "goal")
HEAD = """\
# Speed and memory

Every table is one run of `metabilevel bench WORKLOAD`: its candidates compute the same value and gradient, which is
checked first, and then take turns. *Ratio* is how many times as long as the candidate of the first line each takes, the
median over the rounds; *quartiles* are those of its calls. *Of peak* is the rate at which the matrix products of a step
are computed, beside that of one large matrix product in the same turns (which other processes slow by their own
moods: trust the ratios more). *Memory* is what the compiler plans for temporaries or, of another framework, the peak of
its process. *Goal* is the ratio to be reached, and whether it is. This page and its picture are written by
`metabilevel bench --report docs --out benchmarks/results`.
"""


def load(folder: Path) -> list[dict[str, Any]]:
    """The documents in `folder`, in the order of their names.

    **Raises:** `InputError` where there are none, or a file is none.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path)
        if not (isinstance(document, dict) and {"workload", "kind", "rows"} <= document.keys()):
            raise InputError(f"{path} is no result of metabilevel bench.")
        documents.append(document)
    if not documents:
        raise InputError(f"There is no result in {folder}: metabilevel bench --out {folder} writes them.")
    return documents


def table(document: Mapping[str, Any]) -> Table:
    """A workload's rows, for the terminal."""
    columns, rows = _cells(document)
    shown = Table(*columns, title=f"{document['workload']}: {document['about']}", title_justify="left")
    for row in rows:
        shown.add_row(*row)
    return shown


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """All of it in Markdown."""
    parts = [HEAD]
    races = [d for d in documents if d["kind"] == "race"]
    if any(map(_others, documents)):
        parts.append(f"![How many times as long as metabilevel each candidate takes]({PICTURE})\n")
    goals = [goal for document in races for goal in _goals(document) if goal["met"] is not None]
    if goals:
        parts.append(f"{sum(goal['met'] for goal in goals)} of {len(goals)} goals are met.\n")
    for document in documents:
        columns, rows = _cells(document)
        machine = document["machine"]
        turns = _count(document["rounds"], "round")
        where = (
            f"{document['date']}, {turns}, {machine['cpu']}, {_count(machine['cores'], 'core')}, {machine['device']}"
        )
        lines = [columns, ["---"] * len(columns), *rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        small = " Small sizes." if document["quick"] else ""
        parts.append(f"## {document['workload']}\n\n{document['about']}{small} ({where}.)\n\n{body}\n")
    return "\n".join(parts)


def _goals(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a race; small sizes are held to none."""
    return [] if document["quick"] else document["goals"]


def write(documents: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Puts the page, and the picture where there is something to draw, into `folder`: the files written."""
    replace(folder / PAGE, page(documents).encode())
    return [folder / PAGE, *([folder / PICTURE] if draw(documents, folder / PICTURE) else [])]


def draw(documents: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """A point for each candidate in each race, at its ratio on a logarithmic axis; whether there was any."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    from ..figures import COLOURS

    found = {document["workload"]: ratios for document in documents if (ratios := _others(document))}
    if not found:
        return False
    names = dict.fromkeys(name for ratios in found.values() for name in ratios)
    styles = {name: (COLOURS[i % len(COLOURS)], "osD^vP*X"[i // len(COLOURS) % 8]) for i, name in enumerate(names)}
    figure = Figure(figsize=(9.2, 1.6 + 0.34 * len(found)), layout="constrained")
    figure.suptitle("Times as long as metabilevel", fontsize=12, fontweight="bold")
    axes = figure.add_subplot()
    for name, (colour, marker) in styles.items():
        points = [(ratios[name], row) for row, ratios in enumerate(found.values()) if name in ratios]
        axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=34, label=name, zorder=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", yticks=range(len(found)), ylim=(len(found) - 0.4, -0.6), xlabel="ratio of times")
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    low, high = axes.get_xlim()
    ticks = [m * 10**e for e in range(-2, 4) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, edgecolor="none")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    replace(path, picture.getvalue())
    return True


def _others(document: Mapping[str, Any]) -> dict[str, float]:
    """The ratios to ours of the others' candidates that compute the same."""
    if document["kind"] != "race" or document["reference"] != OURS:
        return {}
    rows = [row for row in document["rows"] if row.get("same") and not row["candidate"].startswith(OURS)]
    return {row["candidate"]: row["ratio"] for row in rows}


def _cells(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    if document["kind"] == "race":
        rows = sorted(
            document["rows"], key=lambda row: (row.get("ratio") is None, row["candidate"] != document["reference"])
        )
        return list(COLUMNS), [_race_row(document, row) for row in rows]
    columns = list(dict.fromkeys(name for row in document["rows"] for name in row))
    return columns, [[_number(row.get(name)) for name in columns] for row in document["rows"]]


def _race_row(document: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    name = row["candidate"]
    if "missing" in row:
        return [name, row["missing"], *[""] * (len(COLUMNS) - 2)]
    if not row.get("same", True):
        name += f" (another result: its gradient differs by {row['gradient_difference']:.1g})"
    fraction = row.get("fraction_of_peak")
    return [
        name,
        _seconds(row["median"]),
        f"{_seconds(row['low'])} to {_seconds(row['high'])}",
        f"{row['ratio']:.2f}",
        "" if fraction is None else f"{fraction:.0%}",
        f"{row['compile_seconds']:.1f} s",
        _memory(document, row),
        "; ".join(_goal(goal) for goal in _goals(document) if _concerns(document, goal, row)),
    ]


def _memory(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Of a process, or of temporaries with their ratio to the reference's."""
    if row.get("resident"):
        return f"{row['resident'] / 2**20:,.0f} MiB (process)"
    if row["temporaries"] is None:
        return ""
    reference = next(each for each in document["rows"] if each["candidate"] == document["reference"])["temporaries"]
    times = f" ({row['temporaries'] / reference:.2g} x)" if reference else ""
    return f"{row['temporaries'] / 2**20:,.1f} MiB{times}"


def _concerns(document: Mapping[str, Any], goal: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a goal stands beside this row: that of the best peer stands beside that one."""
    if goal["against"] == "peers":
        return bool(row.get("peer")) and row.get("same", False) and row["ratio"] == goal["ratio"]
    return goal["against"] == row["candidate"]


def _goal(goal: Mapping[str, Any]) -> str:
    return f"{goal['least']:.3g}: {'met' if goal['met'] else 'not met'}"


def _seconds(seconds: float) -> str:
    """Three digits, in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def _digits(value: float) -> str:
    places = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{places}f}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
