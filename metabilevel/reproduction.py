"""Reproductions: what a paper reports, beside what comes out here.

A paper's file says four things: the published numbers with their places, the claims that the numbers must bear out,
the protocol of each scale, and an experiment that measures. It is registered by an entry point:

    [project.entry-points."metabilevel.repro"]
    my-paper = "my_package.my_module:REPRODUCTION"

Nothing here imports jax before an experiment runs.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import InputError, did_you_mean
from .figures import Curve, Image, Panel
from .findings import Measured, Published, Report, Row, Verdict, block
from .laboratory import Lab, cores
from .storage.config import Environment
from .storage.files import dumps

if TYPE_CHECKING:
    from .evaluation import Interval

__all__ = [
    "Claim",
    "Curve",
    "Image",
    "Lab",
    "Outcome",
    "Panel",
    "Published",
    "Report",
    "Reproduction",
    "Scale",
    "percent",
]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper (at `place`), and the settings whose measurements decide it.

    - `"rising"`: each measurement exceeds the one before it by more than `margin`;
    - `"near"`: each lies within `margin` of the first;

    both at 95% confidence, the two intervals taken for independent (which is strict where episodes are shared). A
    number may stand in place of a setting.
    """

    sentence: str
    place: str
    settings: tuple[str | float, ...]
    relation: Literal["rising", "near"] = "rising"
    margin: float = 0.0

    def judge(self, measured: Mapping[str, Measured], *, conclusive: bool = True) -> Verdict:
        """Whether the claim held; None where one of its settings was not measured, or by what is not `conclusive`."""
        if any(isinstance(name, str) and name not in measured for name in self.settings):
            return Verdict(self.sentence, self.place, None, "not measured at this scale")
        values = [measured[s] if isinstance(s, str) else Measured(s) for s in self.settings]
        first, *others = values
        if self.relation == "rising":
            sign, wording = " < ", "by"
            held = all(b.mean - a.mean - self.margin > _half_width(a, b) for a, b in pairwise(values))
        else:
            sign, wording = " ≈ ", "within"
            held = all(abs(b.mean - first.mean) + _half_width(first, b) <= self.margin for b in others)
        numbers = sign.join(map(str, values)) + (f", {wording} {self.margin:g}" if self.margin else "")
        return Verdict(self.sentence, self.place, held if conclusive else None, numbers, too_short=not conclusive)


@dataclass(frozen=True)
class Scale:
    """One protocol.

    - `settings`: a dataclass of plain values, which is all that the experiment knows of its scale.
    - `protocol`: what is done, in words.
    - `departures`: each way in which that is not what the paper did.
    - `unmeasured`: published settings that are left out.
    - `conclusive`: whether the claims can be judged by it; not by a few iterations which show that it runs.
    - `compile_quickly`: XLA optimises little, which pays where next to nothing is computed; speeds then mean nothing.
    """

    settings: Any
    protocol: str
    departures: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    conclusive: bool = True
    compile_quickly: bool = False


class Outcome(NamedTuple):
    """What an experiment measured, by setting, and the curves to be drawn."""

    measured: Mapping[str, "Interval | float"]
    panels: Sequence[Panel] = ()


@dataclass(frozen=True)
class Reproduction:
    """An experiment of a paper.

    - `arxiv`: the number there, "" for what is not on arXiv.
    - `reproduces`: which tables and figures; `metric`: what all numbers are, with the unit; `interval`: what the
      published ± means.
    - `experiment(settings of the scale, lab) -> Outcome`.
    """

    name: str
    title: str
    citation: str
    arxiv: str
    reproduces: str
    metric: str
    interval: str
    published: tuple[Published, ...]
    claims: tuple[Claim, ...]
    scales: Mapping[str, Scale]
    experiment: Callable[[Any, Lab], Outcome]

    def run(self, scale: str = "small", *, seed: int = 0, progress: bool | None = None) -> Report:
        """Runs the experiment; `progress` shows bars on standard error, where that is a terminal if None.

        **Raises:** `InputError` for an unknown scale; `DataError` where a data set is missing.
        """
        chosen = self._scale(scale)
        lab, begun = Lab(seed, progress), time.perf_counter()
        with _compiling(quickly=chosen.compile_quickly):
            outcome = self.experiment(chosen.settings, lab)
        seconds = time.perf_counter() - begun
        measured = {name: _measured(value) for name, value in outcome.measured.items()}
        settings = asdict(chosen.settings)
        what = dumps({"reproduction": self.name, "scale": scale, "settings": settings, "seed": seed})
        return Report(
            about=self.about(),
            scale=scale,
            seed=seed,
            protocol=chosen.protocol,
            departures=chosen.departures,
            settings=settings,
            config_hash=hashlib.sha256(what.encode()).hexdigest(),
            rows=self._rows(measured),
            claims=tuple(claim.judge(measured, conclusive=chosen.conclusive) for claim in self.claims),
            panels=tuple(outcome.panels),
            stages=tuple(lab.stages),
            environment=Environment.current(),
            cores=cores(),
            seconds=seconds,
        )

    def about(self) -> dict[str, str]:
        """What it is, without numbers."""
        fields = ("name", "title", "citation", "arxiv", "reproduces", "metric", "interval")
        return {field: getattr(self, field) for field in fields}

    def as_json(self) -> dict[str, Any]:
        """All but what was measured."""
        return {
            **self.about(),
            "published": [asdict(number) for number in self.published],
            "claims": [asdict(claim) for claim in self.claims],
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
        }

    def promised(self, scale: str) -> list[str]:
        """The published settings that are measured at `scale`."""
        left_out = self._scale(scale).unmeasured
        return [number.setting for number in self.published if number.setting not in left_out]

    def _scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise InputError(f"scale = {name!r}: one of {', '.join(self.scales)}.{did_you_mean(name, self.scales)}")
        return self.scales[name]

    def _rows(self, measured: Mapping[str, Measured]) -> tuple[Row, ...]:
        published = {number.setting: number for number in self.published}
        settings = dict.fromkeys([*measured, *published])
        blocks = list(dict.fromkeys(map(block, settings)))
        ordered = sorted(settings, key=lambda setting: blocks.index(block(setting)))
        return tuple(Row(setting, published.get(setting), measured.get(setting)) for setting in ordered)


@contextmanager
def _compiling(*, quickly: bool) -> Iterator[None]:
    """JAX's choice between quick compilation and quick code, put back at the end."""
    import jax

    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, quickly or before)
    try:
        yield
    finally:
        jax.config.update(option, before)


def percent(interval: "Interval") -> "Interval":
    """A fraction with its interval, in percent."""
    return interval._replace(mean=100 * interval.mean, ci95=100 * interval.ci95)


def _measured(value: "Interval | float") -> Measured:
    return Measured(float(value)) if isinstance(value, (int, float)) else Measured(*value)


def _half_width(a: Measured, b: Measured) -> float:
    return math.hypot(a.ci95 or 0.0, b.ci95 or 0.0)
