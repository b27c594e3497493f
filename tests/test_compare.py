"""From a run to a file to a comparison, by the command line as it is installed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import metabilevel as mb
from metabilevel.cli import main
from metabilevel.commands.compare import BASELINES, TUNED
from metabilevel.commands.experiment import JUDGED, Experiment
from metabilevel.optimizing import unrolled
from metabilevel.registry import RULES, load
from metabilevel.storage.checkpoint import checkpoints, restore, save
from metabilevel.storage.runs import Run

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
SMALL = ["--steps", "10", "--episodes", "6", "--seed", "3"]
FAMILIES = ("quadratics dimension=3", "quadratics dimension=2 law=uniform")


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / ".cache"),  # what one program has compiled, the others need not
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = {**os.environ, **cache, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run([PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the run directory `trained`, and the file `it.opt` that was exported from it."""
    path = tmp_path_factory.mktemp("compare")
    options = "--tasks quadratics --task-option dimension=3 --inner-steps 10 --window 5 --steps 4 --meta-batch 2"
    trained = program(
        path, "run", "learned-rate", *options.split(), "--validation", "5", "--every", "1", "--out", "trained"
    )
    assert trained.returncode == 0, trained.stderr
    said = document(program(path, "export", "trained", "--out", "it.opt", "--json"))
    step = json.loads((path / "trained" / "summary.json").read_text())["evaluation"]["step"]
    own = {"learning_rate": 0.01}
    rule = {"name": "learned-rate", "distribution": "metabilevel", "version": mb.__version__, "options": own}
    assert said == {"run": "trained", "step": step, "file": "it.opt", "rule": rule, "weights": 1}
    return path


def test_a_comparison(folder: Path):
    families = [argument for name in FAMILIES for argument in ("--tasks", name)]
    found = document(program(folder, "compare", "trained", "it.opt", *families, *SMALL, "--out", "both", "--json"))
    assert found == json.loads((folder / "both" / "compare.json").read_text())
    assert sorted(path.name for path in (folder / "both").iterdir()) == ["compare.json", "curves.png", "transfer.png"]
    assert (found["at"], found["steps"], found["episodes"], found["seed"]) == ([0, 2, 5, 10], 10, 6, 3)
    assert [each["source"] for each in found["learned"]] == ["trained", "it.opt"]
    assert [family["family"] for family in found["families"]] == list(FAMILIES)
    for family in found["families"]:
        raced = {each["optimizer"]: each for each in family["optimizers"]}
        assert list(raced) == ["trained", "it", *BASELINES]
        assert raced["trained"]["loss"] == raced["it"]["loss"]
        assert {each["loss"][0]["mean"] for each in raced.values()} == {raced["it"]["loss"][0]["mean"]}
        last = {name: each["loss"][-1]["mean"] for name, each in raced.items()}
        best = min(last[name] for name in BASELINES)
        for name, each in raced.items():
            assert [row["step"] for row in each["loss"]] == list(range(11))
            assert each["ratio"] == pytest.approx(last[name] / best)
            if name in BASELINES:
                scores = {row["number"]: row["mean"] for row in each["grid"]}
                assert each["interior"]
                assert min(scores) < each["rate"] < max(scores)
                assert scores[each["rate"]] == min(mean for mean in scores.values() if isinstance(mean, float))
    again = unrolled_losses(folder / "it.opt", found["families"][0]["options"])
    assert [row["mean"] for row in found["families"][0]["optimizers"][1]["loss"]] == pytest.approx(again, rel=1e-4)


def test_of_a_run_x_alone_is_read(folder: Path, tmp_path: Path):
    """A release in which carries have another shape must still evaluate and export what was learned."""
    run = tmp_path / "older"
    shutil.copytree(folder / "trained", run)
    experiment = Experiment.build(Run.open(run).config)
    newest = checkpoints(run / "checkpoints")[-1]
    metadata = restore(newest.parent, experiment.start()).metadata
    best = restore(newest.parent, experiment.start()).tree.best
    save(newest.parent, int(newest.stem), replace(experiment.start(), best=best, carry=jnp.zeros(7)), metadata)
    _, x, step = Experiment.restored(run)
    assert eqx.tree_equal(x, best.x)
    assert step == int(best.step)
    assert eqx.tree_equal(x, mb.load_optimizer(folder / "it.opt").weights)


def unrolled_losses(path: Path, options: dict[str, Any]) -> list[float]:
    """The losses at steps 0 to 10 of the optimizer in a file, by the library alone."""
    optimizer, tasks = mb.load_optimizer(path), mb.load_tasks("quadratics")(**options)
    method = unrolled(optimizer.rule, tasks.subject, steps=10)
    key = jax.random.fold_in(jax.random.key(3), JUDGED)
    scores = mb.evaluate(method, optimizer.weights, tasks, key=key, episodes=6, steps=range(11))
    return [each["loss"].mean for each in scores.values()]


def test_one_optimizer_on_one_family(folder: Path):
    family = ["--tasks", "quadratics", "--task-option", "dimension=3"]
    done = program(folder, "compare", "it.opt", *family, *SMALL, "--at", "1,4")
    assert done.returncode == 0
    assert sorted(path.name for path in (folder / "comparison").iterdir()) == ["compare.json", "curves.png"]
    assert "Written to comparison" in done.stdout
    assert "over 6 test functions; |W y - t|^2" in " ".join(done.stdout.split())
    assert all(word in done.stdout for word in ("step 1 ", "step 4 "))
    assert "step 10" not in done.stdout
    tasks = mb.load_tasks("quadratics")(dimension=3)
    made = load(RULES, "hand-made")(optimizer="adam")
    search = mb.tune(
        unrolled(made, tasks.subject, steps=10),
        lambda rate: load(RULES, "hand-made")(learning_rate=rate).init(None, None),
        tasks, key=jax.random.fold_in(jax.random.key(3), TUNED), episodes=6, steps=10,
    )  # fmt: skip
    assert f"Adam, rate {search.best:g} " in done.stdout


WRONG = {
    "export none --out x": "There is no run in none",
    "export trained": "Missing option '--out'",
    "export trained --out ''": "'' is a directory: name a file",
    "export trained --out none/x": "There is no directory 'none' for 'x'",
    "export other --out x": "The run in other is of maml: A learned optimizer is wanted",
    "compare": "Missing argument 'RUN_OR_FILE...'",
    "compare it.opt": "Missing option '--tasks'",
    "compare it.opt --tasks quadratic": "no task family 'quadratic'. Did you mean 'quadratics'?",
    "compare it.opt --tasks 'quadratics dim=3'": "quadratics dim=3: There is no option 'dim'",
    "compare it.opt --tasks 'quadratics dimension'": "'dimension' is not of the form NAME=VALUE",
    "compare it.opt --tasks '\"quadratics'": "cannot be split into words: No closing quotation",
    "compare it.opt --tasks quadratics --batch 2": "--batch 2: the functions of quadratics draw their minibatches",
    "compare it.opt --tasks quadratics --out it.opt": "'--out': 'it.opt' is a file, and no directory.",
    "compare it.opt --tasks quadratics --steps 9999999999": "'9999999999' is not an integer from 1 to 2147483647",
    "compare it.opt --tasks quadratics --task-option dimension=9999999999": "2147483647 or less is wanted",
    "compare it.opt --tasks quadratics --task-option dimension=0": "quadratics: dimension = 0",
    "compare it.opt --tasks quadratics --tasks quadratics": "--tasks 'quadratics' is given twice",
    "compare it.opt it.opt --tasks quadratics": "A learned optimizer is given twice",
    "compare it.opt --tasks quadratics --steps 5 --at 0,9": "--at 9: every optimizer takes --steps 5",
    "compare it.opt --tasks quadratics --episodes 1": "'1' is not an integer of 2 or more",
    "compare none --tasks quadratics": "none cannot be read: No such file or directory",
    "compare trained/config.json --tasks quadratics": "it does not begin as optimizer files do",
    "compare other --tasks quadratics": "The run in other is of maml: A learned optimizer is wanted",
    "compare it.opt --tasks sinusoid": "it on sinusoid: The weights do not fit the rule LearnedRate: x['log_rates']",
}


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """With the run directory `other`, of a method that is no learned optimizer."""
    done = program(folder, "run", "maml", "--tasks", "sinusoid", "--steps", "1", "--meta-batch", "1", "--out", "other")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_line(
    line: str, other: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(other)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", ["metabilevel", *shlex.split(line)])
    before = sorted(other.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert WRONG[line] in err
    assert sorted(other.rglob("*")) == before
