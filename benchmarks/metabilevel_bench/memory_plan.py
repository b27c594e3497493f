"""Memory plans: predicted against measured peaks of whole runs, and the way picked against the fastest that fits.

Peaks are those of fresh processes, as the kernel counts them (`ru_maxrss`): a process plans a run and then trains.
"""

import itertools
import json
import resource
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel.bench import Study, alternate
from metabilevel.planning import Footprint, Plan, held, lowered
from metabilevel.training import _loop, start

LARGE_MLP, LARGE_CONV = ("mlp", 6000), ("conv", 84, 64)
PEAKS = [  # network, examples of a class, inner steps, way
    *[(LARGE_MLP, 5, k, Plan(None, None, False)) for k in (1, 5, 20)],
    (LARGE_CONV, 5, 1, Plan(None, None, False)),
    (LARGE_CONV, 1, 5, Plan(None, None, False)),
    (("conv", 84, 16), 1, 20, Plan(None, None, False)),
    (LARGE_CONV, 5, 20, Plan(None, "step", True)),
]
SPEEDS = [  # network, examples of a class, inner steps, tasks
    (("sine", 40), 5, 20, 25),
    (("mlp", 1000), 5, 20, 1),
    (("conv", 28, 32), 5, 20, 1),
]
CHECKPOINTS = (None, "step", "sqrt")
WAYS, MIB = 5, 2**20
SLACK = 4 * MIB  # of the resident size, between one look and the next


class Noise(mb.TaskDistribution):
    """Random images of five classes."""

    subject: mb.Learner
    shape: tuple[int, ...]
    shots: int

    def sample(self, key: Any, split: Any) -> mb.Episode:
        """Fresh images."""
        labels = jnp.tile(jnp.arange(WAYS), self.shots)
        support, query = jax.random.normal(key, (2, len(labels), *self.shape))
        return mb.Episode(mb.Data(support, labels), mb.Data(query, labels))


def family(network: tuple[Any, ...], shots: int) -> Noise:
    """Tasks for a network of that kind and size."""
    kind, size, *filters = network
    if kind == "sine":
        shape, net = (1,), mb.MLP(1, (size, size), WAYS)
    elif kind == "mlp":
        shape, net = (28, 28, 1), mb.MLP(784, (size, size), WAYS)
    elif size > 28:
        shape = (size, size, 3)
        net = mb.ConvNet(shape, WAYS, *filters, down="max-pool", readout="flatten")
    else:
        shape = (size, size, 1)
        net = mb.ConvNet(shape, WAYS, *filters)
    return Noise(mb.classification(net), shape, shots)


def run(network: tuple[Any, ...], shots: int, steps: int, way: Plan) -> dict[str, Any]:
    """Plans a run and trains two steps of it, in this process, which must be a fresh one."""
    tasks, optimizer = family(network, shots), optax.adam(1e-3)
    method = mb.load_method("maml")(tasks.subject, learning_rate=0.01, steps=steps)
    given = {"key": jax.random.key(0), "meta_batch": 1}
    method = way.applied(method)
    begun = peak()
    plan = mb.plan(method, tasks, optimizer, **given)
    compiled, resident = peak(), held()
    mb.fit(method, tasks, optimizer, steps=2, every=1, progress=False, **given)
    return {
        "predicted, MiB": plan.peak,
        "measured, MiB": peak(),
        "held, MiB": resident,
        "before compilation, MiB": begun,
        "after compilation, MiB": compiled,
    }


def peak() -> int:
    """The most that this process has held so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peaks(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """`run` of every case in a fresh process."""
    rows = []
    for network, shots, steps, way in PEAKS[:1] if quick else PEAKS:
        chosen = {"task_chunk": way.task_chunk, "checkpoint": way.checkpoint, "mixed_mode": way.mixed_mode}
        case = json.dumps([network, shots, steps, chosen])
        command = [sys.executable, "-m", __spec__.name, case]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        rows.append({
            "network": _words(network), "examples of a class": shots, "inner steps": steps, "way": way.way,
            **{name: round(size / MIB) for name, size in found.items()},
            "predicted / measured": found["predicted, MiB"] / found["measured, MiB"],
        })  # fmt: skip
    return rows


def speeds(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """An outer step of every way, timed in turns; and for budgets in which each just fits, the way that is picked."""
    rows = []
    for network, shots, steps, batch in SPEEDS[:1] if quick else SPEEDS:
        tasks, optimizer = family(network, shots), optax.adam(1e-3)
        method = mb.load_method("maml")(tasks.subject, learning_rate=0.01, steps=steps)
        given: dict[str, Any] = {"key": jax.random.key(0), "meta_batch": batch}
        state = start(method, tasks, optimizer, given["key"], batch)
        stop = state.step + 1
        calls, needs, seen = {}, {}, set()
        for way in itertools.starmap(Plan, itertools.product((None, 4, 1), CHECKPOINTS, (False, True))):
            arguments = way.applied(method), tasks, optimizer, batch, state, given["key"], stop
            program = lowered(_loop, *arguments)
            if (text := hash(program.as_text())) not in seen:
                seen.add(text)
                footprint = Footprint.of(program.compile())
                needs[way.way] = footprint.added if footprint else 0
                mb.plan(arguments[0], tasks, optimizer, task_chunk=way.task_chunk, **given)  # compiles the rest
                calls[way.way] = partial(_loop, *arguments)
        times = {way: each.median for way, each in alternate(calls, rounds, 0.02 if quick else 0.5).items()}
        for way, need in needs.items():
            best = min((other for other in times if needs[other] <= need + SLACK), key=lambda way: times[way])
            row = {"network": _words(network), "inner steps": steps, "way": way, "seconds a step": times[way],
                   "added, MiB": need / MIB, "fastest in this room": best}  # fmt: skip
            try:
                plan = mb.plan(method, tasks, optimizer, memory_budget=held() + need + SLACK, **given)
                row |= {"picked": plan.way, "time over the fastest's": times[plan.way] / times[best]}
            except mb.InputError:
                row["picked"] = "refused"
            rows.append(row)
    return rows


def _words(network: tuple[Any, ...]) -> str:
    return " ".join(map(str, network))


PLANS = Study("memory-plan", "The way that is picked for a budget, beside the fastest that fits.", speeds, 5)
PEAKS_OF_RUNS = Study(
    "memory-peaks", "The peak of a run in memory, as predicted, beside what the kernel counts.", peaks
)

if __name__ == "__main__":
    network_, shots_, steps_, way_ = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(run(tuple(network_), shots_, steps_, Plan(**way_))))
