"""What a reproduction found: rows, verdicts and curves, as JSON, as a picture and as a table."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .figures import Curve, Image, Panel, draw
from .laboratory import Stage
from .storage.config import Environment
from .storage.files import read_json, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

RESULT, PICTURE = "result.json", "curves.png"
_SOURCES = {"paper": "", "figure": ", read by eye", "code": ", authors' code"}


@dataclass(frozen=True)
class Published:
    """A number of a paper: `place` says where it stands; `source` whether it was read in the text, off a figure, or
    in the authors' code. What ± `interval` means is the paper's own business, and the reproduction says it."""

    setting: str
    value: float
    interval: float | None
    place: str
    source: Literal["paper", "figure", "code"] = "paper"

    def __str__(self) -> str:
        return f"{self.value:g}" + (f" ± {self.interval:g}" if self.interval is not None else "")


@dataclass(frozen=True)
class Measured:
    """Our number: a mean over `episodes` with the half width of its 95% confidence interval, where it has one."""

    mean: float
    ci95: float | None = None
    episodes: int | None = None

    @property
    def decimals(self) -> int:
        """Two digits of the interval are shown, and as many decimals of the mean."""
        if not self.ci95 or not math.isfinite(self.ci95):
            return 2
        return min(3, max(0, 1 - math.floor(math.log10(self.ci95))))

    def __str__(self) -> str:
        if self.ci95 is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.{self.decimals}f} ± {self.ci95:.{self.decimals}f}"


@dataclass(frozen=True)
class Row:
    """A setting with the paper's number and ours, where there are such."""

    setting: str
    published: Published | None
    ours: Measured | None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return None if self.published is None or self.ours is None else self.ours.mean - self.published.value


@dataclass(frozen=True)
class Verdict:
    """A claim, and whether the `numbers` bear it out; None where they were not measured, or the run was `too_short`."""

    sentence: str
    place: str
    held: bool | None
    numbers: str
    too_short: bool = False

    def __str__(self) -> str:
        unjudged = "too short to judge" if self.too_short else "not measured"
        return {True: "held", False: "did not hold", None: unjudged}[self.held]


@dataclass(frozen=True)
class Report:
    """Everything about one run of a reproduction; `about` is `Reproduction.about()`."""

    about: dict[str, str]
    scale: str
    seed: int
    protocol: str
    departures: tuple[str, ...]
    settings: dict[str, Any]
    config_hash: str
    rows: tuple[Row, ...]
    claims: tuple[Verdict, ...]
    panels: tuple[Panel, ...]
    stages: tuple[Stage, ...]
    environment: Environment
    cores: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        rows = [{**asdict(row), "difference": row.difference} for row in self.rows]
        bare = replace(self, panels=tuple(replace(panel, images=()) for panel in self.panels))
        fields = asdict(bare)
        for panel, drawn in zip(fields["panels"], self.panels, strict=True):
            panel["images"] = [image.as_json() for image in drawn.images]
        return {**fields, "rows": rows}

    def save(self, folder: Path) -> None:
        """Writes `result.json` and, where there are curves, `curves.png` into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT, self.as_json())
        if self.panels:
            draw(folder / PICTURE, f"{self.about['title']} ({self.scale} scale)", self.panels)

    @classmethod
    def load(cls, folder: Path) -> "Report":
        """What `save` wrote."""
        fields = read_json(folder / RESULT)
        return cls(
            **{
                **fields,
                "departures": tuple(fields["departures"]),
                "rows": tuple(_row(row) for row in fields["rows"]),
                "claims": tuple(Verdict(**claim) for claim in fields["claims"]),
                "panels": tuple(_panel(panel) for panel in fields["panels"]),
                "stages": tuple(Stage(s["label"], s["seconds"], tuple(s["history"])) for s in fields["stages"]),
                "environment": Environment(**fields["environment"]),
            }
        )

    def table(self) -> "RenderableType":
        """Numbers, claims and departures, to be printed by rich."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        about = self.about
        numbers = Table(title=f"{about['title']}: {self.scale} scale, seed {self.seed}", caption=about["metric"])
        for heading in ("setting", "paper", "ours, 95% CI", "difference", "where in the paper"):
            numbers.add_column(heading, justify="left" if heading[0] in "sw" else "right")
        for _, rows in groupby(self.rows, lambda row: block(row.setting)):
            for row in rows:
                numbers.add_row(row.setting, _shown(row.published), _shown(row.ours), _signed(row), _place(row))
            numbers.add_section()
        claims = Table("verdict", "claim", "our numbers, as the claim wants them", title="Claims of the paper")
        for claim in self.claims:
            style = {True: "green", False: "bold red", None: "dim"}[claim.held]
            claims.add_row(Text(str(claim), style), f"{claim.sentence} ({claim.place})", claim.numbers)
        notes = [f"{cited(about)}; the paper's ±: {about['interval']}.", self.protocol]
        notes += [f"Departure: {departure}" for departure in self.departures]
        notes += [f"{self.seconds:.0f} s on {self.environment.device}, {self.cores} cores."]
        return Group(numbers, *([claims] if self.claims else []), Text("\n".join(notes)))


def cited(about: Mapping[str, str]) -> str:
    """The citation, with the number on arXiv where there is one."""
    return f"{about['citation']}, arXiv:{about['arxiv']}" if about["arxiv"] else about["citation"]


def block(setting: str) -> str:
    """The part of a table in which a setting has its row: what stands before the first comma."""
    return setting.partition(",")[0]


def _shown(number: object) -> str:
    return "-" if number is None else str(number)


def _signed(row: Row) -> str:
    if row.difference is None or row.ours is None:
        return ""
    return f"{row.difference:+.3g}" if row.ours.ci95 is None else f"{row.difference:+.{row.ours.decimals}f}"


def _place(row: Row) -> str:
    return f"{row.published.place}{_SOURCES[row.published.source]}" if row.published else ""


def _row(fields: Mapping[str, Any]) -> Row:
    published, ours = fields["published"], fields["ours"]
    return Row(fields["setting"], published and Published(**published), ours and Measured(**ours))


def _panel(fields: Mapping[str, Any]) -> Panel:
    images = tuple(Image.from_json(image) for image in fields.get("images", ()))
    return Panel(**{**fields, "curves": tuple(Curve(**curve) for curve in fields["curves"]), "images": images})
