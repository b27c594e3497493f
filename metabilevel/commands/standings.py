"""What became of the runs of a population, read from their directories: a document, tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from scipy.special import stdtrit

from ..errors import ComputationError
from ..evaluation import Interval
from ..figures import Curve, Panel, draw
from ..schema import Value
from ..storage.files import read_json
from ..storage.runs import CONFIG, Run
from .judgement import WIDTH, Judgement
from .population import FAILURE, Member, said

OWN = {"step", "failed", "inner_residual", "linear_residual", "doubtful"}  # columns of a run's metrics without a panel


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of few numbers, with its 95% confidence interval by Student's t."""
    n = len(values)
    with np.errstate(over="ignore", invalid="ignore"):
        half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / n**0.5) if n > 1 else math.nan
    return Interval(float(np.mean(values)), half, n)


@dataclass(frozen=True)
class Standing:
    """One run: `scores` by metric, after the most inner steps that were judged, where it is finished; or why it is not.

    `rows` are its reports.
    """

    member: Member
    path: Path
    status: str
    step: int | None
    error: str | None
    scores: dict[str, Interval]
    rows: list[dict[str, Any]]

    @classmethod
    def of(cls, member: Member, folder: Path) -> "Standing":
        """That of the run in its directory below `folder`."""
        path, status, step, error = folder / member.name, "not begun", None, None
        scores: dict[str, Interval] = {}
        if not (path / CONFIG).is_file():
            return cls(member, path, status, step, error, scores, [])
        run = Run.open(path)
        rows, summary = run.metrics(), run.summary()
        if summary is not None:
            status, step = "finished", summary["step"]
            judgement = Judgement(**summary["evaluation"])
            last = judgement.rows[-1]["steps"]
            of_last = [row for row in judgement.rows if row["steps"] == last]
            scores = {row["metric"]: Interval(row["mean"], row["ci95"], row["episodes"]) for row in of_last}
            try:
                judgement.require_finite()
            except ComputationError as wrong:
                error = str(wrong)
        elif (path / FAILURE).is_file():
            failure = read_json(path / FAILURE)
            status, step, error = "failed", failure["step"], failure["error"]
        else:
            status, step = "unfinished", rows[-1]["step"] if rows else 0
        return cls(member, path, status, step, error, scores, rows)

    @property
    def validated(self) -> float | None:
        """The least validation loss of a report, where there is one."""
        return min((row["valid_loss"] for row in self.rows if "valid_loss" in row), default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.path),
            "seed": self.member.seed,
            "values": self.member.values,
            "status": self.status,
            "step": self.step,
            "error": self.error,
            "valid_loss": self.validated,
            "scores": {name: score._asdict() for name, score in self.scores.items()},
        }


@dataclass(frozen=True)
class Standings:
    """All runs of a population. Those with the same values, of other seeds, stand together."""

    title: str
    runs: list[Standing]

    @property
    def groups(self) -> list[tuple[dict[str, Value], list[Standing]]]:
        """Values, and the runs that have them."""
        parted = groupby(self.runs, lambda run: run.member.values)
        return [(values, list(those)) for values, those in parted]

    @property
    def judged_by(self) -> str:
        """What the best values have the least of."""
        return "valid_loss" if any(run.validated is not None for run in self.runs) else "loss"

    @property
    def best(self) -> dict[str, Value] | None:
        """The values of the least mean, of those whose runs are all finished and finite; None without a choice."""
        found = {said(values): (self._merit(those), values) for values, those in self.groups}
        merits = [(merit, values) for merit, values in found.values() if math.isfinite(merit)]
        return min(merits, key=lambda each: each[0])[1] if len(found) > 1 and merits else None

    def _merit(self, those: Sequence[Standing]) -> float:
        if any(run.status != "finished" or run.error for run in those):
            return math.inf
        by_validation = self.judged_by == "valid_loss"
        of = lambda run: run.validated if by_validation else run.scores["loss"].mean
        return float(np.mean([of(run) for run in those]))

    def as_json(self) -> dict[str, Any]:
        aggregated = [
            {
                "values": values,
                "seeds": [run.member.seed for run in those],
                "finished": len(finished := _finished(those)),
                "scores": {name: _entry(score) for name, score in _means(finished).items()},
            }
            for values, those in self.groups
        ]
        return {
            "runs": [run.as_json() for run in self.runs],
            "over_seeds": aggregated,
            "best": self.best,
            "judged_by": self.judged_by,
        }

    def tables(self) -> list[Table]:
        """A row a run, and one for each combination of values over its seeds."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.scores))
        columns = list(self.runs[0].member.values)
        single = Table(title=self.title, min_width=WIDTH)
        for heading in (*columns, "seed", "status", "step"):
            single.add_column(heading, justify="left" if heading == "status" else "right")
        for name in names:
            single.add_column(name, justify="right", no_wrap=True)
        for values, those in self.groups:
            for run in those:
                cells = [str(run.scores[name]) if name in run.scores else "-" for name in names]
                step = "-" if run.step is None else str(run.step)
                single.add_row(*map(_cell, values.values()), str(run.member.seed), _status(run), step, *cells)
            single.add_section()
        single.caption = "means and 95% confidence intervals over the test episodes of each run"
        if len(self.groups) == len(self.runs):
            return [single]
        seeds = max(len(those) for _, those in self.groups)
        means = Table(title=f"Over {seeds} seeds", min_width=WIDTH)
        for heading in (*columns, "finished", *names):
            means.add_column(heading, justify="right", no_wrap=True)
        if self.best is not None:
            means.add_column("")
        for values, those in self.groups:
            found = _means(finished := _finished(those))
            cells = [str(found[name]) if name in found else "-" for name in names]
            done, best = f"{len(finished)} of {len(those)}", values == self.best
            mark = ["best" if best else ""] if self.best is not None else []
            means.add_row(*map(_cell, values.values()), done, *cells, *mark, style="bold" if best else None)
        means.caption = "means and 95% confidence intervals over seeds, by Student's t"
        return [single, means]

    def remarks(self) -> list[str]:
        """Which values are the best, and by what."""
        if self.best is None:
            return []
        chosen = "the least mean validation loss" if self.judged_by == "valid_loss" else "the least mean test loss"
        warned = "" if self.judged_by == "valid_loss" else " (--validation chooses on other tasks than it reports)"
        return [f"Best: {said(self.best)}, by {chosen}{warned}"]

    def draw(self, path: Path) -> None:
        """Every number that the runs report against the outer step: means over seeds, with their intervals."""
        names = dict.fromkeys(name for run in self.runs for row in run.rows for name in row if name not in OWN)
        panels = []
        for name in names:
            curves = [curve for values, those in self.groups if (curve := _curve(name, values, those))]
            if curves:
                panels.append(Panel(name.replace("_", " "), "outer step", "", curves))
        if panels:
            draw(path, self.title, panels)

    def require_finished(self) -> None:
        """Raises a `ComputationError` that says of the runs which are not finished, or not finite, why."""
        wrong = [run for run in self.runs if run.status != "finished" or run.error]
        if wrong:
            first = " ".join(f"{run.member.name}: {(run.error or run.status).rstrip('.')}." for run in wrong[:3])
            more = f" And {len(wrong) - 3} more." if len(wrong) > 3 else ""
            raise ComputationError(f"{len(wrong)} of {len(self.runs)} runs did not come to a good end. {first}{more}")


def _finished(those: Sequence[Standing]) -> list[Standing]:
    return [run for run in those if run.status == "finished"]


def _means(finished: Sequence[Standing]) -> dict[str, Interval]:
    names = finished[0].scores if finished else ()
    return {name: over_seeds([run.scores[name].mean for run in finished]) for name in names}


def _entry(score: Interval) -> Mapping[str, Any]:
    return {"mean": score.mean, "ci95": score.ci95, "seeds": score.episodes}


def _cell(value: Value) -> str:
    return said({"": value}).removeprefix(" = ")


def _status(run: Standing) -> Text:
    style = {"finished": "green", "failed": "bold red"}.get(run.status, "dim")
    return Text("not finite" if run.status == "finished" and run.error else run.status, style)


def _curve(name: str, values: Mapping[str, Value], those: Sequence[Standing]) -> Curve | None:
    """The mean over the runs at the steps that all of them report."""
    found = [{row["step"]: float(row[name]) for row in run.rows if name in row} for run in those]
    steps = sorted(set.intersection(*map(set, found)))
    if not steps:
        return None
    means = [over_seeds([each[step] for each in found]) for step in steps]
    band = [each.ci95 for each in means] if len(those) > 1 else None
    return Curve(said(values) or name.replace("_", " "), steps, [each.mean for each in means], band)
