"""What became of x: scores on fresh tasks, with all that is needed to read them."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.table import Table

from ..errors import ComputationError
from ..evaluation import Interval


@dataclass(frozen=True)
class Judgement:
    """Scores of x after the outer step `step`; `rows` are those of `evaluation.as_rows`."""

    step: int
    split: str
    episodes: int
    seed: int
    protocol: str | None
    rows: list[dict[str, Any]]

    def table(self, title: str) -> Table:
        """A row for each number of inner steps, a column for each metric, and the protocol beside them."""
        over = f"means and 95% confidence intervals over {self.episodes} {self.split} episodes"
        caption = f"{f'one {self.split} episode' if self.episodes == 1 else over}, at step {self.step}"
        table = Table(title=title, caption=caption)
        cells = {
            (row["steps"], row["metric"]): Interval(row["mean"], row["ci95"], row["episodes"]) for row in self.rows
        }
        every_steps, metrics = (list(dict.fromkeys(values)) for values in zip(*cells, strict=True))
        for heading in ("inner steps", *metrics):
            table.add_column(heading, justify="right")
        table.add_column("protocol")
        for steps in every_steps:
            scores = [str(cells[steps, metric]) for metric in metrics]
            table.add_row("-" if steps is None else str(steps), *scores, self.protocol or "-")
        return table

    def require_finite(self) -> None:
        """Raises a `ComputationError` that names the first score which is no finite number."""
        for row in self.rows:
            if not (isfinite(row["mean"]) and (isfinite(row["ci95"]) or row["episodes"] == 1)):
                after = "" if row["steps"] is None else f" after {row['steps']} inner steps"
                raise ComputationError(
                    f"The {row['metric']}{after} is not finite on some of the {self.episodes} {self.split} episodes: "
                    "adaptation diverged there. Lower the inner learning rate, or take fewer steps."
                )
