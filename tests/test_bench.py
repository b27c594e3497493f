"""`metabilevel bench`: what is timed computes the same, peers take part or are a line, and the docs are the results."""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metabilevel.bench import Case, Race, Study, alternate, compiled
from metabilevel.bench.measure import measure
from metabilevel.bench.report import PAGE, load, page, write
from metabilevel.bench.timing import Times
from metabilevel.errors import ComputationError

ROOT = Path(__file__).parents[1]
SERVE = """
import json, sys
import numpy as np
PEERS = ["right", "wrong", "absent", "dies", "dies later"]
if sys.argv[1] == "--list":
    print(json.dumps({"square": PEERS}))
    sys.exit()
workload, peer, file = sys.argv[1:]
if peer == "absent":
    print(json.dumps({"missing": "it has no wheel"}))
    sys.exit()
print(json.dumps({"ready": True, "versions": {"numpy": np.__version__}}), flush=True)
given = np.load(file)
for calls, line in enumerate(sys.stdin):
    if peer == "dies" or peer == "dies later" and calls == 2:
        sys.exit(3)
    x = [given["x.0"], given["x.1"]]
    factor = 3 if peer == "wrong" else 2
    gradient = {f"g.{i}": factor * given["scale"] * a for i, a in enumerate(x)}
    np.savez(f"{file}.{peer}.npz", value=given["scale"] * sum((a**2).sum() for a in x), **gradient)
    print(json.dumps({"processor": 1.5, "peak": 2**20}), flush=True)
"""


def square(factor: float, quick: bool) -> Case:
    """`factor` times the sum of squares of two arrays, beside that by hand."""
    x = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    loss = lambda factor, x: factor * sum(jnp.sum(a**2) for a in jax.tree.leaves(x))
    candidates = {
        "textbook": compiled(jax.value_and_grad(partial(loss, 2.0)), x),
        "metabilevel": compiled(jax.value_and_grad(partial(loss, factor)), x),
    }
    return Case(candidates, x=x, arrays={"scale": 2.0}, operations=100.0)


def race(factor: float = 2.0, **fields) -> Race:
    return Race("square", "A sum of squares.", partial(square, factor), **fields)


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No environment of peers."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))


def test_the_list_is_that_of_the_entry_points(invoke):
    status, out, _ = invoke("bench", "--list", "--json")
    names = {row["name"] for row in json.loads(out)["benchmarks"]}
    assert status == 0
    assert {"sinusoid-1", "conv-maml-5", "svm-head", "logistic-cg", "lstm-mlp", "transformer", "unroll-mlp"} <= names


def test_a_race_runs_end_to_end_without_its_peers(invoke, nowhere):
    status, out, err = invoke("bench", "conv-fomaml-1", "--quick", "--json", "--out", "found")
    assert status == 0, err
    document = json.loads(Path("found", "conv-fomaml-1.json").read_text())
    assert json.loads(out)["results"] == [document]
    rows = {row["candidate"]: row for row in document["rows"]}
    assert rows["metabilevel"]["ratio"] == 1
    assert rows["metabilevel"]["same"]
    assert all(rows[each]["median"] > 0 for each in ("metabilevel", "textbook"))
    assert rows["loop"]["missing"].startswith("not installed")
    status, out, _ = invoke("bench", "--out", "found", "--report", "page", "--json")
    assert status == 0
    assert "not installed" in Path("page", PAGE).read_text()
    assert json.loads(out)["written"] == ["page/speed.md", "page/speed.png"]


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained")
def test_a_study_runs_end_to_end(invoke):
    status, out, err = invoke("bench", "implicit-memory", "--quick", "--out", "found")
    assert status == 0, err
    assert "inner steps" in out
    rows = json.loads(Path("found", "implicit-memory.json").read_text())["rows"]
    assert [row["inner steps"] for row in rows] == [4, 64]
    assert rows[0]["temporaries, bytes"] * 1.2 > rows[1]["temporaries, bytes"]


def test_a_name_that_is_not_there_is_refused_with_the_nearest(invoke):
    status, _, err = invoke("bench", "sinusoid-7")
    assert status == 2
    assert "sinusoid-" in err.partition("Did you mean")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers-python", "/no/python", "sinusoid-1"], "--peers-python"),
        (["--rounds", "0", "sinusoid-1"], "--rounds"),
        (["--report", "page", "--out", "empty"], "There is no result in empty"),
    ],
)
def test_wrong_input_is_one_line(invoke, arguments, said):
    status, out, err = invoke("bench", *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_peers_are_compared_flagged_and_left_out(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    goals = {"textbook": 1e-6, "peers": 1e-6, "nobody": 1.0}
    document = measure(race(goals=goals, peers=script), quick=True, python=Path(sys.executable), progress=False)
    rows = {row["candidate"]: row for row in document["rows"]}
    assert rows["right"]["same"]
    assert rows["right"]["resident"] == 2**20
    assert rows["right"]["versions"]["numpy"] == np.__version__
    assert not rows["wrong"]["same"]
    assert rows["wrong"]["gradient_difference"] == pytest.approx(0.5)
    assert rows["absent"]["missing"] == "it has no wheel"
    assert all("status 3" in rows[each]["missing"] for each in ("dies", "dies later"))
    assert [goal["met"] for goal in document["goals"]] == [True, True, None]
    best = next(goal["ratio"] for goal in document["goals"] if goal["against"] == "peers")
    assert best == rows["right"]["ratio"]
    assert rows["textbook"]["fraction_of_peak"] > 0


def test_a_reference_that_computes_something_else_is_a_failure():
    with pytest.raises(ComputationError, match="its value is 5"):
        measure(race(3.0), quick=True, progress=False)


def test_candidates_take_turns_and_first_calls_are_kept_apart():
    seen = []
    calls = {name: partial(seen.append, name) for name in "ab"}
    times = alternate(calls, 3, seconds=0.0)
    order = [name for i, name in enumerate(seen) if i == 0 or seen[i - 1] != name]
    assert order == ["a", "b"] * 4
    assert len(seen) == sum(1 + len(each.calls) for each in times.values())


def test_times_are_of_one_step_and_ratios_of_rounds():
    slow, quick = Times([[4.0, 4.0], [40.0]], [[1.0], [1.0]]), Times([[2.0], [20.0]], [[1.0], [1.0]])
    assert slow.over(quick) == 2
    said = slow.as_json(steps=4)
    assert (said["median"], said["min"], said["max"], said["calls"], said["processor"]) == (1, 1, 10, 3, 0.25)


def test_a_study_is_a_table_of_what_it_measured(tmp_path):
    study = Study("memory", "Bytes.", lambda rounds, quick: [{"way": "a|b", "bytes": 1234}])
    document = measure(study, quick=True)
    write([document], tmp_path)
    assert "| a\\|b | 1,234 |" in (tmp_path / PAGE).read_text()
    assert not (tmp_path / "speed.png").exists()


def test_the_page_in_the_docs_is_that_of_the_results():
    assert (ROOT / "docs" / PAGE).read_text() == page(load(ROOT / "benchmarks" / "results"))
