"""`metabilevel solve` as somebody sees it who has a file with a problem, and no more."""

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel.cli import main

EXAMPLE = Path(__file__).parents[1] / "examples" / "ridge_penalty.py"
FILE = """
import jax.numpy as jnp, metabilevel as mb, optax
print("a line of the file's own")
problem = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(2),
    inner_loss=lambda x, y, task, key: jnp.sum((y - x["centre"]) ** 2) / 2,
    outer_loss=lambda x, y, task, key: ({loss}, {{"first": y[0]}}),
)
x = {{"centre": jnp.array([3.0, -1.0])}}
solver = mb.GradientDescent(optax.sgd({rate}), steps={steps})
adjoint = {adjoint}
"""
UNROLL, IMPLICIT = "mb.Unroll()", "mb.Implicit(mb.ConjugateGradient(2))"

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """The command in this process and an empty directory: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metabilevel", "solve", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()  # pyright: ignore[reportReturnType]

    return invoke


def write(
    tmp_path: Path, loss: str = "jnp.sum(y**2)", rate: float = 0.5, steps: int = 30, adjoint: str = UNROLL
) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(loss=loss, rate=rate, steps=steps, adjoint=adjoint))
    return str(path)


def test_it_is_the_function_of_the_same_name(invoke, tmp_path):
    options = ["--steps", "12", "--outer-optimizer", "sgd", "--outer-learning-rate", "0.5"]
    status, out, _ = invoke(str(EXAMPLE), *options, "--out", "done", "--json")
    document = json.loads(out)
    assert status == 0
    assert document == json.loads((tmp_path / "done" / "result.json").read_text())
    names = runpy.run_path(str(EXAMPLE))
    given = {name: names[name] for name in ("problem", "solver")}
    key, sgd = jax.random.key(0), optax.sgd(0.5)
    problem = given.pop("problem")
    found = mb.solve(problem, names["x"], None, key=key, optimizer=sgd, steps=12, **given)
    assert document["history"] == found.history
    assert (document["success"], document["result"]) == (True, "nothing speaks against it")
    np.testing.assert_array_equal(np.load(tmp_path / "done" / "x.npz")["x"], found.x)
    assert list(document["x"].values()) == pytest.approx(np.asarray(found.x).tolist())
    assert (tmp_path / "done" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_beginning_and_end(invoke, tmp_path):
    status, out, err = invoke(write(tmp_path), "--steps", "40")
    assert status == 0
    rows = [line.strip("│ ").split("│") for line in out.splitlines() if line.startswith("│")]
    steps = [int(row[0]) for row in rows]
    assert (steps[0], steps[-1], len(steps)) == (1, 40, 10)
    assert "first" in out
    assert "nothing speaks against it" in out
    assert "x['centre'][0] = " in out
    assert err == "Solving mine.py:problem by 40 steps of adam ...\n"
    assert not (tmp_path / "done").exists()


def test_standard_output_is_one_document_whatever_the_file_prints(invoke, tmp_path):
    status, out, err = invoke(write(tmp_path), "--steps", "1", "--json")
    assert status == 0
    assert json.loads(out)["history"][0]["first"] == pytest.approx(3.0)
    assert "a line of the file's own" in err


@pytest.mark.filterwarnings("ignore::metabilevel.HypergradientWarning")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rate": 1e30}, "not finite"),
        ({"rate": 0.01, "steps": 2, "adjoint": IMPLICIT}, "the inner solve has not converged"),
    ],
)
def test_what_did_not_succeed_says_so(options, why, invoke, tmp_path):
    status, out, err = invoke(write(tmp_path, **options), "--steps", "2", "--json")
    document = json.loads(out)
    assert (status, document["success"]) == (1, False)
    assert why in document["result"]
    last = err.splitlines()[-1]
    assert last.startswith("Error: mine.py:problem: ")
    assert why in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "0' is not an integer of 1 or more"),
        (["--outer-optimizer", "newton"], "'newton' is not one of 'adam'"),
        (["--outer-learning-rate", "-1"], "'-1' is not a number above 0"),
        (["--seed", "-1"], "'-1' is not an integer from 0 to"),
        (["--out", ""], "'' is no directory"),
    ],
)
def test_wrong_options_are_named(arguments, message, invoke, tmp_path):
    status, out, err = invoke(write(tmp_path), *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert arguments[0] in err
    assert message in err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "Error: There is no file 'mine.py'"),
        ("1 / 0", "line 1: ZeroDivisionError"),
        ("x = 1", "holds no metabilevel.BilevelProblem"),
        (FILE.format(loss="y", rate=1, steps=1, adjoint=UNROLL), "outer_loss must give one floating scalar"),
        (FILE.format(loss="y @ y", rate=1, steps=1, adjoint=UNROLL) + "second = mb.BilevelProblem(*3 * [max])",
         "holds 2 problems, problem, second"),
        (FILE.format(loss="exit(0)", rate=1, steps=1, adjoint=UNROLL), "line 7: SystemExit: 0"),
        (FILE.format(loss="y @ y", rate=1, steps=1, adjoint=UNROLL)
         + "solver = mb.GradientDescent(optax.GradientTransformation(tuple, lambda *_: exit(0)), 1)", "sys.exit(0)"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(source, message, invoke, tmp_path):
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    status, _, err = invoke("mine.py")
    assert status == 2
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
