"""Sinusoid MAML (25 tasks, 10 + 10 points, 40-40 net): `fit` beside what one writes by hand.

Ours and the textbooks draw fresh tasks at every step; the peers are given theirs. All make a step of Adam.

- `textbook`: a jitted step with the gradient of a mean over `jax.vmap` of tasks, called from a Python loop;
- `textbook, scanned`: the same step under `jax.lax.scan`;
- `metabilevel`: a whole call of `fit`, compiled before, with its count of failed tasks, its sums and its report.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel.bench import Candidate, Case, Race, operations

from . import PEERS

KEY = jax.random.key(0)
TASKS, POINTS, RATE, OUTER_RATE = 25, 10, 0.01, 1e-3
OPTIMIZER = optax.adam(OUTER_RATE)


def loss(params: Any, inputs: Any, targets: Any) -> Any:
    """Of the network, written out."""
    *hidden, last = [*params["body"], params["head"]]
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["weights"] + layer["bias"])
    return jnp.mean((inputs @ last["weights"] + last["bias"] - targets) ** 2)


def draw(key: Any) -> mb.Episode:
    """A task."""
    k_amplitude, k_phase, k_inputs = jax.random.split(key, 3)
    amplitude = jax.random.uniform(k_amplitude, minval=0.1, maxval=5.0)
    phase = jax.random.uniform(k_phase, maxval=jnp.pi)
    inputs = jax.random.uniform(k_inputs, (2 * POINTS, 1), minval=-5.0, maxval=5.0)
    targets = amplitude * jnp.sin(inputs - phase)
    return mb.Episode(mb.Data(inputs[:POINTS], targets[:POINTS]), mb.Data(inputs[POINTS:], targets[POINTS:]))


def batch_of(key: Any) -> mb.Episode:
    """All tasks of a step."""
    return jax.vmap(draw)(jax.random.split(key, TASKS))


def mean_loss(inner_steps: int, x: Any, batch: mb.Episode) -> Any:
    """The query loss after the inner steps, as a tutorial writes it."""

    def one(task: mb.Episode) -> Any:
        y = x
        for _ in range(inner_steps):
            y = jax.tree.map(lambda a, g: a - RATE * g, y, jax.grad(loss)(y, *task.support))
        return loss(y, *task.query)

    return jax.vmap(one)(batch).mean()


def step(inner_steps: int, state: Any, _: Any = None) -> tuple[Any, Any]:
    """One outer step on fresh tasks, by hand."""
    x, opt, key = state
    key, sub = jax.random.split(key)
    value, gradient = jax.value_and_grad(partial(mean_loss, inner_steps))(x, batch_of(sub))
    updates, opt = OPTIMIZER.update(gradient, opt, x)
    return (optax.apply_updates(x, updates), opt, key), value


def by_hand(inner_steps: int, x: Any, steps: int, *, scanned: bool) -> Any:
    """A call of so many outer steps."""
    state = [(x, OPTIMIZER.init(x), KEY)]
    one = jax.jit(partial(step, inner_steps))
    many = jax.jit(lambda state: jax.lax.scan(partial(step, inner_steps), state, length=steps))

    def run() -> Any:
        if scanned:
            state[0], value = many(state[0])
            return value
        value = None
        for _ in range(steps):
            state[0], value = one(state[0])
        return value

    return run


def build(inner_steps: int, quick: bool) -> Case:
    """The race of that many inner steps."""
    steps = 20 if quick else 3000
    tasks = mb.load_tasks("sinusoid")(shots=POINTS, queries=POINTS)
    method = mb.load_method("maml")(tasks.subject, learning_rate=RATE, steps=inner_steps)
    x, batch = method.init(KEY), batch_of(KEY)

    @jax.jit
    def direction(x: Any) -> Any:
        found, _, info = method.estimator(x, batch, None, KEY)
        return info.loss.mean(), found

    textbook = jax.jit(jax.value_and_grad(lambda x: mean_loss(inner_steps, x, batch)))
    answers = {"answer": partial(textbook, x), "steps": steps}
    options = {"key": KEY, "steps": steps, "meta_batch": TASKS, "every": steps, "progress": False}
    ours = lambda: mb.fit(method, tasks, OPTIMIZER, **options)[0]
    numbers = {"rate": RATE, "steps": inner_steps, "outer_rate": OUTER_RATE}
    return Case(
        {
            "textbook": Candidate(by_hand(inner_steps, x, steps, scanned=False), **answers),
            "textbook, scanned": Candidate(by_hand(inner_steps, x, steps, scanned=True), **answers),
            "metabilevel": Candidate(ours, steps, partial(direction, x)),
        },
        x=x,
        arrays={**episode_arrays(batch), **numbers},
        gradient_tolerance=1e-2,
        operations=operations(jax.grad(partial(mean_loss, inner_steps)), x, batch).products,
    )


def episode_arrays(batch: mb.Episode) -> dict[str, Any]:
    """What the peers' file holds of the tasks."""
    return {
        f"{part}.{name}": getattr(getattr(batch, part), name)
        for part in ("support", "query")
        for name in ("inputs", "targets")
    }


def _race(inner_steps: int, compiled_peer: float) -> Race:
    goals = {"textbook": 1.1, "textbook, scanned": 1 / 1.03, "torch.func + compile": compiled_peer, "learn2learn": 40.0}
    about = f"An outer step of second-order MAML on 25 sinusoids, k = {inner_steps}, with Adam."
    return Race(f"sinusoid-{inner_steps}", about, partial(build, inner_steps), goals, PEERS)


SINUSOID_1, SINUSOID_5 = _race(1, 2.0), _race(5, 1.2)
