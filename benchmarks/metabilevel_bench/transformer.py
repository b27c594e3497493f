"""A small transformer as the inner problem: the gradient with respect to where five steps of descent begin.

- `textbook`: `jax.value_and_grad` of the mean over `jax.vmap` of tasks of the loss after the steps, written out;
- `metabilevel`: `Nested` with `Unroll(mixed_mode=True)`, and the plain `Unroll()` beside it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel.bench import Case, Race, compiled, operations

from . import PEERS
from .sinusoid import episode_arrays

RATE, STEPS, HEADS = 0.1, 5, 4
KEY = jax.random.key(0)


def start(key: Any, tokens: int, length: int, width: int, blocks: int) -> Any:
    """Weights of variance 1 / inputs."""
    sizes = {"down": (4 * width, width), "out": (width, width), "qkv": (width, 3 * width), "up": (width, 4 * width)}
    norm = jnp.stack([jnp.ones(width), jnp.zeros(width)])
    normal = lambda key, shape: jax.random.normal(key, shape) / shape[0] ** 0.5

    def block(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes))
        drawn = {name: normal(k, size) for k, (name, size) in zip(keys, sizes.items(), strict=True)}
        return {**drawn, "norm_a": norm, "norm_b": norm}

    *keys, k_tokens, k_positions = jax.random.split(key, blocks + 2)
    table = lambda key, rows: jax.random.normal(key, (rows, width)) / width**0.5
    return {
        "blocks": [block(key) for key in keys],
        "norm": norm,
        "positions": table(k_positions, length),
        "tokens": table(k_tokens, tokens),
    }


def layer_norm(h: Any, p: Any) -> Any:
    """Over the last axis, with factor and shift."""
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * p[0] + p[1]


def attention(h: Any, qkv: Any) -> Any:
    """Of every token to those not later."""
    batch, length, width = h.shape
    q, k, v = (a.reshape(batch, length, HEADS, -1) for a in jnp.split(h @ qkv, 3, -1))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width / HEADS) ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(batch, length, width)


def loss(y: Any, data: mb.Data) -> Any:
    """The mean cross-entropy of the next token."""
    h = y["tokens"][data.inputs] + y["positions"]
    for block in y["blocks"]:
        h = h + attention(layer_norm(h, block["norm_a"]), block["qkv"]) @ block["out"]
        h = h + jax.nn.gelu(layer_norm(h, block["norm_b"]) @ block["up"]) @ block["down"]
    outputs = layer_norm(h, y["norm"]) @ y["tokens"].T
    return optax.softmax_cross_entropy_with_integer_labels(outputs, data.targets).mean()


def adapted_loss(x: Any, task: mb.Episode) -> Any:
    """The query loss after the steps, written out."""
    y = x
    for _ in range(STEPS):
        y = jax.tree.map(lambda a, g: a - RATE * g, y, jax.grad(loss)(y, task.support))
    return loss(y, task.query)


def build(quick: bool) -> Case:
    """Small sizes are 2 tasks of 2 sequences of 4 tokens, and a width of 8."""
    tasks, batch, length, tokens, width = (2, 2, 4, 8, 8) if quick else (4, 8, 32, 64, 64)
    k_x, k_data = jax.random.split(KEY)
    x = start(k_x, tokens, length, width, blocks=2)
    drawn = jax.random.randint(k_data, (2, tasks, batch, length + 1), 0, tokens)
    support, query = [mb.Data(part[..., :-1], part[..., 1:]) for part in drawn]
    episode = mb.Episode(support, query)
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: loss(y, task.support),
        outer_loss=lambda x, y, task, key: loss(y, task.query),
    )
    solver = mb.GradientDescent(optax.sgd(RATE), STEPS)

    def library(adjoint: mb.Unroll, x: Any, episode: mb.Episode) -> Any:
        direction, _, info = mb.Nested(problem, solver, adjoint)(x, episode, None, KEY)
        return info.loss.mean(), direction, info.finite

    textbook = jax.value_and_grad(lambda x, episode: jax.vmap(partial(adapted_loss, x))(episode).mean())
    first = lambda out: out[:2]
    return Case(
        {
            "textbook": compiled(textbook, x, episode),
            "metabilevel": compiled(partial(library, mb.Unroll(mixed_mode=True)), x, episode, read=first),
            "metabilevel, plain": compiled(partial(library, mb.Unroll()), x, episode, read=first),
        },
        x=x,
        arrays={**episode_arrays(episode), "heads": HEADS, "rate": RATE, "steps": STEPS},
        operations=operations(textbook, x, episode).products,
    )


TRANSFORMER = Race(
    "transformer", "A transformer of two blocks of width 64, 4 tasks of 8 sequences of 32 tokens, 5 steps of descent.",
    build, {"textbook": 1.0, "peers": 1.0}, PEERS,
)  # fmt: skip
