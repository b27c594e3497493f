"""What became of x: scores on fresh tasks, with all that is needed to read them."""

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..errors import ComputationError
from ..evaluation import Interval
from ..problem import Outer

FEW = 8  # numbers of x, which are worth reading
WIDTH = 72  # of a table at least, so that the lines below it are not short


def numbers(x: Outer) -> dict[str, float]:
    """The entries of x by name, as `x['rate'][0]`; none where there are more than a `FEW`."""
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if sum(a.size for _, a in leaves) > FEW:
        return {}
    return {
        f"x{jax.tree_util.keystr(path)}{''.join(f'[{i}]' for i in index)}": float(value)
        for path, leaf in leaves
        for index, value in np.ndenumerate(np.asarray(leaf))
    }


@dataclass(frozen=True)
class Judgement:
    """Scores of x after the outer step `step`; `rows` are those of `evaluation.as_rows`, `x` its `numbers`."""

    step: int
    split: str
    episodes: int
    seed: int
    protocol: str | None
    rows: list[dict[str, Any]]
    x: dict[str, float] = field(default_factory=dict)

    def table(self, title: str) -> Table:
        """A row for each number of inner steps, a column for each metric; below them the protocol and x."""
        over = f"means and 95% confidence intervals over {self.episodes} {self.split} episodes"
        caption = f"{f'one {self.split} episode' if self.episodes == 1 else over}, at step {self.step}"
        found = ", ".join(f"{name} = {value:.4g}" for name, value in self.x.items())
        caption = "\n".join(filter(None, [caption, self.protocol, found]))
        table = Table(title=title, caption=caption, min_width=WIDTH)
        cells = {
            (row["steps"], row["metric"]): Interval(row["mean"], row["ci95"], row["episodes"]) for row in self.rows
        }
        every_steps, metrics = (list(dict.fromkeys(values)) for values in zip(*cells, strict=True))
        for heading in ("inner steps", *metrics):
            table.add_column(heading, justify="right")
        for steps in every_steps:
            scores = [str(cells[steps, metric]) for metric in metrics]
            table.add_row("-" if steps is None else str(steps), *scores)
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
