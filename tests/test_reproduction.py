"""The framework of the reproductions, with a paper made up for it."""

import json
import math
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from metabilevel import InputError, Interval, reproduction
from metabilevel.commands.repro import command as repro
from metabilevel.findings import Measured
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Report, Reproduction, Scale, percent

DECADES = [0.1, 1.0, 10.0]
CLAIMS = (
    Claim("Ours is lower.", "Table 1", ("A, ours", "A, theirs")),
    Claim("By a lot.", "Table 1", ("A, ours", "A, theirs"), margin=1.95),
    Claim("They are alike.", "Figure 1", ("A, ours", "A, theirs"), "near", margin=2.5),
    Claim("They are the same.", "Figure 1", ("A, ours", "A, theirs"), "near", margin=2.0),
    Claim("It holds elsewhere.", "Table 2", ("A, ours", "B, ours")),
    Claim("It is above one half.", "Table 1", (0.5, "A, ours")),
    Claim("What diverged is lower than anything.", "Table 3", ("A, diverged", "A, theirs")),
)


@dataclass(frozen=True)
class Settings:
    shift: float


def experiment(s: Settings, lab: Lab) -> Outcome:
    rows = {"A, ours": Interval(1.0 + s.shift, 0.1, 60), "A, theirs": Interval(3.0 + s.shift, 0.2, 60)}
    curves = [
        Curve("ours", DECADES, [1.0, 2.0, 3.0], [0.1, 0.2, 0.3]),
        Curve("ours", DECADES, [1.0, 1.0, 1.0], style="paper"),
        Curve("what is true", DECADES, [3.0, 2.0, 1.0], style="truth"),
        Curve("examples", [1.0], [1.0], style="data"),
    ]
    diverged = {"A, diverged": Interval(math.inf, math.nan, 60), "A, ratio": 2.0}
    return Outcome(rows | diverged, [Panel("a panel", "x (s)", "y (%)", curves, log="xy")] * 4)


TOY = Reproduction(
    name="toy",
    title="A toy",
    citation="Nobody 2000, Nothing",
    arxiv="0000.00000",
    reproduces="Table 1",
    metric="errors",
    interval="none",
    published=(Published("A, ours", 0.5, 0.25, "Table 1"), Published("B, ours", 7.0, None, "Figure 2", "figure")),
    claims=CLAIMS,
    scales={
        "smoke": Scale(Settings(0.0), "Hardly anything.", ("It is made up.",), unmeasured=("B, ours",)),
        "full": Scale(Settings(1.0), "Everything."),
    },
    experiment=experiment,
)


@pytest.fixture(scope="module")
def report() -> Report:
    return TOY.run("smoke", seed=3)


def test_rows_set_ours_beside_the_paper(report):
    rows = {row.setting: row for row in report.rows}
    assert list(rows) == ["A, ours", "A, theirs", "A, diverged", "A, ratio", "B, ours"]
    assert rows["A, ours"].difference == 0.5
    assert rows["A, theirs"].published is None
    assert rows["B, ours"].ours is None
    assert rows["B, ours"].difference is None
    assert rows["A, ratio"].ours == Measured(2.0)


def test_claims_are_judged_by_the_intervals(report):
    held = {verdict.sentence: verdict.held for verdict in report.claims}
    assert list(held.values()) == [True, False, True, False, None, True, False]
    assert report.claims[1].numbers == "1.00 ± 0.10 < 3.00 ± 0.20, by 1.95"


def test_a_scale_that_is_too_short_gives_numbers_and_no_verdict(tmp_path):
    short = {"short": Scale(Settings(0.0), "Hardly anything.", conclusive=False)}
    report = replace(TOY, scales=short).run("short", progress=False)
    assert {(verdict.held, str(verdict)) for verdict in report.claims} == {
        (None, "too short to judge"),
        (None, "not measured"),
    }
    assert report.claims[1].numbers == "1.00 ± 0.10 < 3.00 ± 0.20, by 1.95"
    report.save(tmp_path)
    assert Report.load(tmp_path).claims == report.claims
    assert json.loads((tmp_path / "result.json").read_text())["claims"][0]["too_short"] is True
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.table())
    assert "too short to judge" in shown.get()
    assert "held" not in shown.get()
    assert "did not hold" not in shown.get()


def test_what_is_promised_leaves_out_what_a_scale_does_not_measure():
    assert TOY.promised("smoke") == ["A, ours"]
    assert TOY.promised("full") == ["A, ours", "B, ours"]


def test_the_record_says_how_to_repeat_it(report):
    record = report.as_json()
    assert (record["scale"], record["seed"], record["settings"]) == ("smoke", 3, {"shift": 0.0})
    assert record["about"]["arxiv"] == "0000.00000"
    assert record["environment"]["versions"]["jax"]
    assert record["config_hash"] == TOY.run("smoke", seed=3).config_hash
    assert record["config_hash"] != TOY.run("smoke", seed=4).config_hash
    assert record["config_hash"] != TOY.run("full", seed=3).config_hash


def test_json_is_strict_and_comes_back(report, tmp_path):
    report.save(tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / "result.json").read_text()
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    record = json.loads(text, parse_constant=refuse)
    assert record["rows"][0]["published"]["place"] == "Table 1"
    assert record["claims"][0]["held"] is True
    again = Report.load(tmp_path / "new" / "folder")
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "result.json").read_text() == text


def test_images_come_back_in_8_bits(report, tmp_path):
    grey, colour = np.arange(12.0).reshape(3, 4), np.linspace(0, 1, 36).reshape(3, 4, 3)
    images = [reproduction.Image("grey", grey.tolist()), reproduction.Image("colour", colour.tolist())]
    replace(report, panels=(Panel("pictures", "", "", (), images=images),)).save(tmp_path)
    (panel,) = Report.load(tmp_path).panels
    assert [image.name for image in panel.images] == ["grey", "colour"]
    np.testing.assert_allclose(panel.images[0].pixels, grey / 11, atol=0.5 / 255)
    np.testing.assert_allclose(panel.images[1].pixels, colour, atol=0.5 / 255)


def test_the_picture_is_one(report, tmp_path):
    report.save(tmp_path)
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    blue = np.all(np.abs(pixels.astype(int) - (0x00, 0x72, 0xB2)) < 10, axis=-1)
    assert blue.sum() > 1000, "the first curve is drawn in the first colour"


def test_the_table_shows_numbers_claims_and_departures(report):
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.table())
    for text in ("0.5 ± 0.25", "1.00 ± 0.10", "+0.50", "Figure 2, read by eye", "did not hold", "not measured",
                 "It is made up.", "inf ± nan"):  # fmt: skip
        assert text in shown.get(), text


def test_what_a_clone_holds_of_the_small_scale_is_shown(tmp_path, monkeypatch):
    show = lambda *arguments: CliRunner().invoke(repro, ["show", "imaml-error", *arguments])
    source = Path(find_spec("metabilevel_repro").origin).parent
    result = json.loads((source.parent / "results" / "imaml-error" / "small" / "result.json").read_text())
    document = json.loads(show("--json").output)
    assert document["result"]["rows"] == result["rows"]
    assert document["result"]["claims"] == result["claims"]
    assert "This result lies in" in show().output
    installed = SimpleNamespace(origin=str(tmp_path / "site-packages" / "metabilevel_repro" / "imaml_error.py"))
    monkeypatch.setattr("metabilevel.commands.repro.find_spec", lambda module: installed)
    assert "result" not in json.loads(show("--json").output)
    assert "lies in" not in show().output


def test_an_unknown_scale_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"scale = 'smokes'.*smoke, full.*Did you mean 'smoke'"):
        TOY.run("smokes")


@pytest.mark.parametrize(
    ("mean", "ci95", "text"),
    [(0.61843, 0.0678, "0.618 ± 0.068"), (98.7, 0.42, "98.70 ± 0.42"), (41.2, 13.0, "41 ± 13"),
     (1e-14, 1e-15, "0.000 ± 0.000"), (0.0, 0.0, "0.00 ± 0.00"), (0.005, None, "0.005")],
)  # fmt: skip
def test_numbers_have_the_digits_that_their_intervals_allow(mean, ci95, text):
    assert str(Measured(mean, ci95)) == text


def test_percent():
    assert percent(Interval(0.5, 0.01, 600)) == Interval(50.0, 1.0, 600)


def test_a_lab_gives_every_method_the_same_start_and_logs_what_it_did():
    import optax

    import metabilevel as mb

    lab, tasks = Lab(seed=0), mb.load_tasks("sinusoid")()
    union = mb.load_method("union")(tasks.subject)
    before = lab.fit("nothing", union, tasks, optax.sgd(0.1), steps=0, meta_batch=2)
    maml = mb.load_method("maml")(tasks.subject, learning_rate=0.01)
    also = lab.fit("nothing either", maml, tasks, optax.sgd(0.1), steps=0, meta_batch=2)
    np.testing.assert_array_equal(before["head"]["weights"], also["head"]["weights"])
    lab.fit("some", union, tasks, optax.sgd(1e-3), steps=4, meta_batch=2, every=2)
    lab.evaluate("a test", union, before, tasks, episodes=2)
    assert [stage.label for stage in lab.stages] == ["nothing", "nothing either", "some", "a test"]
    assert [row["step"] for row in lab.stages[2].history] == [2, 4]
    assert lab.stages[2].rate > 0
    assert math.isnan(lab.stages[3].rate)
