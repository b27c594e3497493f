"""What eight devices compute is what one computes: run by `test_devices.py`, since the number of devices is fixed when
a process begins."""

import json
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import metabilevel as mb
from metabilevel.devices import everywhere, placed
from metabilevel.planning import lowered
from metabilevel.population import begin, stack, walk
from metabilevel.storage.runs import Run
from metabilevel.training import _loop, start

DEVICES, BATCH = 8, 16
X = {"scale": jnp.array([0.4, 0.9]), "idle": jnp.ones(3)}
PROBLEM = mb.BilevelProblem(
    init=lambda x, task, key: 0.1 * jnp.sum(x["scale"]) * jnp.ones(2),
    inner_loss=lambda x, y, task, key: (
        jnp.sum((y - x["scale"] * task["data"][1:]) ** 2) / 2 + jnp.sum(y**4) / 8 + jax.random.normal(key) * y[0] / 9
    ),
    outer_loss=lambda x, y, task, key: (jnp.sum(jnp.sqrt(y + task["data"][0])), {"reached": y[0]}),
)
SOLVER = mb.GradientDescent(optax.sgd(0.3), steps=4)


class Family(mb.TaskDistribution):
    """Tasks with numbers, of which a batch has each once."""

    subject: Any = None

    def sample(self, key, split):
        number = jax.random.randint(key, (), 0, 1000)
        return {"data": jax.random.uniform(key, (3,)) + 0.5, "number": number}


class Pull(mb.AbstractSingleLoop):
    """y is pulled towards the inner solution, a step at a time, in a memory of its own for each task."""

    def begin(self, oracles, x, y, key):
        return Remembered(y)

    def step(self, oracles, x, memory, t, key):
        sample = oracles.samples(key)[0]
        y = memory.y - 0.1 * oracles.inner_gradient(x, memory.y, sample)
        loss = lambda x: oracles.problem.objective(x, x["scale"] * y, oracles.task, key)[0]
        value, gradient = jax.value_and_grad(loss)(x)
        return mb.Stride(gradient, (value, {}), Remembered(y))


class Remembered(eqx.Module):
    y: Any


SLOTS: Any = {"slots": 64, "slot": lambda task: task["number"] % 64}
ESTIMATORS = {
    "unrolled": mb.Nested(PROBLEM, SOLVER),
    "implicit": mb.Nested(PROBLEM, SOLVER, mb.Implicit(mb.ConjugateGradient(5))),
    "chunked": mb.Nested(PROBLEM, SOLVER, mb.Unroll(mixed_mode=True), task_chunk=1),
    "warm": mb.WarmStarted(PROBLEM, SOLVER, **SLOTS),
    "truncated": mb.Truncated(PROBLEM, SOLVER, window=2),
    "persistent": mb.PersistentES(PROBLEM, SOLVER, window=2),
    "single-loop": mb.SingleLoop(PROBLEM, Pull(), **SLOTS),
}


def assert_same(found: Any, wanted: Any) -> None:
    """Equal to 1e-6 of the largest entry of each leaf, or of .1 if that is more; integers and keys exactly."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        if np.issubdtype(a.dtype, np.floating):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.max(np.abs(b), where=np.isfinite(b), initial=0.1))
        else:
            np.testing.assert_array_equal(a, b)


@eqx.filter_jit
def begun(estimator: mb.AbstractEstimator) -> Any:
    key = jax.random.key(2)
    return everywhere(estimator.init(X, mb.sample_batch(Family(), key, "train", BATCH), key))


@eqx.filter_jit
def called(estimator: mb.AbstractEstimator, carry: Any, i: Any) -> Any:
    """Call i = 0 ... 3, on two batches by turns; from the third on a task is broken."""
    tasks = mb.sample_batch(Family(), jax.random.key(i % 2), "train", BATCH)
    tasks["data"] = tasks["data"].at[5].add(jnp.where(i > 1, -9.0, 0.0))
    return everywhere(estimator(X, tasks, carry, jax.random.key(i)))


def walked(estimator: mb.AbstractEstimator) -> Any:
    """Directions and what is said of four calls, and the last carry."""
    carry, said = begun(estimator), []
    for i in range(4):
        direction, carry, info = called(estimator, carry, jnp.int32(i))
        said.append((direction, info))
    return said, carry


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimate_is_that_of_one_device(name):
    wanted = walked(ESTIMATORS[name])
    assert wanted[0][0][1].finite.all()
    assert not wanted[0][3][1].finite.all()
    with mb.mesh(tasks=DEVICES):
        assert_same(walked(ESTIMATORS[name]), wanted)


METHOD = mb.Method(PROBLEM, lambda key: X, ESTIMATORS["unrolled"], SOLVER)


def trained(method: mb.Method = METHOD) -> Any:
    rows = mb.fit(
        method, Family(), optax.adam(0.1), key=jax.random.key(0), steps=7, meta_batch=BATCH, every=2, validation=20
    )  # fmt: skip
    return rows[0], [{name: value for name, value in row.items() if name != "seconds"} for row in rows[1]]


def test_a_training_is_that_of_one_device_and_compiles_its_loop_once(caplog):
    x, history = trained()
    with mb.mesh(tasks=DEVICES), jax.log_compiles():
        shared, rows = trained()
    assert_same(shared, x)
    for row, wanted in zip(rows, history, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert [compiled.count(name) for name in ("_loop", "_certified", "_block")] == [1, 1, 1]


@pytest.mark.parametrize("episodes", [3, 70])
def test_episodes_that_no_mesh_divides_are_judged_alike(episodes):
    x, given = jax.tree.map(jnp.array, X), {"key": jax.random.key(1), "episodes": episodes, "steps": [0, 4]}
    wanted = mb.evaluate(METHOD, x, Family(), **given)
    with mb.mesh(tasks=DEVICES):
        found = mb.evaluate(METHOD, x, Family(), **given)
        score = METHOD.score(x, mb.sample_batch(Family(), given["key"], "test", 5), given["key"])
    for steps, scores in wanted.items():
        for name, interval in scores.items():
            assert found[steps][name] == pytest.approx(interval, rel=1e-6)
    assert_same(score, METHOD.score(x, mb.sample_batch(Family(), given["key"], "test", 5), given["key"]))


COLLECTIVE = r" = (\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)(?:-start)?\("


def test_a_step_has_one_all_reduce_of_the_size_of_x(optimised):
    with mb.mesh(tasks=DEVICES):
        method, tasks, key = placed(METHOD, Family(), jax.random.key(0))
        given = method, tasks, optax.adam(0.1), BATCH
        state = start(*given[:3], key, BATCH)
        text = lowered(_loop, *given, state, key, state.step).compile().as_text()
    entries = sum(a.size for a in jax.tree.leaves(X))
    numbers = 4 * BATCH  # of each task: the loss, a metric, the residual, and whether it is finite
    assert re.findall(COLLECTIVE, text or "") == [(f"f32[{entries + numbers}]{{0}}", "all-reduce")]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"tasks": 9}, "needs 9 devices, and there are 8 .*JAX_NUM_CPU_DEVICES=9"),
        ({"tasks": 4, "runs": 3}, "tasks=4,runs=3 needs 12 devices"),
        ({"task": 8}, "'task'. Did you mean 'tasks'"),
        ({"tasks": 0}, "tasks = 0: an integer of 1 or more"),
    ],
)
def test_a_mesh_that_there_cannot_be_is_refused(axes, message):
    with pytest.raises(mb.InputError, match=message):
        mb.mesh(**axes)


@pytest.mark.parametrize(("tasks", "message"), [(25, "Take 24 or 32"), (5, "Take 8"), (1, "Compute it on one")])
def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_nearest(tasks, message):
    with mb.mesh(tasks=DEVICES), pytest.raises(mb.InputError, match=f"meta_batch = {tasks}: .*{message}"):
        mb.fit(METHOD, Family(), optax.sgd(1.0), key=jax.random.key(0), steps=1, meta_batch=tasks)


def test_an_explicit_mesh_is_refused():
    with (
        jax.set_mesh(jax.make_mesh((8,), ("tasks",), (AxisType.Explicit,))),
        pytest.raises(mb.InputError, match="Auto"),
    ):
        mb.sample_batch(Family(), jax.random.key(0), "train", 8)


@pytest.mark.parametrize("axes", [{"runs": 4}, {"runs": 2, "tasks": 4}], ids=str)
def test_a_population_is_shared_out_and_comes_to_what_it_comes_to_on_one_device(axes):
    rates = [0.3, 0.2, 0.1]

    def method(rate):
        solver = mb.GradientDescent(optax.sgd(rate), steps=4)
        return mb.Method(PROBLEM, lambda key: X, mb.Nested(PROBLEM, solver), solver)

    keys, setting = jax.random.split(jax.random.key(0), 3), {"steps": 3, "meta_batch": BATCH, "every": 3}
    fitted = lambda: mb.fit_population(method, Family(), optax.adam(0.01), keys=keys, values={"rate": rates}, **setting)
    expected = fitted()
    with mb.mesh(**axes):
        found = fitted()
        population = stack(METHOD, optax.adam(0.01), jax.random.split(jax.random.key(0), 4), {})
        states = begin(population, Family(), BATCH, False)
        states, _ = walk(population, Family(), BATCH, states, jnp.int32(2))
    assert {shard.data.shape for shard in states.x["idle"].addressable_shards} == {(4 // axes["runs"], 3)}
    for mine, other in zip(found, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mine.x, other.x)
        assert mine.history[0]["loss"] == pytest.approx(other.history[0]["loss"], rel=1e-6)


@pytest.mark.filterwarnings("always:The rest of the run")
def test_a_run_goes_on_with_another_number_of_devices(invoke):
    common = "run", "maml", "--tasks", "sinusoid", "--meta-batch", "8", "--json", "--out", "shared"
    status, _, said = invoke(*common, "--steps", "2", "--devices", "8")
    assert status == 0, said
    status, _, said = invoke(*common, "--steps", "4", "--mesh", "tasks=2", "--resume")
    assert status == 0, said
    assert "environment.devices was 8 and is now 2" in said
    status, _, said = invoke(*common[:-1], "alone", "--steps", "4")
    assert status == 0, said
    rows, alone = (Run.open(name).metrics() for name in ("shared", "alone"))
    assert rows[-1] == pytest.approx(alone[-1], rel=1e-5)
    assert Run.open("shared").config.environment.devices == 8
    judged = []
    for given in [], ["--devices", "8"]:
        status, document, said = invoke("evaluate", "alone", "--episodes", "20", "--json", *given)
        assert status == 0, said
        judged.append([(row["mean"], row["ci95"]) for row in json.loads(document)["rows"]])
    np.testing.assert_allclose(*judged, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--devices", "9"], "needs 9 devices, and there are 8 (cpu)"),
        (["--mesh", "tasks"], "'tasks' is no mesh such as tasks=8"),
        (["--mesh", "tasks=2,tasks=4"], "is no mesh"),
        (["--devices", "2", "--mesh", "tasks=2"], "give one of them"),
        (["--devices", "8"], "meta_batch = 25"),
    ],
)
def test_the_command_line_refuses_in_one_line(invoke, given, message):
    status, _, said = invoke("run", "maml", "--tasks", "sinusoid", *given)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1
