"""Memory plans: predicted against measured peaks of whole runs, and the way picked against the fastest that fits.

Peaks are those of fresh processes, as the kernel counts them (`ru_maxrss`): a process plans a run and then trains.
"""

import dataclasses
import itertools
import json
import resource
import subprocess
import sys

import click
import jax
import jax.numpy as jnp
import optax
from timing import alternate, write

import metabilevel as mb
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

    def sample(self, key, split):
        labels = jnp.tile(jnp.arange(WAYS), self.shots)
        support, query = jax.random.normal(key, (2, len(labels), *self.shape))
        return mb.Episode(mb.Data(support, labels), mb.Data(query, labels))


def family(network, shots):
    """Tasks for a network of that kind and size."""
    match network:
        case ("sine", width):
            shape, net = (1,), mb.MLP(1, (width, width), WAYS)
        case ("mlp", width):
            shape, net = (28, 28, 1), mb.MLP(784, (width, width), WAYS)
        case ("conv", size, filters):
            pooled = {"down": "max-pool", "readout": "flatten"} if size > 28 else {}
            shape = (size, size, 3 if size > 28 else 1)
            net = mb.ConvNet(shape, WAYS, filters, **pooled)
    return Noise(mb.classification(net), shape, shots)


def run(network, shots, steps, way):
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
        "predicted": plan.peak,
        "measured": peak(),
        "held": resident,
        "before_compilation": begun,
        "after_compilation": compiled,
    }


def peak():
    """The most that this process has held so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peaks():
    """`run` of every case in a fresh process."""
    for network, shots, steps, way in PEAKS:
        case = json.dumps([network, shots, steps, dataclasses.asdict(way)])
        done = subprocess.run([sys.executable, __file__, "--case", case], check=True, capture_output=True, text=True)
        row = {"network": network, "shots": shots, "inner_steps": steps, "way": way.way, **json.loads(done.stdout)}
        row["predicted_of_measured"] = row["predicted"] / row["measured"]
        click.echo(
            f"{network!s:18} {shots} shots, k = {steps:2}, {way.way}: predicted {row['predicted'] / MIB:6.0f} MiB, "
            f"measured {row['measured'] / MIB:6.0f} MiB: {row['predicted_of_measured']:.3f}"
        )
        yield row


def speeds(rounds):
    """An outer step of every way, timed in turns; and for budgets in which each just fits, the way that is picked."""
    for network, shots, steps, batch in SPEEDS:
        tasks, optimizer = family(network, shots), optax.adam(1e-3)
        method = mb.load_method("maml")(tasks.subject, learning_rate=0.01, steps=steps)
        given = {"key": jax.random.key(0), "meta_batch": batch}
        state = start(method, tasks, optimizer, given["key"], batch)
        stop = state.step + 1
        calls, needs, seen = {}, {}, set()
        for way in itertools.starmap(Plan, itertools.product((None, 4, 1), CHECKPOINTS, (False, True))):
            arguments = way.applied(method), tasks, optimizer, batch, state, given["key"], stop
            program = lowered(_loop, *arguments)
            if (text := hash(program.as_text())) not in seen:
                seen.add(text)
                needs[way.way] = Footprint.of(program.compile()).added
                mb.plan(
                    arguments[0], tasks, optimizer, task_chunk=way.task_chunk, **given
                )  # compiles the rest of a run
                calls[way.way] = lambda arguments=arguments: _loop(*arguments)
        rows = alternate(calls, rounds)
        for way, row in rows.items():
            row["added_MiB"] = needs[way] / MIB
            click.echo(f"{network!s:18} k = {steps:2}, {way}: {row['median']:.3f} s, {row['added_MiB']:.1f} MiB")
        budgets = []
        for need in sorted(set(needs.values())):
            best = min((way for way in rows if needs[way] <= need + SLACK), key=lambda way: rows[way]["median"])
            row = {"added_MiB": need / MIB, "best": best}
            try:
                plan = mb.plan(method, tasks, optimizer, memory_budget=held() + need + SLACK, **given)
                row |= {"picked": plan.way, "time_of_best": rows[plan.way]["median"] / rows[best]["median"]}
            except mb.InputError as error:
                row["refused"] = str(error)
            budgets.append(row)
            click.echo(f"  room for {need / MIB:.1f} MiB: {row.get('picked')}: {row.get('time_of_best')} of {best}")
        yield {
            "network": network, "shots": shots, "inner_steps": steps, "tasks": batch, "ways": rows, "budgets": budgets,
        }  # fmt: skip


@click.command(help=__doc__.splitlines()[0])
@click.option("--case", help="One case of the peaks, as JSON, in this process.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--part", type=click.Choice(["peaks", "speeds"]), help="One of the two alone.")
def main(case, rounds, part):
    if case:
        network, shots, steps, way = json.loads(case)
        click.echo(json.dumps(run(tuple(network), shots, steps, Plan(**way))))
        return
    if part != "speeds":
        click.echo(f"Written to {write('memory_peaks', results=list(peaks()))}.")
    if part != "peaks":
        click.echo(f"Written to {write('memory_plan', results=list(speeds(rounds)))}.")


if __name__ == "__main__":
    main()
