"""One second-order MAML step of the Omniglot net: the library beside what a tutorial writes.

The mean query loss after one inner gradient step, and its gradient, of

- `textbook`: `jax.value_and_grad` of the mean over `jax.vmap` of the tasks, with `lax.conv_general_dilated`;
- `textbook, task by task`: the same net under `jax.lax.map`, every task differentiated for itself;
- `metabilevel`: the direction of `load_method("maml")`, with the losses and which tasks were finite, as in `fit`.

Losses and gradients are compared before anything is timed. Times are of one call, compiled.
"""

import click
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import alternate, product_operations, square_product, write

import metabilevel as mb

RATE = 0.4


def textbook_outputs(params, images, stride):
    """The outputs of `ConvNet`, with XLA's convolution and pooling."""
    maps, dimensions = images, ("NHWC", "OHWI", "NHWC")
    for layer in params["body"]:
        maps = jax.lax.conv_general_dilated(maps, layer["weights"], stride, "SAME", dimension_numbers=dimensions)
        maps = (maps - maps.mean((0, 1, 2))) / jnp.sqrt(maps.var((0, 1, 2)) + 1e-3)
        maps = jax.nn.relu(maps + layer["bias"])
        if stride == (1, 1):
            maps = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    features = maps.reshape(len(maps), -1) if stride == (1, 1) else maps.mean((1, 2))
    return features @ params["head"]["weights"] + params["head"]["bias"]


def adapted_loss(outputs, x, task):
    """The query loss of one task after one inner step from x."""
    loss = lambda p, data: optax.softmax_cross_entropy_with_integer_labels(outputs(p, data.inputs), data.targets).mean()
    y = jax.tree.map(lambda p, g: p - RATE * g, x, jax.grad(loss)(x, task.support))
    return loss(y, task.query)


def compare(ours, theirs):
    """Losses to 1e-5, gradients to 1e-2 of their norm: where float32 rounds the input of one ReLU across zero, that
    task's gradient jumps by about 1e-3. (Without the second derivatives the gradient differs by .9.)"""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, ours[1], theirs[1])) / optax.tree.norm(theirs[1])
    np.testing.assert_array_less(difference, 1e-2)


@click.command(help=__doc__.splitlines()[0])
@click.option("--tasks", default=32, show_default=True)
@click.option("--ways", default=5, show_default=True)
@click.option("--shots", default=1, show_default=True, help="Support images of a class, and as many queries.")
@click.option("--filters", default=64, show_default=True)
@click.option("--down", type=click.Choice(["stride", "max-pool"]), default="stride", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Turns of each; one of the textbook takes 10 s and more.")
@click.option("--name", default="conv_maml", show_default=True, help="Name of the file of results.")
def main(tasks, ways, shots, filters, down, rounds, name):
    pooled = down == "max-pool"
    network = mb.ConvNet((28, 28, 1), ways, filters, down=down, readout="flatten" if pooled else "mean")
    method = mb.load_method("maml")(mb.classification(network), learning_rate=RATE, steps=1)
    k_init, k_images, key = jax.random.split(jax.random.key(0), 3)
    x, labels = method.init(k_init), jnp.tile(jnp.arange(ways), (tasks, shots))
    support, query = jax.random.uniform(k_images, (2, *labels.shape, 28, 28, 1))
    batch = mb.Episode(mb.Data(support, labels), mb.Data(query, labels))

    def textbook(x, task):
        return adapted_loss(lambda p, images: textbook_outputs(p, images, (1, 1) if pooled else (2, 2)), x, task)

    def one_by_one(x):
        each = jax.lax.map(lambda task: jax.value_and_grad(textbook)(x, task), batch)
        return jax.tree.map(lambda a: a.mean(0), each)

    def library(x):
        direction, _, info = method.estimator(x, batch, None, key)
        return info.loss.mean(), direction, info.finite

    steps = {
        "textbook": jax.value_and_grad(lambda x: jax.vmap(textbook, (None, 0))(x, batch).mean()),
        "textbook, task by task": one_by_one,
        "metabilevel": library,
    }
    compiled = {step: jax.jit(fn).lower(x).compile() for step, fn in steps.items()}
    for step in steps:
        compare(compiled["metabilevel"](x), compiled[step](x))

    product, product_work = square_product()
    calls = {step: lambda fn=fn: fn(x) for step, fn in compiled.items()}
    seconds = alternate({**calls, "matrix product": product}, rounds)
    outputs = lambda p, images: network.head(p["head"], network.body(p["body"], images))
    one = jax.tree.map(lambda a: a[0], batch)
    work = tasks * product_operations(jax.grad(lambda x: adapted_loss(outputs, x, one)), x)
    peak = product_work / seconds["matrix product"]["median"]
    for step, fn in compiled.items():
        row = seconds[step]
        row["times_as_fast_as_textbook"] = faster = seconds["textbook"]["median"] / row["median"]
        row["fraction_of_peak"] = fraction = work / row["median"] / peak
        row["temporaries_MiB"] = memory = fn.memory_analysis().temp_size_in_bytes / 2**20
        spread = f"{row['median']:8.3f} s ({row['min']:.3f} to {row['max']:.3f}, {row['calls']} calls)"
        click.echo(f"{step:24s} {spread:42s} {faster:6.1f} x {fraction:6.1%} of peak {memory:6.0f} MiB")
    settings = {"tasks": tasks, "ways": ways, "shots": shots, "filters": filters, "down": down}
    path = write(name, settings=settings, gigaflop=work / 1e9, peak_gigaflop_per_second=peak / 1e9, seconds=seconds)
    click.echo(f"{work / 1e9:.1f} GFLOP in matrix products; peak {peak / 1e9:.0f} GFLOP/s. Written to {path.name}.")


if __name__ == "__main__":
    main()
