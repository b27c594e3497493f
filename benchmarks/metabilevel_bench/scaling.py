"""How an outer step scales: with its tasks, with the devices of a process, with processes; and a model of more hosts.

    metabilevel bench scaling --out benchmarks/results
    python -m metabilevel_bench.scaling report benchmarks/results/scaling.json docs

Every row is a fresh process, or two, with one core for each worker. Of several rounds the fastest counts, since what
else a machine does makes a step slower and never faster.
"""

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from metabilevel import figures
from metabilevel.bench import Study, operations
from metabilevel.figures import Curve, Panel

TASKS, FEW = (64, 128, 256, 512, 1024), 64
FILTERS, WAYS, MIB = 32, 5, 2**20
MESSAGES = (4, 2**22)  # numbers of four bytes that an all-reduce adds
HOSTS = (1, 2, 4, 8, 16, 32, 64)
WEAK, STRONG = 64, 4096  # tasks of a host, and of all hosts together
NETWORKS = {"loopback, as measured": None, "10 Gbit/s Ethernet, 50 us a hop": (50e-6, 1.25e9)}
MEMORIES = "temporaries of a step, MiB", "of a direction beside its batch"
PAGE, PICTURE = "scaling.md", "scaling.png"


def worker(cores: Sequence[int], devices: int, place: Sequence[Any] | None, tasks: int, rounds: int) -> dict[str, Any]:
    """A step of second-order MAML on random images, or with no tasks the seconds of an all-reduce."""
    os.sched_setaffinity(0, cores)  # before jax looks how many cores there are
    import jax
    import jax.numpy as jnp
    import optax

    import metabilevel as mb
    from metabilevel.devices import largest, placed
    from metabilevel.hosts import Place, joined
    from metabilevel.planning import Footprint, lowered
    from metabilevel.planning import footprint as planned
    from metabilevel.tasks import sample_batch
    from metabilevel.training import _loop, start
    from metabilevel_bench.memory_plan import Noise

    with ExitStack() as stack:
        if place:
            stack.enter_context(joined(Place(*place), {}, timeout=120, end=_end))
            largest(0)  # together now, and not after compilations of different lengths
        if (workers := jax.device_count()) > 1:
            stack.enter_context(mb.mesh(tasks=workers))
        if not tasks:
            return {str(size): _all_reduce(size, rounds) for size in MESSAGES}
        family = Noise(mb.classification(mb.ConvNet((28, 28, 1), WAYS, FILTERS)), (28, 28, 1), 1)
        method = mb.load_method("maml")(family.subject, learning_rate=0.1, steps=1)
        method, family, key = placed(method, family, jax.random.key(0))
        given = method, family, optax.adam(1e-3), tasks
        state = start(*given[:3], key, tasks)
        program = lowered(_loop, *given, state, key, state.step).compile()
        footprint, seconds, beside, work = Footprint.of(program), [], None, None
        if workers == 1:
            batch = sample_batch(family, key, "train", tasks)
            direction = lambda x, batch, key: method.estimator(x, batch, None, key)[0]
            taken, work = planned(direction, state.x, batch, key), operations(direction, state.x, batch, key).total
            beside = taken and taken.temporaries - sum(a.nbytes for a in jax.tree.leaves(batch))
        for i in range(rounds + 1):
            stop = jnp.asarray(i + 1, state.step.dtype)
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(_loop(*given, state, key, stop))
            seconds.append(time.perf_counter() - begun)
        sent = re.findall(r" = (\w+)\[(\d+)\]\S* all-reduce\(", program.as_text() or "")
        return {
            "seconds": min(seconds[1:]),
            "temporaries": footprint and footprint.temporaries,
            "beside its batch": beside,
            "operations": work,
            "entries": sum(a.size for a in jax.tree.leaves(state.x)),
            "sent": sum(4 * int(size) for _, size in sent),
        }


def _all_reduce(size: int, rounds: int) -> float:
    """Seconds of the fastest of many all-reduces of `size` numbers."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec as P

    total = lambda a: jax.lax.psum(a, "tasks")
    add = jax.jit(jax.shard_map(total, in_specs=P(), out_specs=P(), check_vma=False))
    a, seconds = add(jnp.ones(size, jnp.float32)), []
    for _ in range(20 * rounds):
        begun = time.perf_counter()
        a = jax.block_until_ready(add(a))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _end(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    os._exit(1)


def measured(workers: int, tasks: int, rounds: int, *, processes: bool = False) -> dict[str, Any]:
    """What `worker` gives in fresh processes: one with so many devices, or so many with one."""
    cores = sorted(os.sched_getaffinity(0))
    each = lambda i: cores[i % len(cores)]
    if processes:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        asked = [([each(i)], 1, ("127.0.0.1", port, workers, i), tasks, rounds) for i in range(workers)]
    else:
        asked = [([each(i) for i in range(workers)], workers, None, tasks, rounds)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "metabilevel_bench.scaling", "work", json.dumps(given)],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(given[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        for given in asked
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"A worker failed: {said}")
    return json.loads(said[0].splitlines()[-1])


def rows(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """All measurements; ideal is the time of one worker with as many tasks as each has."""
    few, found = 8 if quick else FEW, []

    def row(kind: str, workers: int, tasks: int, *, processes: bool = False) -> dict[str, Any]:
        got = measured(workers, tasks, rounds, processes=processes)
        beside = got["beside its batch"]
        found.append({
            "what grows": kind, "workers": workers, "tasks": tasks, "ms a step": 1000 * got["seconds"],
            "temporaries, MiB": got["temporaries"] / MIB, "of a direction, MiB": beside and beside / MIB,
            "operations": got["operations"], "entries of x": got["entries"], "bytes sent": got["sent"],
            "load": os.getloadavg()[0],
        })  # fmt: skip
        return found[-1]

    for tasks in TASKS[:2] if quick else TASKS:
        row("tasks", 1, tasks)
    for processes in False, True:
        what = "processes" if processes else "devices"
        row(f"{what}, each with its tasks", 2, 2 * few, processes=processes)
        row(f"{what}, for the same tasks", 2, few, processes=processes)
    reduced = measured(2, 0, rounds, processes=True)
    for size in MESSAGES:
        found.append({
            "what grows": "an all-reduce", "workers": 2, "tasks": 0, "ms a step": 1000 * reduced[str(size)],
            "temporaries, MiB": 0.0, "of a direction, MiB": None, "operations": None, "entries of x": size,
            "bytes sent": 4 * size, "load": os.getloadavg()[0],
        })  # fmt: skip
    return found


SCALING = Study("scaling", "A step of second-order MAML, by tasks, devices and processes.", rows, 5)


def fitted(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the model takes from the rows: seconds of a task and of the rest of a step, latency and rate of a hop."""
    tasks = [row for row in found if row["what grows"] == "tasks"]
    n, t = [row["tasks"] for row in tasks], [row["ms a step"] / 1000 for row in tasks]
    exponent = _slope([math.log(each) for each in n], [math.log(each) for each in t])
    slope = _slope(n, t)
    small, large = [row for row in found if row["what grows"] == "an all-reduce"]
    rate = (large["bytes sent"] - small["bytes sent"]) / (large["ms a step"] - small["ms a step"]) * 1000
    return {
        "exponent": exponent,
        "task": slope,
        "rest": max(0.0, sum(t) / len(t) - slope * sum(n) / len(n)),
        "latency": small["ms a step"] / 2000,
        "rate": rate,
        "x": 4.0 * tasks[0]["entries of x"],
        "operations": tasks[-1]["operations"] / tasks[-1]["tasks"],
        "memory": max(row["of a direction, MiB"] for row in tasks) / min(row["of a direction, MiB"] for row in tasks),
    }


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line of least squares."""
    a, b = sum(x) / len(x), sum(y) / len(y)
    return sum((u - a) * (v - b) for u, v in zip(x, y, strict=True)) / sum((u - a) ** 2 for u in x)


def modelled(fit: Mapping[str, float], hosts: int, tasks: int, network: tuple[float, float] | None) -> float:
    """Seconds of a step: the tasks of a host, what every host does alone, and a ring all-reduce of x and the losses."""
    latency, rate = network or (fit["latency"], fit["rate"])
    sent = fit["x"] + 16 * tasks  # the loss, a metric, a residual and a flag of each task
    reduce = 2 * (hosts - 1) * latency + 2 * (hosts - 1) / hosts * sent / rate if hosts > 1 else 0.0
    return fit["task"] * tasks / hosts + fit["rest"] + reduce


def page(document: Mapping[str, Any]) -> str:
    """The measurements and the model in Markdown."""
    found, machine = document["rows"], document["machine"]
    fit = fitted(found)
    alone = {row["tasks"]: row["ms a step"] for row in found if row["what grows"] == "tasks"}
    lines = [
        HEAD.format(date=document["date"], rounds=document["rounds"], filters=FILTERS, **machine, **_shown(fit)),
        _line("what grows", "workers", "tasks", "ms a step", "of one worker's", *MEMORIES, "bytes sent", "load"),
        _line(*["---"] * 9),
    ]
    for row in found:
        beside = alone.get(row["tasks"] if "same" in row["what grows"] else row["tasks"] // row["workers"])
        share = f"{row['ms a step'] / beside:.2f}" if beside and row["workers"] > 1 else "-"
        cells = [row["what grows"], row["workers"], row["tasks"] or "-", f"{row['ms a step']:.4g}", share]
        sizes = [f"{row[name]:.1f}" if row[name] else "-" for name in ("temporaries, MiB", "of a direction, MiB")]
        lines.append(_line(*cells, *sizes, f"{row['bytes sent']:,}", f"{row['load']:.1f}"))
    lines.append(MODEL.format(weak=WEAK, strong=f"{STRONG:,}", **_shown(fit)))
    names = [f"{what}, {name}" for name in NETWORKS for what in ("weak", "strong")]
    lines += [_line("hosts", *names), _line(*["---"] * (1 + len(names)))]
    for hosts in HOSTS:
        shares = [f"{share[hosts]:.1%}" for share in efficiencies(fit).values()]
        lines.append(_line(hosts, *shares))
    return "\n".join([*lines, ""])


def efficiencies(fit: Mapping[str, float]) -> dict[str, dict[int, float]]:
    """For every network, weak and strong: by the number of hosts, the part of their time that tasks take."""
    found = {}
    for name, network in NETWORKS.items():
        one = modelled(fit, 1, WEAK, network), modelled(fit, 1, STRONG, network)
        found[f"weak, {name}"] = {n: one[0] / modelled(fit, n, WEAK * n, network) for n in HOSTS}
        found[f"strong, {name}"] = {n: one[1] / n / modelled(fit, n, STRONG, network) for n in HOSTS}
    return found


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Time against tasks, and the efficiency of the model."""
    found = document["rows"]
    fit = fitted(found)
    tasks = [row for row in found if row["what grows"] == "tasks"]
    n = [row["tasks"] for row in tasks]
    linear = Curve("linear", n, [tasks[0]["ms a step"] * each / n[0] for each in n], style="truth")
    time_ = Curve("measured", n, [row["ms a step"] for row in tasks])
    memory = Curve("step", n, [row["temporaries, MiB"] for row in tasks])
    lean = Curve("direction", n, [row["of a direction, MiB"] for row in tasks])
    model = [Curve(name, HOSTS, [share[each] for each in HOSTS]) for name, share in efficiencies(fit).items()]
    panels = [
        Panel("time of a step, one core", "tasks", "ms", [time_, linear], log="xy"),
        Panel("planned memory", "tasks", "MiB", [memory, lean], log="x", within=(0, 1.1 * max(memory.y))),
        Panel("efficiency, as modelled", "hosts", "", model, log="x", within=(0, 1.02)),
    ]
    figures.draw(path, "Scaling of an outer step", panels)


def _shown(fit: Mapping[str, float]) -> dict[str, str]:
    return {
        "exponent": f"{fit['exponent']:.3f}",
        "task": f"{1000 * fit['task']:.3g}",
        "rest": f"{1000 * fit['rest']:.3g}",
        "latency": f"{1e6 * fit['latency']:.3g}",
        "rate": f"{fit['rate'] / 1e9:.3g}",
        "x": f"{fit['x']:,.0f}",
        "operations": f"{fit['operations'] / 1e6:.3g}",
        "speed": f"{fit['operations'] / fit['task'] / 1e9:.3g}",
        "memory": f"{fit['memory']:.2f}",
    }


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


HEAD = """\
# Scaling

An outer step of second-order MAML (5-way 1-shot, random images of 28 x 28, four blocks of {filters} filters, one inner
step), measured on {date}: {cpu}, {cores} cores, jax {jax}. A worker has one core; the fastest of {rounds} steps counts.
Written by `python -m metabilevel_bench.scaling report benchmarks/results/scaling.json docs`.

![Time and memory by tasks, and the model]({picture})

Time grows as the number of tasks to the power {exponent}. What a direction needs beside a copy of its batch grows by a
factor of {memory} from the fewest tasks to the most, since a chunk at a time is computed; the batch itself, which a
step draws, grows with its tasks. *Load*: how many processes wanted a core. Where that is more than there are cores,
other work was done meanwhile, and the times of two workers, which need both cores at once, say nothing of their own
overhead.

Two cores of one machine can show that shares are even, that nothing but one all-reduce is sent, and what that
costs between processes of one host; caches and memory are shared by both workers. They cannot show a network, nor many
workers. *Of one worker's*: beside one worker with as many tasks as each of the two has, for which 1 is ideal, or where
the tasks are the same beside one worker with all of them, for which .5 is.
""".replace("{picture}", PICTURE)

MODEL = """
## A model of more hosts

    seconds of a step = {task} ms * tasks / hosts + {rest} ms + 2 (n - 1) L + 2 (n - 1)/n * bytes / R

for n hosts, each with one such core. The first two numbers are the line through the times above: a task is {operations}
million floating-point operations, which a core computes at {speed} GFLOP/s. A step sends x ({x} bytes) and 16 bytes a
task, the only message of the compiled program, by a ring: 2 (n - 1) hops of latency L, and 2 (n - 1)/n times the bytes
at the rate R. On the loopback device L = {latency} us and R = {rate} GB/s were measured
between two processes; 10 Gbit/s and 50 us are assumed of an Ethernet. The model takes hosts for equally fast and ready
at once, and the network for free of others; it leaves out reports, checkpoints and the drawing of tasks from disks. A
tree in the place of the ring would have 2 log2(n) hops. On faster hosts a task takes less, and the message the same.

Efficiency: the part of their time that the hosts would take if tasks were all. Weak: {weak} tasks a host. Strong:
{strong} tasks in all.
"""


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "work":
        sys.stdout.write(json.dumps(worker(*json.loads(arguments[0]))) + "\n")
    else:
        results, docs = map(Path, arguments)
        document = json.loads(results.read_text())
        (docs / PAGE).write_text(page(document))
        draw(document, docs / PICTURE)
