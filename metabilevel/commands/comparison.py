"""Optimizers side by side: tables, pictures and a document."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..evaluation import Interval
from ..figures import Curve, Panel, draw
from ..plots import matrix
from ..storage.config import Plugin
from ..storage.files import write_json
from ..tuning import START, Search

DOCUMENT, CURVES, TRANSFER = "compare.json", "curves.png", "transfer.png"
BEST = "best hand-made"
TOP = 10.0  # times the loss at the start: a curve that rises above it has left the picture


@dataclass(frozen=True)
class Raced:
    """One optimizer on one family: the loss by step, and the grid of its learning rate where it is hand-made."""

    optimizer: str
    losses: dict[int, Interval]
    search: Search | None = None

    @property
    def name(self) -> str:
        return self.optimizer if self.search is None else f"{self.optimizer}, rate {self.search.best:g}"

    @property
    def last(self) -> Interval:
        return self.losses[max(self.losses)]

    def as_json(self) -> dict[str, Any]:
        loss = [{"step": step, **interval._asdict()} for step, interval in self.losses.items()]
        if self.search is None:
            return {"optimizer": self.optimizer, "loss": loss}
        tuned = {"rate": self.search.best, "interior": self.search.interior, "grid": self.search.as_rows()}
        return {"optimizer": self.optimizer, "loss": loss, **tuned}


@dataclass(frozen=True)
class Family:
    """What every optimizer came to on the functions of a family."""

    name: str
    plugin: Plugin
    protocol: str
    raced: list[Raced]

    @property
    def best(self) -> Raced:
        """The hand-made optimizer of the least loss at the end, which favours it: on the test functions."""
        return min((each for each in self.raced if each.search), key=lambda each: _comparable(each.last.mean))

    @property
    def learned(self) -> list[Raced]:
        return [each for each in self.raced if not each.search]

    def remarks(self, raced: Raced) -> list[str]:
        """What must be known of the tuning of a hand-made optimizer."""
        if raced.search is None:
            return []
        who, numbers = f"{raced.optimizer} on {self.name}", list(raced.search.scores)
        said = []
        if not raced.search.interior:
            said.append(f"Warning: {who}: rate {raced.search.best:g} is the best, and is an end of its grid.")
        elif (numbers[0], numbers[-1]) != START:
            said.append(f"{who}: the grid of rates was extended to {numbers[0]:g} ... {numbers[-1]:g}.")
        if not raced.last.mean <= raced.losses[0].mean:
            best = f"rate {raced.search.best:g}, the best on validation functions,"
            said.append(f"Warning: {who}: {best} does worse on test functions than no step. Take more --episodes.")
        return said

    def ratio(self, raced: Raced) -> float:
        """The loss at the end over that of `best`; NaN where that says nothing."""
        mean, best = raced.last.mean, self.best.last.mean
        return mean / best if math.isfinite(mean) and 0 < best < math.inf else math.nan

    def table(self, at: list[int], episodes: int) -> Table:
        caption = f"mean loss and 95% confidence interval over {episodes} test functions; {self.protocol}"
        table = Table("optimizer", title=self.name, caption=caption)
        for step in at:
            table.add_column(f"step {step}", justify="right")
        for each in self.raced:
            table.add_row(each.name, *(_shown(each.losses[step]) for step in at))
        return table

    def panel(self) -> Panel:
        """The curves, each as far as it stays in sight."""
        start = max(each.losses[min(each.losses)].mean for each in self.raced)
        seen = lambda value: value if value <= TOP * abs(start) else math.nan
        curves = []
        for each in self.raced:
            means, bands = zip(*((seen(i.mean), i.ci95) for i in each.losses.values()), strict=True)
            curves.append(Curve(each.optimizer, list(each.losses), means, bands))
        return Panel(self.name, "step", "loss", curves, log="y")


@dataclass(frozen=True)
class Comparison:
    """Learned and hand-made optimizers on several families. `sources` are the learned ones: where they lie, by name."""

    sources: dict[str, str]
    rules: dict[str, Plugin]
    families: list[Family]
    at: list[int]
    steps: int
    episodes: int
    batch: int | None
    seed: int

    @property
    def transfers(self) -> bool:
        """Whether there is more than one pair of a learned optimizer and a family."""
        return len(self.sources) * len(self.families) > 1

    def remarks(self) -> list[str]:
        """What must be known of the tuning: where a grid was extended, and where its best is doubtful."""
        return [remark for family in self.families for each in family.raced for remark in family.remarks(each)]

    def tables(self) -> list[Table]:
        found = [family.table(self.at, self.episodes) for family in self.families]
        if self.transfers:
            title = f"Loss at step {self.steps}, and its ratio to the best hand-made optimizer's"
            table = Table("optimizer", *(family.name for family in self.families), title=title)
            for name, *cells in self._cells(" "):
                table.add_row(name, *cells)
            found.append(table)
        return found

    def as_json(self) -> dict[str, Any]:
        fields = ("at", "steps", "episodes", "batch", "seed")
        learned = [{"optimizer": n, "source": s, **asdict(self.rules[n])} for n, s in self.sources.items()]
        families = [
            {
                "family": family.name,
                **asdict(family.plugin),
                "protocol": family.protocol,
                "optimizers": [{**each.as_json(), "ratio": family.ratio(each)} for each in family.raced],
            }
            for family in self.families
        ]
        return {**{field: getattr(self, field) for field in fields}, "learned": learned, "families": families}

    def save(self, folder: Path) -> None:
        """The document and the pictures."""
        write_json(folder / DOCUMENT, self.as_json())
        draw(folder / CURVES, "Learned and tuned optimizers", [family.panel() for family in self.families])
        if self.transfers:
            names, cells = zip(*((name, cells) for name, *cells in self._cells("\n")), strict=True)
            ratios = [[family.ratio(family.learned[i]) for family in self.families] for i in range(len(self.sources))]
            ratios.append([1.0] * len(self.families))
            title = f"Loss at step {self.steps} (x ratio to the {BEST})"
            matrix(folder / TRANSFER, title, names, [family.name for family in self.families], cells, ratios)

    def _cells(self, between: str) -> list[list[str]]:
        """Rows of the transfer matrix: a name, and the loss and ratio on each family."""
        rows = [
            [name, *(self._cell(family, family.learned[i], between) for family in self.families)]
            for i, name in enumerate(self.sources)
        ]
        best = [f"{_shown(family.best.last)}{between}({family.best.name})" for family in self.families]
        return [*rows, [BEST, *best]]

    def _cell(self, family: Family, raced: Raced, between: str) -> str:
        ratio = family.ratio(raced)
        return _shown(raced.last) + (f"{between}(x {ratio:.3g})" if math.isfinite(ratio) else "")


def _comparable(mean: float) -> float:
    return mean if math.isfinite(mean) else math.inf


def _shown(interval: Interval) -> str:
    return str(interval) if math.isfinite(interval.mean) else "diverged"
