"""MAML on Omniglot: Table 1 of Finn, Abbeel & Levine 2017 (arXiv:1703.03400), section 5.2."""

from dataclasses import dataclass, replace
from typing import Literal

import metabilevel as mb
from metabilevel.reproduction import (
    Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale, percent,
)  # fmt: skip

TESTED = 3  # gradient steps at test
JUDGED = (0, 1, 2, 3, 5, 10)


@dataclass(frozen=True)
class Training:
    """How one cell of the table is trained; `alpha` and `steps` are those of the inner loop, on the mean loss."""

    ways: int
    shots: int
    method: Literal["MAML", "first-order MAML", "MAML without convolutions"]
    iterations: int
    meta_batch: int = 32
    queries: int | None = None  # of a class, in training; as many as shots if None
    alpha: float = 2.0
    steps: int = 1

    @property
    def setting(self) -> str:
        """The name of the row."""
        return f"{self.ways}-way {self.shots}-shot, {self.method}"


@dataclass(frozen=True)
class Settings:
    """Adam with `learning_rate`, which falls to 0 as a cosine where `cosine_decay`; `filters` of a convolution."""

    trainings: tuple[Training, ...]
    learning_rate: float = 1e-3
    cosine_decay: bool = False
    filters: int = 64
    episodes: int = 600


def _published(method: str, place: str, cells: dict[str, tuple[float, float]]) -> list[Published]:
    return [Published(f"{cell}, {method}", value, ci95, place) for cell, (value, ci95) in cells.items()]


NICHOL = "Nichol et al. 2018, Table 2"
PUBLISHED = (
    *_published("MAML", "Table 1", {"5-way 1-shot": (98.7, 0.4), "5-way 5-shot": (99.9, 0.1),
                                    "20-way 1-shot": (95.8, 0.3), "20-way 5-shot": (98.9, 0.2)}),
    *_published("first-order MAML", NICHOL, {"5-way 1-shot": (98.3, 0.5), "5-way 5-shot": (99.2, 0.2),
                                             "20-way 1-shot": (89.4, 0.5), "20-way 5-shot": (97.9, 0.1)}),
    *_published("MAML without convolutions", "Table 1", {"5-way 1-shot": (89.7, 1.1), "5-way 5-shot": (97.5, 0.6)}),
)  # fmt: skip

CLAIMS = (
    Claim("More drawings of a class, higher accuracy.", "Table 1", ("5-way 1-shot, MAML", "5-way 5-shot, MAML")),
    Claim("Convolutions help at one shot.", "Table 1",
          ("5-way 1-shot, MAML without convolutions", "5-way 1-shot, MAML"), margin=2.0),
    Claim("Convolutions help at five shots.", "Table 1",
          ("5-way 5-shot, MAML without convolutions", "5-way 5-shot, MAML")),
    Claim("First-order MAML comes within 2 points of MAML.", f"section 5.2; {NICHOL}",
          ("5-way 1-shot, MAML", "5-way 1-shot, first-order MAML"), "near", margin=2.0),
    Claim("More steps at test than in training do no harm.", "section 5.2",
          ("5-way 1-shot, MAML, after 3 steps", "5-way 1-shot, MAML, after 10 steps"), "near", margin=1.5),
    Claim("Predicting all queries together, whose statistics inform one another, helps.", "Nichol et al. 2018, Table 2",
          ("5-way 1-shot, MAML, queries one by one", "5-way 1-shot, MAML")),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains and tests every cell."""
    measured, panels, training = {}, {}, []
    for cell in s.trainings:
        method, x, history = _train(cell, s, lab)
        cell_panel = panels.setdefault(f"{cell.ways}-way {cell.shots}-shot", [])
        training.append(history)
        found = _test(cell, method, x, True, s, lab)
        curve = [percent(found[k]["accuracy"]) for k in JUDGED]
        cell_panel.append(Curve(cell.method, JUDGED, [i.mean for i in curve], [i.ci95 for i in curve]))
    return Outcome(measured, panels)
