"""Oracle calls a second of SOBA and SABA on ijcnn1 (batch 64): `fit`'s loop beside that of the public benchmark.

- `textbook`: the loop of the benchmark's JAX solvers, written anew: minibatches are contiguous slices in an order that
  is shuffled every epoch, a compiled scan of 2,048 steps is called from Python; the loss takes an example at a time,
  under vmap.
- `metabilevel`: a whole call of `fit`, compiled before, with its count of failed steps, its sums and its report.

A step has four oracle calls: dG/dy, (d2G/dy2) v, (d2G/dx dy) v, and the gradient of F.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metabilevel as mb
from metabilevel.bench import Candidate, Case, Race

BATCH, STEPS, SCAN, RATE, CALLS = 64, 20_480, 2_048, 0.1, 4
KEY = jax.random.key(0)


def sampler(n: int) -> Any:
    """(order, position, key) -> (start, number) of the next block, and the next state."""
    blocks = -(-n // BATCH)

    def draw(state: Any) -> Any:
        order, position, key = state
        number = order[position]

        def again() -> Any:
            key_next, sub = jax.random.split(key)
            return jax.random.permutation(sub, order), 0, key_next

        state = jax.lax.cond(position + 1 == blocks, again, lambda: (order, position + 1, key))
        return (number * BATCH, number), state

    return draw, (jnp.arange(blocks), jnp.asarray(0), jax.random.key(0)), blocks


def textbook(tasks: Any, reduced: bool, steps: int) -> Callable[[], Any]:
    """The losses of a slice, the directions, and with `reduced` the tables of SABA."""
    task = tasks.sample(KEY, "train")

    def sliced(data: Any, start: Any) -> Any:
        inputs = jax.lax.dynamic_slice_in_dim(data.inputs, start, BATCH)
        return inputs, jax.lax.dynamic_slice_in_dim(data.targets, start, BATCH)

    def mean_loss(y: Any, data: Any, start: Any) -> Any:
        one = lambda a, s: -jax.nn.log_sigmoid(s * jnp.dot(y, a))
        return jnp.mean(jax.vmap(one)(*sliced(data, start)))

    inner = lambda y, x, start: mean_loss(y, task.support, start) + jnp.dot(jnp.exp(x) * y, y) / 2
    outer = lambda y, x, start: mean_loss(y, task.query, start)
    draw_inner, state_inner, blocks_inner = sampler(len(task.support.targets))
    draw_outer, state_outer, blocks_outer = sampler(len(task.query.targets))
    weights = {"inner": BATCH / len(task.support.targets), "outer": BATCH / len(task.query.targets)}

    def corrected(tables: Any, part: str, fresh: Any, number: Any) -> Any:
        found = []
        for table, new in zip(tables[part], fresh, strict=True):
            change = new - table[number]
            found.append((change + table[-1], table.at[number].set(new).at[-1].add(weights[part] * change)))
        return [d for d, _ in found], {**tables, part: [t for _, t in found]}

    def step(carry: Any, _: None) -> Any:
        y, x, v, tables, state_inner, state_outer = carry
        (start, number), state_inner = draw_inner(state_inner)
        gradient, pull = jax.vjp(lambda y, x: jax.grad(inner)(y, x, start), y, x)
        hvp, cross = pull(v)
        (start, number_outer), state_outer = draw_outer(state_outer)
        f_y, f_x = jax.grad(outer, argnums=(0, 1))(y, x, start)
        if reduced:
            (gradient, hvp, cross), tables = corrected(tables, "inner", (gradient, hvp, cross), number)
            (f_y, f_x), tables = corrected(tables, "outer", (f_y, f_x), number_outer)
        carry = y - RATE * gradient, x - RATE * (cross + f_x), v - RATE * (hvp + f_y), tables, state_inner, state_outer
        return carry, None

    x = tasks.subject.init(KEY)
    y = tasks.subject.problem.init(x, task, KEY)
    rows = lambda blocks: jnp.zeros((blocks + 1, len(y)))
    tables = {"inner": [rows(blocks_inner)] * 3, "outer": [rows(blocks_outer)] * 2}
    start = y, x, jnp.zeros_like(y), tables, state_inner, state_outer
    many = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=SCAN)[0])

    def run() -> Any:
        carry = start
        for _ in range(steps // SCAN):
            carry = many(carry)
        return carry[1]

    return run


def ours(tasks: Any, name: str, steps: int) -> Callable[[], Any]:
    """A whole call of `fit`."""
    method = mb.load_method(name)(tasks.subject, learning_rate=RATE, batch=BATCH)
    optimizer = optax.sgd(RATE)
    options = {"key": KEY, "steps": steps, "meta_batch": 1, "every": steps, "progress": False}
    return lambda: mb.fit(method, tasks, optimizer, **options)[0]


def value(tasks: Any, x: Any) -> Any:
    """F where y is solved."""
    subject, task = tasks.subject, tasks.sample(KEY, "train")
    y = subject.solver.solve(subject.problem, x, subject.problem.init(x, task, KEY), task, KEY)
    return subject.problem.outer_loss(x, y, task, KEY)


def build(name: str, quick: bool) -> Case:
    """Whole trainings; small: of a tenth of the steps."""
    tasks, steps = mb.load_tasks("bilevel-ijcnn1")(), SCAN if quick else STEPS
    calls = {"textbook": textbook(tasks, name == "saba", steps), "metabilevel": ours(tasks, name, steps)}
    candidates = {each: Candidate(call, steps * CALLS) for each, call in calls.items()}

    def check(candidates: Mapping[str, Candidate]) -> None:
        """They see other minibatches: the same way down, not the same numbers."""
        found = [value(tasks, candidate.call()) for candidate in candidates.values()]
        np.testing.assert_allclose(*found, rtol=0.2 if quick else 0.05)

    return Case(candidates, truth=None, check=check)


def _race(name: str) -> Race:
    about = f"An oracle call of {name.upper()} on ijcnn1, batches of 64, within a whole training."
    return Race(f"single-loop-{name}", about, partial(build, name), {"textbook": 1.0})


SOBA, SABA = _race("soba"), _race("saba")
