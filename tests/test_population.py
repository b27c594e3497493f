"""A population: each member comes to what it comes to alone, whatever becomes of the others."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel import batching
from metabilevel.commands.population import cohorts, members, sweeps
from metabilevel.population import stack, takes
from metabilevel.population_training import train
from metabilevel.schema import options
from metabilevel.storage.config import Config, Environment, Plugin


class Numbers(mb.TaskDistribution):
    """Tasks are numbers below 1."""

    subject: None = None

    def sample(self, key, split):
        return jax.random.uniform(key)


TASKS = Numbers()
KEYS = jax.vmap(jax.random.key)(jnp.arange(3))
RATES = [0.1, 0.5, 0.3]
SETTING = {"steps": 6, "meta_batch": 4, "every": 3}


def method(rate=0.5, power=2.0):
    """y = x - rate (x - t) against t. Where |x| > 10, which it reaches by a large `power`, the loss is NaN."""
    problem = mb.BilevelProblem(
        lambda x, t, k: x,
        lambda x, y, t, k: jnp.sum((y - t) ** 2) / 2,
        lambda x, y, t, k: (jnp.where(jnp.abs(x) > 10, jnp.nan, jnp.abs(y - t) ** power).sum(), {"y": y.sum()}),
    )
    solver = mb.GradientDescent(optax.sgd(rate), 1)
    init = lambda key: 1 + jax.random.uniform(key, (2,))
    return mb.Method(problem, init, mb.Nested(problem, solver), solver)


def alone(j, method, optimizer, **setting):
    return mb.fit(method, TASKS, optimizer, key=KEYS[j], **{**SETTING, **setting})


def same(trained, alone):
    x, history = alone
    np.testing.assert_allclose(trained.x, x, rtol=1e-5)
    assert [row.keys() for row in trained.history] == [row.keys() for row in history]
    for mine, other in zip(trained.history, history, strict=True):
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name


def test_members_come_to_what_they_come_to_alone():
    found = mb.fit_population(
        method,
        TASKS,
        lambda rate: optax.adam(rate / 10),
        keys=KEYS,
        values={"rate": RATES},
        **SETTING,
    )
    for j, rate in enumerate(RATES):
        same(found[j], alone(j, method(rate), optax.adam(rate / 10)))
        assert found[j].failure is None


def test_seeds_of_one_method_with_validation_and_patience():
    setting = {"steps": 12, "every": 2, "validation": 5, "patience": 1}
    rate = optax.adam(0.3)
    found = mb.fit_population(method(), TASKS, rate, keys=KEYS, **{**SETTING, **setting})
    expected = [alone(j, method(), rate, **setting) for j in range(3)]
    for mine, other in zip(found, expected, strict=True):
        same(mine, other)
    ends = {len(history) for _, history in expected}
    assert len(ends) > 1, "all stop at one report: the test says nothing of those that go on"


def test_a_member_that_fails_leaves_the_others_alone():
    rates = [0.01, 100.0, 0.02]
    run = lambda **v: mb.fit_population(
        method(), TASKS, lambda rate: optax.sgd(rate), keys=KEYS, values={"rate": rates}, **SETTING, **v
    )
    found = run()
    for j in (0, 2):
        same(found[j], alone(j, method(), optax.sgd(rates[j])))
    with pytest.raises(mb.NonFiniteError) as error:
        alone(1, method(), optax.sgd(rates[1]))
    assert str(found[1].failure) == str(error.value)
    assert np.isfinite(found[1].x).all()


def test_members_that_are_behind_catch_up():
    population = stack(method, optax.adam(0.1), KEYS, {"rate": RATES})
    run = lambda steps, states=None: list(train(population, TASKS, **{**SETTING, "steps": steps}, states=states))
    ends = lambda stages: {j: stage.state(j) for stage in stages for j in stage.ended}
    early, late = ends(run(3)), ends(run(6))
    whole = ends(run(12))
    resumed = ends(run(12, [late[0], early[1], late[2]]))
    for j in range(3):
        np.testing.assert_array_equal(resumed[j].x, whole[j].x)
        assert int(resumed[j].step) == 12


def test_the_recovery_of_bad_tasks_is_not_computed_where_there_are_none():
    gradient = lambda x, t, k: jax.value_and_grad(lambda x: ((x - t) ** 2, ()), has_aux=True)(x)
    of_one = lambda x, ts, key: batching.task_gradient(gradient, x, ts, key)[0]
    xs, tasks = jnp.ones(3), jnp.arange(12.0).reshape(3, 4)
    jaxpr = jax.make_jaxpr(jax.vmap(of_one))(xs, tasks, KEYS)
    assert "cond[" in str(jaxpr)
    bad = tasks.at[1, 2].set(jnp.nan)
    found = jax.vmap(of_one)(xs, bad, KEYS)
    np.testing.assert_allclose(found, [of_one(xs[j], bad[j], KEYS[j]) for j in range(3)], rtol=1e-6)


def test_factories_that_look_at_a_number_are_found_out():
    def looks(rate):
        return method(rate if rate > 0.2 else 0.2)

    assert takes(stack(method, optax.adam(0.1), KEYS, {"rate": RATES}), TASKS, 4)
    assert not takes(stack(looks, optax.adam(0.1), KEYS, {"rate": RATES}), TASKS, 4)


@pytest.mark.parametrize(
    ("keys", "values", "match"),
    [
        (jax.random.key(0), {}, "a typed key for each member"),
        (jnp.arange(3), {}, "a typed key for each member"),
        (KEYS, {"rate": [0.1, 0.2]}, r"'rate' is float32 of shape \(2,\)"),
        (KEYS, {"rate": [1, 2, 3]}, "'rate' is int32"),
    ],
)
def test_wrong_members_are_refused(keys, values, match):
    with pytest.raises(mb.InputError, match=match):
        mb.fit_population(method, TASKS, optax.adam(0.1), keys=keys, values=values, **SETTING)


def base(seed=0, **given) -> Config:
    maml = {name: option.default for name, option in options(mb.load_method("maml").__wrapped__).items()}
    sinusoid = {name: option.default for name, option in options(mb.load_tasks("sinusoid").__wrapped__).items()}
    training = dict.fromkeys(("task_chunk", "validation", "patience", "every", "memory_budget", "precision"))
    environment = Environment.current()
    return Config(
        "run",
        Plugin("maml", "metabilevel", mb.__version__, {**maml, "learning_rate": 0.01}),
        Plugin("sinusoid", "metabilevel", mb.__version__, {**sinusoid, "shots": 2, "queries": 2}),
        *(seed, 4, 2, "adam", 0.001, {**training, "on_nonfinite": "raise"}),
        environment,
    )


def test_one_program_for_numbers_and_one_each_for_what_changes_it():
    known = {
        "learning_rate": options(mb.load_method("maml").__wrapped__)["learning_rate"],
        "inner_steps": options(mb.load_method("maml").__wrapped__)["steps"],
        "outer_learning_rate": dataclasses.replace(
            options(mb.load_method("maml").__wrapped__)["learning_rate"], name="outer_learning_rate"
        ),
        "tasks.max_phase": options(mb.load_tasks("sinusoid").__wrapped__)["max_phase"],
    }
    texts = [("learning-rate", ".1,.2"), ("outer_learning_rate", "1e-3,2e-3"), ("inner_steps", "0,1")]
    swept = sweeps(texts, known, [])
    found = cohorts(members(base(), 2, swept), swept)
    assert [len(cohort.members) for cohort in found] == [8, 8]
    assert [sweep.name for sweep in found[0].traced] == ["learning_rate", "outer_learning_rate"]
    swept = sweeps([("tasks.max_phase", "1,2")], known, [])
    found = cohorts(members(base(), 2, swept), swept)
    assert [member.name for member in found[1].members] == ["seed=0,tasks.max_phase=2.0", "seed=1,tasks.max_phase=2.0"]


def files(path: Path) -> dict[str, bytes]:
    """The last checkpoint of each run."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("00000004.ckpt")}


RUN = ["run", "maml", "--tasks", "sinusoid", "--meta-batch", "2", "--task-option", "shots=2", "--every", "2"]
POPULATION = [*RUN, "--seeds", "2", "--sweep", "learning_rate=.01,.02"]


def test_runs_are_as_alone_and_end_there_after_a_kill(invoke):
    code, out, err = invoke(*POPULATION, "--steps", "4", "--out", "all", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [run["status"] for run in document["runs"]] == ["finished"] * 4
    assert document["over_seeds"][0]["seeds"] == [0, 1]
    assert document["best"] in [{"learning_rate": 0.01}, {"learning_rate": 0.02}]
    assert {"population.json", "summary.json", "curves.png"} <= {path.name for path in Path("all").iterdir()}

    member = Path("all", "seed=1,learning_rate=0.02")
    code, *_ = invoke(*RUN, "--steps", "4", "--learning-rate", ".02", "--seed", "1", "--out", "alone")
    assert code == 0
    reports = [Path(path, "metrics.jsonl").read_text().splitlines() for path in ("alone", member)]
    for one, other in zip(*(map(json.loads, each) for each in reports), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    told = [json.loads(Path(path, "summary.json").read_text())["evaluation"]["rows"] for path in ("alone", member)]
    assert [row["mean"] for row in told[0]] == pytest.approx([row["mean"] for row in told[1]], rel=1e-5)
    again = [*RUN, "--steps", "4", "--learning-rate", ".02", "--seed", "1", "--out", str(member), "--resume"]
    assert "is finished" in invoke(*again)[2]

    before = files(Path("all"))
    assert len(before) == 4
    for path in Path("all").glob("seed=*"):
        (path / "summary.json").unlink()
    newest = sorted(member.glob("checkpoints/*"))[-1]
    newest.unlink()
    with (member / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 5')
    code, out, err = invoke(*POPULATION, "--steps", "4", "--out", "all", "--json", "--resume")
    assert code == 0, err
    assert files(Path("all")) == before
    assert {**json.loads(out), "seconds": 0} == {**document, "seconds": 0}


def test_a_failed_run_is_named_and_the_others_are_judged(invoke):
    given = [*RUN, "--steps", "4", "--sweep", "learning_rate=.01,1e12", "--out", "some"]
    code, out, err = invoke(*given)
    assert code == 1
    assert "1 of 2 runs did not come to a good end. seed=0,learning_rate=1000000000000.0: step" in err
    assert "finished" in out
    assert "failed" in out
    assert "Traceback" not in err
    code, out, _ = invoke(*given, "--resume", "--json")
    assert code == 1
    failed = json.loads(out)["runs"][1]
    assert failed["status"] == "failed"
    assert failed["error"].startswith("step 0: no task of the batch has a finite loss and gradient.")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sweep", "lerning_rate=.1"], "There is no option 'lerning_rate' to sweep. Did you mean 'learning_rate'?"),
        (["--sweep", "steps=1,2"], "Did you mean 'inner_steps'?"),
        (["--sweep", "tasks.shot=1,2"], "Did you mean 'tasks.shots'?"),
        (["--sweep", "learning_rate=.1,x"], "Option 'learning_rate' is 'x', and must be a number."),
        (["--sweep", "inner_steps=1.5"], "Option 'inner_steps' is '1.5', and must be an integer."),
        (["--sweep", "learning_rate="], "values are wanted"),
        (["--sweep", "learning_rate=.1,,.2"], "values are wanted"),
        (["--sweep", "learning_rate=.1,.10"], ".10 stands there twice"),
        (["--sweep", "learning_rate=.1", "--sweep", "learning-rate=.2"], "stands there twice"),
        (["--sweep", "learning_rate=.1", "--learning-rate", ".2"], "swept, and given a value of its own"),
        (["--sweep", "tasks.queries=1,2", "--task-option", "queries=2"], "swept, and given a value of its own"),
        (["--sweep", "outer_learning_rate=.1,0"], "a number above 0 is wanted"),
        (["--seeds", "0"], "'0' is not an integer"),
        (["--seeds", "3", "--seed", "4294967294"], "4294967295 is the largest"),
        (["--seeds", "2", "--profile"], "--profile looks at a single run"),
        (["--seeds", "2", "--dry-run"], "--dry-run looks at a single run"),
        (["--seeds", "2", "--memory-budget", "1MB"], "2 runs at once: The process holds"),
        (["--seeds", "2", "--engine", "sge"], "'sge' is not one of"),
        (["--seeds", "2", "--engine-option", "partition=gpu"], "the engine 'local' has no options"),
        (["--engine", "slurm"], "--engine and --engine-option are for --seeds and --sweep"),
        (["--seeds", "2", "--out", "single"], "single holds a run already"),
        (["--seeds", "2", "--out", "single", "--resume"], "single holds a single run"),
        (["--seeds", "2", "--out", "none", "--resume"], "There is no population in none"),
        (["--seeds", "2", "--out", "many"], "many holds a population"),
        (["--out", "many", "--resume"], "many holds a population"),
        (["--seeds", "2", "--out", "many", "--resume"], "holds the run 'seed=7', which is not asked for now"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(invoke, given, said):
    Path("single").mkdir()
    Path("single", "config.json").write_text("{}")
    Path("many").mkdir()
    Path("many", "population.json").write_text('{"runs": ["seed=7"]}')
    held = lambda: [path for path in Path().rglob("*") if path.is_file() and path.name != ".lock"]
    before = held()
    code, out, err = invoke(*RUN, *given)
    assert code == 2, err
    assert said in err
    assert out == ""
    assert "Traceback" not in err
    assert held() == before


def test_jobs_of_an_engine(tmp_path):
    pytest.importorskip("submitit")
    invoke = lambda *given: _program(tmp_path, *given)
    given = [*RUN, "--steps", "2", "--sweep", "inner_steps=0", "--engine", "submitit-local"]
    given += ["--out", "jobs", "--json"]
    code, _, err = invoke(*given, "--engine-option", "colour=red")
    assert (code, [path.name for path in (tmp_path / "jobs").iterdir()]) == (2, [".lock"]), err
    assert "Unknown argument 'colour'" in err
    for more in (["--engine-option", "timeout_min=10"], ["--resume"]):
        code, out, err = invoke(*given, *more)
        assert code == 0, err
        assert [run["status"] for run in json.loads(out)["runs"]] == ["finished"]
    assert len(list((tmp_path / "jobs" / "jobs").glob("*_result.pkl"))) == 1


def _program(folder: Path, *given: str) -> tuple[int, str, str]:
    command = [sys.executable, Path(__file__).parents[1] / "cli.py", *given]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr
