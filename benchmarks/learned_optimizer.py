"""The gradient of a 20-step window with respect to the weights of the LSTM optimizer: the library beside textbooks.

- `textbook`: `jax.value_and_grad` of a scan of `jax.vmap` of a cell over the coordinates of every array, and over runs;
- `metabilevel`: the direction of `load_method("lstm")`, with its bookkeeping, as in `fit`;
- `products`: the matrix products alone, of every layer and both of its gradients, for 20 steps;
- `PyTorch` and `torch.compile`: a loop over steps of `torch.lstm_cell` over all coordinates, where there is a torch.

The optimizee's gradients are constants in all of them. Their gradients are compared before anything is timed.
"""

import select
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import alternate, write

import metabilevel as mb

KEY = jax.random.key(0)
WINDOW, RUNS = 20, 128
GOALS = {
    "MNIST MLP": {"textbook": 1.8, "products": 1 / 2.5, "PyTorch": 1.8, "torch.compile": 1.0},
    "quadratics": {"textbook": 2.0, "torch.compile": 2.0},
}


def mlp():
    """A network of 15,910 weights on 128 examples."""
    learner = mb.classification(mb.MLP(784, (20,), 10, "sigmoid"))
    data = mb.Data(jax.random.uniform(KEY, (1, 128, 784)), jax.random.randint(KEY, (1, 128), 0, 10))
    arrays = {"inputs": data.inputs[0], "targets": np.asarray(data.targets[0], np.int64)}
    return learner, mb.Episode(data, data), learner.fit, {"preprocess": 10.0}, arrays


def quadratics():
    """128 functions |W y - v|^2 of 10 coordinates."""
    draw = lambda key: {"matrix": jax.random.normal(key, (10, 10)), "vector": jax.random.normal(key, (10,))}
    loss = lambda y, task: jnp.sum((task["matrix"] @ y - task["vector"]) ** 2)
    family = mb.from_function(lambda task, key: jnp.zeros(10), lambda y, task, key: loss(y, task), draw)
    tasks = jax.vmap(draw)(jax.random.split(KEY, RUNS))
    return family.subject, tasks, loss, {"preprocess": None}, tasks


def textbook(loss, rule, x, tasks, point):
    """What one writes first: a net for a coordinate, mapped over coordinates, arrays and runs."""

    def features(g):
        p = rule.preprocess
        if p is None:
            return g[None]
        large = jnp.abs(g) >= jnp.exp(-p)
        logarithm = jnp.log(jnp.where(large, jnp.abs(g), 1)) / p
        return jnp.where(large, jnp.stack([logarithm, jnp.sign(g)]), jnp.stack([-jnp.ones_like(g), jnp.exp(p) * g]))

    def net(x, g, state):
        signal, after = features(g), []
        for layer, (h, c) in zip(x["layers"], state, strict=True):
            i, f, o, g = jnp.split(layer["weights"] @ jnp.concatenate([signal, h]) + layer["bias"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            signal = jax.nn.sigmoid(o) * jnp.tanh(c)
            after.append((signal, c))
        return rule.scale * (x["out"]["weights"] @ signal + x["out"]["bias"])[0], after

    def window(x, task, y, states):
        def step(carry, _):
            y, states = carry
            leaves, structure = jax.tree.flatten(jax.lax.stop_gradient(jax.grad(loss)(y, task)))
            moved = [jax.vmap(partial(net, x))(g.ravel(), s) for g, s in zip(leaves, states, strict=True)]
            updates = structure.unflatten([u.reshape(g.shape) for (u, _), g in zip(moved, leaves, strict=True)])
            y = jax.tree.map(jnp.add, y, updates)
            return (y, [s for _, s in moved]), loss(y, task)

        return jax.lax.scan(step, (y, states), length=WINDOW)[1].sum()

    y, state = point
    ends = np.cumsum([a[0].size for a in jax.tree.leaves(y)])[:-1]
    pieces = [[jnp.split(jnp.moveaxis(a, 1, 2), ends, 1) for a in (s["hidden"], s["cell"])] for s in state["layers"]]
    states = [[(h[i], c[i]) for h, c in pieces] for i in range(len(ends) + 1)]
    mean = lambda x, *runs: jax.vmap(partial(window, x))(*runs).mean()
    return partial(jax.jit(jax.value_and_grad(mean)), x, tasks, y, states)


def products(x, columns):
    """Forward, and both gradients, of every layer, 20 times. Each step's results are the next one's factors, so that
    none is left out and no memory is taken anew; they are zero throughout."""
    matrices = [jnp.zeros_like(layer["weights"]) for layer in [*x["layers"], x["out"]]]
    factors = [(w, jnp.zeros((w.shape[1], columns)), jnp.zeros((w.shape[0], columns))) for w in matrices]
    step = lambda factors, _: ([(b @ a.T, w.T @ b, w @ a) for w, a, b in factors], None)
    return partial(jax.jit(lambda factors: jax.lax.scan(step, factors, length=WINDOW)[0]), factors)


def torch_file(folder, x, rule, point, arrays):
    """What `learned_optimizer_torch.py` is given."""
    y, state = jax.tree.map(np.asarray, point)
    rows = lambda a: np.ascontiguousarray(np.moveaxis(a, 1, 2).reshape(-1, rule.units))
    given = {
        "steps": WINDOW, "scale": rule.scale, "preprocess": rule.preprocess or 0.0,
        "y": np.concatenate([a.reshape(len(a), -1) for a in jax.tree.leaves(y)], 1).ravel(),
        "weights_out": x["out"]["weights"], "bias_out": x["out"]["bias"],
        **{f"{name}{i}": layer[name] for i, layer in enumerate(x["layers"]) for name in layer},
        **{f"{name}{i}": rows(s[name]) for i, s in enumerate(state["layers"]) for name in s},
        **arrays,
    }  # fmt: skip
    file = Path(folder) / "given.npz"
    np.savez(file, **jax.tree.map(np.asarray, given))
    return file


class Torch:
    """A process of `python` that computes a gradient at every call; `spent` are its processor's seconds until then."""

    def __init__(self, python, file, name):
        script = Path(__file__).with_name("learned_optimizer_torch.py")
        self.process = subprocess.Popen([python, script, file, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.result, self.spent = f"{file}.{name}.npz", 0.0

    def __call__(self, limit=None):
        """Whether it was done within `limit` seconds."""
        question, answer = self.process.stdin, self.process.stdout
        assert question
        assert answer
        question.write(b"\n")
        question.flush()
        if not select.select([answer], [], [], limit)[0]:
            self.process.kill()
            return False
        line = answer.readline()
        if not line:
            raise click.ClickException("PyTorch's side ended early.")
        self.spent = float(line)
        return True

    def gradient(self, layers):
        found = np.load(self.result)
        pick = lambda i: {part: found[f"{part}{i}"] for part in ("weights", "bias")}
        return {"layers": [pick(i) for i in range(layers)], "out": pick("_out")}


def measure(workload, torch_python, limit, rounds):
    subject, tasks, loss, options, arrays = workload()
    method = mb.load_method("lstm")(subject, steps=5 * WINDOW, window=WINDOW, **options)
    rule, estimator, x = method.solver.rule, method.estimator, method.init(KEY)
    direction = jax.jit(lambda x, tasks, carry: estimator(x, tasks, carry, KEY))
    _, carry, _ = direction(x, tasks, estimator.init(x, tasks, KEY))
    point = carry.point
    candidates = {
        "metabilevel": partial(direction, x, tasks, carry),
        "textbook": textbook(loss, rule, x, jax.tree.map(jnp.asarray, getattr(tasks, "support", tasks)), point),
        "products": products(x, sum(a.size for a in jax.tree.leaves(point[0]))),
    }
    expected = candidates["textbook"]()[1]
    compare(candidates["metabilevel"]()[0], expected)
    processes = {}
    with tempfile.TemporaryDirectory() as folder:
        if torch_python:
            file = torch_file(folder, x, rule, point, arrays)
            for name, key in (("PyTorch", "loop"), ("torch.compile", "compile")):
                process = Torch(torch_python, file, key)
                if not process(limit):
                    click.echo(f"{name} was not done with its first call after {limit:g} s: it is left out.")
                    continue
                compare(process.gradient(rule.layers), expected)
                processes[name] = process
        busy = lambda: time.process_time() + sum(process.spent for process in processes.values())
        rows = alternate({**candidates, **processes}, rounds, processor=busy)
        for process in processes.values():
            process.process.kill()
    ours = rows["metabilevel"]
    for row in rows.values():
        row["ratio"], row["processor_ratio"] = (row[clock] / ours[clock] for clock in ("median", "processor"))
    return rows


def compare(ours, theirs):
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, ours, jax.tree.map(jnp.asarray, theirs)))
    np.testing.assert_array_less(difference / optax.tree.norm(ours), 1e-3)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--rounds", default=7, show_default=True)
@click.option("--torch-python", default=None, help="A Python that has torch; this one if it has, else none.")
@click.option("--limit", default=40.0, show_default=True, help="Seconds for the first call of a torch candidate.")
def main(rounds, torch_python, limit):
    has_torch = (
        subprocess.run([torch_python or sys.executable, "-c", "import torch"], capture_output=True).returncode == 0
    )
    if not has_torch:
        click.echo("There is no torch here: its candidates are left out.")
    results = {}
    for name, workload in {"MNIST MLP": mlp, "quadratics": quadratics}.items():
        results[name] = measure(workload, (torch_python or sys.executable) if has_torch else None, limit, rounds)
        for candidate, row in results[name].items():
            goal = GOALS[name].get(candidate)
            aim = f" (goal {goal:.2f})" if goal else ""
            wall, busy = (f"{row[clock] * 1e3:8.1f} ms" for clock in ("median", "processor"))
            ratios = f"{row['ratio']:5.2f} and {row['processor_ratio']:5.2f} x metabilevel"
            click.echo(f"{name}, {candidate:14} {wall}, processor {busy}: {ratios}{aim}")
    click.echo(f"Written to {write('learned_optimizer', goals=GOALS, torch=has_torch, results=results)}.")


if __name__ == "__main__":
    main()
