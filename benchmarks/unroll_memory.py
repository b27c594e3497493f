"""Compiled temporary memory and time of the gradient through K = 100 inner steps, for each way to unroll them.

The gradients are compared before anything is timed. Memory is what the compiler plans, `memory_analysis()`.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import alternate, write

import metabilevel as mb

STEPS = 100
WAYS = {
    f"checkpoint={checkpoint!r}, mixed_mode={mixed_mode}": mb.Unroll(checkpoint=checkpoint, mixed_mode=mixed_mode)
    for checkpoint in (None, "step", "sqrt")
    for mixed_mode in (False, True)
}
SINE, MLP = mb.regression(mb.MLP(1, (40, 40), 1)), mb.classification(mb.MLP(64, (64, 64), 10))
CONV = mb.classification(mb.ConvNet((28, 28, 1), 5, filters=32))
NUMBERS = lambda key, n: jax.random.normal(key, (n, 1))
CLASSES = lambda key, n: jax.random.randint(key, (n,), 0, 5)
OPTIMIZEES = {
    "sinusoid net, 100 points, SGD": (SINE, (100, 1), NUMBERS, optax.sgd(0.01)),
    "MLP 64-64-64-10, 128 examples, SGD": (MLP, (128, 64), CLASSES, optax.sgd(0.1)),
    "conv net, 32 filters, 5 images, SGD": (CONV, (5, 28, 28, 1), CLASSES, optax.sgd(0.1)),
    "conv net, 32 filters, 5 images, Adam": (CONV, (5, 28, 28, 1), CLASSES, optax.adam(1e-3)),
}


def gradient(learner, shape, targets, inner, adjoint):
    """The compiled gradient of the loss after K steps with respect to the start, and that start."""
    k_init, k_inputs, k_targets, key = jax.random.split(jax.random.key(0), 4)
    data = mb.Data(jax.random.normal(k_inputs, shape), targets(k_targets, shape[0]))
    problem = mb.BilevelProblem(
        lambda x, t, k: x, lambda x, y, t, k: learner.fit(y, data), lambda x, y, t, k: learner.fit(y, data)
    )
    solver, x = mb.GradientDescent(inner, steps=STEPS), learner.init(k_init)
    outer = lambda x: problem.outer_loss(x, adjoint(problem, solver, x, x, None, key), None, key)
    return jax.jit(jax.grad(outer)).lower(x).compile(), x


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=5, show_default=True)
def main(rounds):
    results = {}
    for name, optimizee in OPTIMIZEES.items():
        compiled = {way: gradient(*optimizee, adjoint) for way, adjoint in WAYS.items()}
        values = {way: fn(x) for way, (fn, x) in compiled.items()}
        plain = next(iter(WAYS))
        for way in WAYS:
            compare(values[way], values[plain], f"{name}, {way}")
        rows = alternate({way: lambda fn=fn, x=x: fn(x) for way, (fn, x) in compiled.items()}, rounds)
        for way, row in rows.items():
            row["temporary_MiB"] = compiled[way][0].memory_analysis().temp_size_in_bytes / 2**20
            row["memory_of_plain"] = row["temporary_MiB"] / rows[plain]["temporary_MiB"]
            row["time_of_plain"] = row["median"] / rows[plain]["median"]
            click.echo(
                f"{name:36} {way:40} {row['temporary_MiB']:8.2f} MiB = plain / {1 / row['memory_of_plain']:5.1f}, "
                f"time x {row['time_of_plain']:.2f}"
            )
        results[name] = rows
    click.echo(f"Written to {write('unroll_memory', inner_steps=STEPS, results=results)}.")


def compare(a, b, what):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(u, v, rtol=0, atol=2e-3 * max(1e-3, float(jnp.abs(v).max())), err_msg=what)


if __name__ == "__main__":
    main()
