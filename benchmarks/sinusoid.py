"""Outer steps of sinusoid MAML (25 tasks, 10 + 10 points, 40-40 net): `fit`'s loop beside what one writes by hand.

All draw fresh tasks at every step and use Adam:

- `textbook`: a jitted step with the gradient of a mean over `jax.vmap` of tasks, called from a Python loop;
- `textbook, scanned`: the same step under `jax.lax.scan`;
- `metabilevel`: a whole call of `fit`, compiled before, with its count of failed tasks, its sums and its report.
"""

from functools import partial

import click
import jax
import jax.numpy as jnp
import optax
from timing import alternate, write

import metabilevel as mb

TASKS, POINTS, RATE, STEPS = 25, 10, 0.01, 3000
OPTIMIZER = optax.adam(1e-3)


def init(key):
    sizes = [(1, 40), (40, 40), (40, 1)]
    layers = zip(jax.random.split(key, 3), sizes, strict=True)
    return [(jax.random.normal(k, size) / size[0] ** 0.5, jnp.zeros(size[1])) for k, size in layers]


def loss(params, inputs, targets):
    for weights, bias in params[:-1]:
        inputs = jax.nn.relu(inputs @ weights + bias)
    return jnp.mean((inputs @ params[-1][0] + params[-1][1] - targets) ** 2)


def draw(key):
    k_amplitude, k_phase, k_inputs = jax.random.split(key, 3)
    amplitude = jax.random.uniform(k_amplitude, minval=0.1, maxval=5.0)
    phase = jax.random.uniform(k_phase, maxval=jnp.pi)
    inputs = jax.random.uniform(k_inputs, (2 * POINTS, 1), minval=-5.0, maxval=5.0)
    return inputs, amplitude * jnp.sin(inputs - phase)


def step(inner_steps, params, opt, key):
    key, sub = jax.random.split(key)
    inputs, targets = jax.vmap(draw)(jax.random.split(sub, TASKS))

    def query_loss(p, x, t):
        q = p
        for _ in range(inner_steps):
            gradient = jax.grad(loss)(q, x[:POINTS], t[:POINTS])
            q = jax.tree.map(lambda a, g: a - RATE * g, q, gradient)
        return loss(q, x[POINTS:], t[POINTS:])

    outer = lambda p: jax.vmap(partial(query_loss, p))(inputs, targets).mean()
    value, gradient = jax.value_and_grad(outer)(params)
    updates, opt = OPTIMIZER.update(gradient, opt, params)
    return optax.apply_updates(params, updates), opt, key, value


def by_hand(inner_steps, scanned):
    params = init(jax.random.key(0))
    state = [params, OPTIMIZER.init(params), jax.random.key(1)]
    one = jax.jit(partial(step, inner_steps))
    many = jax.jit(lambda s: jax.lax.scan(lambda s, _: ((out := step(inner_steps, *s))[:3], out[3]), s, length=STEPS))

    def run():
        if scanned:
            state[:], values = many(tuple(state))
            return values
        for _ in range(STEPS):
            *state[:], value = one(*state)
        return value

    return run


def library(inner_steps):
    tasks = mb.load_tasks("sinusoid")(shots=POINTS, queries=POINTS)
    method = mb.load_method("maml")(tasks.subject, learning_rate=RATE, steps=inner_steps)
    key = jax.random.key(0)
    return lambda: mb.fit(method, tasks, OPTIMIZER, key=key, steps=STEPS, meta_batch=TASKS, every=STEPS)[0]


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=7, show_default=True)
def main(rounds):
    results = {}
    for inner_steps in (1, 5):
        candidates = {
            "textbook": by_hand(inner_steps, scanned=False),
            "textbook, scanned": by_hand(inner_steps, scanned=True),
            "metabilevel": library(inner_steps),
        }
        results[f"k = {inner_steps}"] = rows = alternate(candidates, rounds)
        for name, row in rows.items():
            row["outer_steps_a_second"] = STEPS / row["median"]
            row["times_faster_than_textbook"] = rows["textbook"]["median"] / row["median"]
            click.echo(
                f"k = {inner_steps}  {name:18} {row['median'] / STEPS * 1e6:7.0f} us a step, "
                f"{row['times_faster_than_textbook']:.2f} times the textbook's speed"
            )
    click.echo(f"Written to {write('sinusoid', outer_steps=STEPS, results=results)}.")


if __name__ == "__main__":
    main()
