"""Curves of classification: accuracy at test, with the paper's beside it, and error in training."""

from collections.abc import Mapping
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Curve, Lab, Panel, percent


def at_test(name: str, found: Mapping[Any, Mapping[str, mb.Interval]], published: float | None) -> list[Curve]:
    """Accuracy in percent by number of gradient steps, and the published one as a level line."""
    steps, accuracy = list(found), [percent(metrics["accuracy"]) for metrics in found.values()]
    ours = Curve(name, steps, [i.mean for i in accuracy], [i.ci95 for i in accuracy])
    if published is None:
        return [ours]
    return [ours, Curve(name, (steps[0], steps[-1]), (published, published), style="paper")]


def in_training(name: str, lab: Lab) -> Curve:
    """Error of the queries in percent over the last training of `lab`."""
    rows = lab.stages[-1].history
    return Curve(name, [row["step"] for row in rows], [100 * (1 - row["accuracy"]) for row in rows])


def test_panel(title: str, curves: list[Curve]) -> Panel:
    """Curves of `at_test`."""
    return Panel(title, "gradient steps at test", "accuracy (%)", curves)


def training_panel(curves: list[Curve], of: str = "queries of the training tasks") -> Panel:
    """Curves of `in_training`."""
    return Panel(of, "iterations", "error (%)", curves, log="y")
