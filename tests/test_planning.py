"""Memory plans: what is predicted, what is picked, and what is refused."""

import json
import logging
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metabilevel as mb
from metabilevel.commands.types import Size
from metabilevel.planning import Footprint, Plan, Programs, choose, footprint, held, readable, require_room, room, ways


def test_a_footprint_counts_what_goes_in_what_comes_out_and_what_lies_between(optimised):
    n = 64
    x = jax.ShapeDtypeStruct((n, n), jnp.float32)
    ran = []

    def chain(x, power):
        jax.debug.callback(lambda: ran.append(1))
        for _ in range(power):
            x = jnp.tanh(x @ x)
        return {"last": x, "sum": x.sum()}

    found = footprint(chain, x, 3)
    assert not ran
    assert found.arguments == 4 * n * n
    assert 4 * n * n + 4 <= found.outputs <= 4 * n * n + 64
    assert 4 * n * n <= found.temporaries <= 3 * 4 * n * n
    assert found.total == found.arguments + found.added
    assert footprint(chain, jnp.ones((n, n)), 3) == found


def test_what_is_donated_counts_once():
    x = jnp.ones(1024)
    plain, donated = (
        Footprint.of(jax.jit(lambda x: 2 * x, donate_argnums=given).lower(x).compile()) for given in ((), 0)
    )
    assert plain.added == x.nbytes
    assert donated.aliased == x.nbytes
    assert donated.added == 0


@pytest.fixture(scope="module")
def sines():
    tasks = mb.load_tasks("sinusoid")(shots=3)
    return tasks, mb.load_method("maml")(tasks.subject, learning_rate=0.01, steps=4)


PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
GIVEN = {"key": jax.random.key(0), "meta_batch": 2}
OPTIMIZER = optax.adam(1e-3)


def test_the_programs_of_a_plan_are_those_of_the_run(sines):
    tasks, method = sines
    mb.fit(method, tasks, OPTIMIZER, steps=0, **GIVEN)
    plan = mb.plan(method, tasks, OPTIMIZER, validation=3, evaluations=[{"episodes": 3, "steps": [0, 4]}], **GIVEN)
    assert plan.way == "as many tasks at once as the machine likes, no checkpoints, mixed mode off"
    assert plan.compiled == 1
    assert plan.peak > held() / 2
    compiled = []
    with watched(compiled):
        method = plan.applied(method)
        x, _ = mb.fit(method, tasks, OPTIMIZER, steps=2, every=1, validation=3, **GIVEN)
        mb.evaluate(method, x, tasks, key=GIVEN["key"], episodes=3, steps=[0, 4])
    assert not [name for name in compiled if name in ("_loop", "_certified", "_block")]
    with pytest.raises(mb.InputError, match=r"the memory budget is 1\.00 MiB"):
        mb.fit(method, tasks, OPTIMIZER, steps=2, memory_budget=2**20, **GIVEN)


@contextmanager
def watched(compiled):
    """Collects the names of what is compiled."""
    handler = logging.Handler()
    handler.emit = lambda record: compiled.extend(
        re.findall(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage())
    )
    logger = logging.getLogger("jax._src.dispatch")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def test_every_way_gives_the_same_direction(sines, x64):
    tasks, _ = sines
    method = mb.load_method("maml")(tasks.subject, learning_rate=0.01, steps=5)
    x, key = method.init(jax.random.key(1)), jax.random.key(2)
    x = jax.tree.map(lambda a: a.astype(float), x)
    batch = jax.tree.map(lambda a: a.astype(float), mb.sample_batch(tasks, key, "train", 3))
    directions = {
        way: jax.jit(lambda x, way=way: way.applied(method).estimator(x, batch, None, key)[0])(x)
        for group in ways(method, None)
        for way in group
    }
    own, *others = directions.values()
    assert len(others) >= 5
    for way, other in zip(list(directions)[1:], others, strict=True):
        assert way.applied(method) != method
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


def test_what_was_chosen_already_is_kept(sines):
    tasks, _ = sines
    make = lambda name="maml", **options: mb.load_method(name)(tasks.subject, **options)
    flat = lambda method, chunk=None: [way for group in ways(method, chunk) for way in group]
    assert {way.task_chunk for way in flat(make(), 3)} == {3}
    assert {way.checkpoint for way in flat(make(checkpoint="step"))} == {"step", "sqrt"}
    assert {way.checkpoint for way in flat(make(checkpoint="sqrt"))} == {"sqrt"}
    assert {way.mixed_mode for way in flat(make(mixed_mode=True))} == {True}
    assert {way.mixed_mode for way in flat(make("fomaml"))} == {False}
    reptile = make("reptile")
    assert [way.way for way in flat(reptile)] == [
        "as many tasks at once as the machine likes", "4 tasks at once", "1 task at once"
    ]  # fmt: skip
    assert Plan(4).applied(reptile).estimator.task_chunk == 4


GIB = 2**30


def sorting(gibibytes: dict[tuple, float], others: float = 0.01):
    """Programs that sort so much, by chunk and checkpoint; they are compiled and never run."""

    def sort(size):
        n = int(size * GIB / 4)
        return jax.jit(lambda key: jnp.sort(jax.random.uniform(key, (n,)))[0]).lower(jax.random.key(0))

    def programs(way):
        return Programs(sort(gibibytes[way.task_chunk, way.checkpoint]), lambda: [("report", sort(others).compile())])

    return programs


SIZES = {(None, None): 9, (None, "step"): 4, (None, "sqrt"): 2, (4, "step"): 1.5, (1, "step"): 1, (1, "sqrt"): 0.5}


def unit():
    """What a program of the size 1 takes."""
    small, large = (
        Footprint.of(sorting({(None, None): size})(Plan(None)).loop.compile()).added for size in (1, 8)
    )  # fmt: skip
    assert large == pytest.approx(8 * small, rel=1e-3)
    assert small > GIB
    return small


@pytest.mark.parametrize(
    ("sizes", "units", "picked", "compiled"),
    [
        (SIZES, 9.5, (None, "step"), 2),  # where it spares more than half of the memory it is the faster one
        ({**SIZES, (None, None): 7.5}, 9.5, (None, None), 2),
        ({**SIZES, (None, None): 7.5}, 5, (None, "step"), 2),
        ({**SIZES, (None, None): 3.5}, 3.7, (None, None), 2),
        (SIZES, 2.2, (None, "sqrt"), 3),
        (SIZES, 1.7, (4, "step"), 4),
        ({**SIZES, (None, "sqrt"): 4, (4, "step"): 4}, 1.2, (1, "step"), 3),  # the same programs count once
    ],
)
def test_the_first_way_that_fits_is_picked(sines, optimised, sizes, units, picked, compiled):
    budget = held() + int(units * unit())
    plan = choose(sines[1], sorting(sizes), budget=budget)
    assert (plan.task_chunk, plan.checkpoint) == picked
    assert plan.compiled == compiled
    assert plan.budget == budget
    assert plan.peak <= budget


def test_the_largest_program_of_a_run_counts(sines, optimised):
    one = unit()
    plan = choose(sines[1], sorting(SIZES, others=20))
    assert plan.compiled == 1
    assert 20 * one < plan.peak < 20 * one + 2 * held()
    with pytest.raises(mb.InputError, match="at the least"):
        choose(sines[1], sorting(SIZES, others=20), budget=held() + 10 * one)


def test_what_fits_nowhere_is_refused_with_the_least_that_it_takes(sines, optimised):
    one = unit()
    with pytest.raises(mb.InputError, match="1 task at once, checkpoint 'sqrt', mixed mode on") as refused:
        choose(sines[1], sorting(SIZES), budget=held() + one // 4)
    least, whole = (float(re.search(rf"{word} ([\d.]+) GiB", str(refused.value))[1]) for word in ("take", "budget is"))
    assert least - whole == pytest.approx(one / 4 / GIB, abs=0.1)
    with pytest.raises(mb.InputError, match=r"The process holds .* and the memory budget is 1\.00 MiB\."):
        choose(sines[1], lambda way: pytest.fail("a way was looked at"), budget=2**20)


@pytest.mark.parametrize("budget", [0, True, 2**63])
def test_a_budget_is_a_number_of_bytes(sines, budget):
    with pytest.raises(mb.InputError, match=f"memory_budget = {budget!r}: .* is wanted"):
        mb.plan(sines[1], sines[0], OPTIMIZER, memory_budget=budget, **GIVEN)


def test_a_run_that_the_machine_cannot_hold_is_refused():
    most, free = room()
    assert held() < most
    assert free <= most
    require_room(Plan(None))
    require_room(Plan(None, peak=held()))
    with pytest.raises(mb.InputError, match=r"predicted to take .* and there are"):
        require_room(Plan(None, peak=most + 1))
    with pytest.warns(UserWarning, match="are free now"):
        require_room(Plan(None, peak=most))


def test_bytes_are_readable():
    assert [readable(n) for n in (0, 1023, 1536, 5 * 2**20, int(2.5 * 2**30), 2**40)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.00 MiB", "2.50 GiB", "1.00 TiB",
    ]  # fmt: skip


RUN = ["run", "maml", "--tasks", "sinusoid", "--learning-rate", "0.01", "--meta-batch", "2", "--every", "2"]


def command(*arguments):
    """Exit status, the document and what was said beside it."""
    done = subprocess.run([PROGRAM, *RUN, *arguments, "--json"], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_resumed_run_takes_the_plan_of_its_beginning(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    status, document, said = command("--steps", "4", "--memory-budget", "4GiB", "--out", str(whole))
    assert status == 0
    plan = document["plan"]
    assert plan == json.loads((whole / "config.json").read_text())["options"]["plan"]
    assert said.startswith(f"Memory: {Plan(**plan).way}; predicted peak {readable(plan['peak'])} of 4.00 GiB")
    command("--steps", "2", "--memory-budget", "4GiB", "--out", str(parts))
    first = json.loads((parts / "config.json").read_text())["options"]["plan"]
    status, document, said = command("--steps", "4", "--memory-budget", "4GiB", "--out", str(parts), "--resume")
    assert (status, said) == (0, "")
    assert document["plan"] == first
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    status, document, _ = command("--steps", "6", "--memory-budget", "3GiB", "--out", str(parts), "--resume")
    assert status == 2
    assert "options.memory_budget was 4294967296 and is now 3221225472" in document["error"]


def test_a_run_above_its_budget_leaves_nothing(tmp_path):
    status, document, said = command("--steps", "4", "--memory-budget", "64 MiB", "--out", str(tmp_path / "run"))
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "the memory budget is 64.00 MiB" in document["error"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("1.5 GB", 1500000000), ("64kib", 2**16), ("7", 7), (".5MB", 500000), ("2TiB", 2**41)],
)
def test_sizes_are_read(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "8X", "0", "-3", "1e9", "GiB", "0.1", "99999999TiB", "٤GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(click.BadParameter, match=r"is not a size such as 8GiB"):
        Size().convert(text, None, None)
