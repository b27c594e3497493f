"""Few-shot steps of the Omniglot net: the library beside what a tutorial writes.

- `textbook`: `jax.value_and_grad` of the mean over `jax.vmap` of the tasks, with `lax.conv_general_dilated`, which
  becomes a grouped convolution;
- `textbook, task by task`: the same net under `jax.lax.map`, every task differentiated for itself;
- `metabilevel`: the direction of a method, with the losses and which tasks were finite, as in `fit`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metabilevel as mb
from metabilevel.bench import Case, Race, compiled, operations

from . import PEERS
from .sinusoid import episode_arrays

KEY = jax.random.key(0)
WAYS, C = 5, 0.1  # C is the support vector machine's
STRENGTH, CG_STEPS = 2.0, 5  # of implicit MAML
CE = optax.softmax_cross_entropy_with_integer_labels


@dataclass(frozen=True)
class Workload:
    """A method, and the loss of one task whose gradient it estimates, written out as `loss(body, self, x, task)`."""

    method: str
    loss: Callable[..., Any]
    rate: float = 0.4
    steps: int = 1
    options: tuple[str, ...] = ("learning_rate", "steps")  # of the method, beside its name
    down: str = "stride"
    tasks: int = 32
    implicit: bool = False
    grouped: bool = True  # whether the vmapped textbook takes part: a call of it can take minutes

    def build(self, quick: bool) -> Case:
        """Small sizes are 3 tasks, 16 pixels and 2 blocks of 4 filters."""
        tasks, pixels, filters, blocks = (3, 16, 4, 2) if quick else (self.tasks, 28, 64, 4)
        pooled = self.down == "max-pool"
        readout = "flatten" if pooled else "mean"
        network = mb.ConvNet((pixels, pixels, 1), WAYS, filters, blocks, self.down, readout)
        method = mb.load_method(self.method)(mb.classification(network), **self._given())
        x, batch = method.init(KEY), episodes(KEY, tasks, pixels)

        def library(x: Any, batch: mb.Episode) -> Any:
            direction, _, info = method.estimator(x, batch, None, KEY)
            return info.loss.mean(), direction, info.finite

        bodies = {"textbook": partial(textbook_body, stride=1 if pooled else 2), "metabilevel": network.body}
        one = {name: partial(self.gradient, body) for name, body in bodies.items()}
        work = operations(one["metabilevel"], x, jax.tree.map(lambda a: a[0], batch)).products
        vmapped = {"textbook": compiled(self._mean(bodies["textbook"]), x, batch)} if self.grouped else {}
        return Case(
            {
                **vmapped,
                "textbook, task by task": compiled(one_by_one(one["textbook"]), x, batch),
                "metabilevel": compiled(library, x, batch, read=lambda out: out[:2]),
            },
            truth="textbook, task by task",
            x=x,
            arrays={**episode_arrays(batch), **self._numbers(pooled)},
            gradient_tolerance=2e-2,  # without second derivatives MAML's differs by .9
            operations=tasks * work,
        )

    def gradient(self, body: Callable[..., Any], x: Any, task: mb.Episode) -> tuple[Any, Any]:
        """Value and gradient of one task."""
        if self.implicit:
            return implicit_maml(body, self, x, task)
        return jax.value_and_grad(partial(self.loss, body, self))(x, task)

    def _mean(self, body: Callable[..., Any]) -> Callable[..., Any]:
        mean = lambda fn, x, batch: jax.tree.map(lambda a: a.mean(0), jax.vmap(partial(fn, body, self, x))(batch))
        if self.implicit:
            return partial(mean, implicit_maml)
        return jax.value_and_grad(partial(mean, self.loss))

    def _given(self) -> dict[str, Any]:
        known = {"learning_rate": self.rate, "steps": self.steps, "c": C, "strength": STRENGTH, "cg_steps": CG_STEPS}
        return {name: known[name] for name in self.options}

    def _numbers(self, pooled: bool) -> Mapping[str, Any]:
        return {
            "rate": self.rate, "steps": self.steps, "stride": 1 if pooled else 2, "pool": int(pooled),
            "first_order": int(self.method == "fomaml"), "ways": WAYS, "strength": STRENGTH, "iterations": CG_STEPS,
            "c": C,
        }  # fmt: skip


def episodes(key: Any, tasks: int, pixels: int) -> mb.Episode:
    """5-way 1-shot tasks of noise."""
    labels = jnp.tile(jnp.arange(WAYS), (tasks, 1))
    support, query = jax.random.uniform(key, (2, *labels.shape, pixels, pixels, 1))
    return mb.Episode(mb.Data(support, labels), mb.Data(query, labels))


def one_by_one(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """The mean of the gradients of single tasks."""
    each = lambda x, batch: jax.lax.map(partial(gradient, x), batch)
    return lambda x, batch: jax.tree.map(lambda a: a.mean(0), each(x, batch))


def textbook_body(body: Any, images: Any, stride: int) -> Any:
    """The features of `ConvNet`, with XLA's convolution and pooling."""
    maps, dimensions = images, ("NHWC", "OHWI", "NHWC")
    for layer in body:
        strides = (stride, stride)
        maps = jax.lax.conv_general_dilated(maps, layer["weights"], strides, "SAME", dimension_numbers=dimensions)
        maps = (maps - maps.mean((0, 1, 2))) / jnp.sqrt(maps.var((0, 1, 2)) + 1e-3)
        maps = jax.nn.relu(maps + layer["bias"])
        if stride == 1:
            maps = jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return maps.reshape(len(maps), -1) if stride == 1 else maps.mean((1, 2))


def fit_loss(body: Callable[..., Any], x: Any, data: mb.Data) -> Any:
    """The mean cross-entropy of the whole net."""
    outputs = body(x["body"], data.inputs) @ x["head"]["weights"] + x["head"]["bias"]
    return CE(outputs, data.targets).mean()


def maml_loss(body: Callable[..., Any], workload: Workload, x: Any, task: mb.Episode) -> Any:
    """The query loss after gradient descent on the support loss, from x."""
    y = x
    for _ in range(workload.steps):
        gradient = jax.grad(partial(fit_loss, body))(y, task.support)
        if workload.method == "fomaml":
            gradient = jax.lax.stop_gradient(gradient)
        y = jax.tree.map(lambda p, g: p - workload.rate * g, y, gradient)
    return fit_loss(body, y, task.query)


def anil_loss(body: Callable[..., Any], workload: Workload, x: Any, task: mb.Episode) -> Any:
    """The same where the head alone moves, on features that are computed once."""
    support, query = (body(x["body"], data.inputs) for data in (task.support, task.query))
    outputs = lambda head, features: features @ head["weights"] + head["bias"]
    loss = lambda head: CE(outputs(head, support), task.support.targets).mean()
    head = x["head"]
    for _ in range(workload.steps):
        head = jax.tree.map(lambda p, g: p - workload.rate * g, head, jax.grad(loss)(head))
    return CE(outputs(head, query), task.query.targets).mean()


def ridge_loss(body: Callable[..., Any], workload: Workload, x: Any, task: mb.Episode) -> Any:
    """A ridge regression as the head, in closed form."""
    append = lambda features: jnp.concatenate([features, jnp.ones((len(features), 1))], 1)
    support, query = (append(body(x["body"], data.inputs)) for data in (task.support, task.query))
    n, labels = len(support), jax.nn.one_hot(task.support.targets, WAYS)
    dual = jnp.linalg.solve(support @ support.T + n * jnp.exp(x["log_ridge"]) * jnp.eye(n), labels)
    return CE(x["scale"] * query @ (support.T @ dual) + x["bias"], task.query.targets).mean()


def svm_loss(body: Callable[..., Any], workload: Workload, x: Any, task: mb.Episode) -> Any:
    """A support vector machine as the head; its program is solved by the library here, too."""
    support, query = (body(x["body"], data.inputs) for data in (task.support, task.query))
    labels, kernel = jax.nn.one_hot(task.support.targets, WAYS), support @ support.T
    dual = mb.simplex_qp(kernel, labels - C * kernel @ labels, C)
    return CE(x["scale"] * (query @ support.T) @ (C * labels - dual), task.query.targets).mean()


def implicit_maml(body: Callable[..., Any], workload: Workload, x: Any, task: mb.Episode) -> tuple[Any, Any]:
    """Value and implicit gradient: v of (I + H / strength) v = d(query loss)/dy by conjugate gradients."""
    support = lambda y: jax.grad(partial(fit_loss, body))(y, task.support)

    def move(y: Any, _: None) -> tuple[Any, None]:
        step = lambda p, g, start: p - workload.rate * (g + STRENGTH * (p - start))
        return jax.tree.map(step, y, support(y), x), None

    y = jax.lax.scan(move, x, length=workload.steps)[0]
    value, slope = jax.value_and_grad(partial(fit_loss, body))(y, task.query)

    def product(v: Any) -> Any:
        return jax.tree.map(lambda a, h: a + h / STRENGTH, v, jax.jvp(support, (y,), (v,))[1])

    return value, conjugate_gradients(product, slope, CG_STEPS)


def conjugate_gradients(product: Callable[..., Any], b: Any, iterations: int) -> Any:
    """So many iterations from zero."""
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))
    add = lambda a, s, b: jax.tree.map(lambda u, w: u + s * w, a, b)

    def step(state: Any, _: None) -> Any:
        v, r, p = state
        q = product(p)
        alpha = dot(r, r) / dot(p, q)
        after = add(r, -alpha, q)
        return (add(v, alpha, p), after, add(after, dot(after, after) / dot(r, r), p)), None

    return jax.lax.scan(step, (jax.tree.map(jnp.zeros_like, b), b, b), length=iterations)[0][0]


def _race(name: str, about: str, workload: Workload, goals: Mapping[str, float], rounds: int = 3) -> Race:
    size = f"28 x 28 pixels, 4 blocks of 64 filters, {workload.tasks} tasks, 5-way 1-shot"
    return Race(name, f"{about}: {size}.", workload.build, goals, PEERS, rounds)


def _goals(textbook: float, peers: float, grouped: bool = True) -> dict[str, float]:
    """Where the grouped textbook does not take part its goal is the other one's."""
    beside = {"textbook": textbook, "textbook, task by task": 1.0} if grouped else {"textbook, task by task": textbook}
    return {**beside, "peers": peers}


MAML_1 = _race("conv-maml-1", "Second-order MAML, k = 1", Workload("maml", maml_loss), _goals(45.0, 2.5))
MAML_5 = _race(
    "conv-maml-5",
    "Second-order MAML, k = 5",
    Workload("maml", maml_loss, steps=5, grouped=False),
    _goals(10.0, 2.2, False),
    2,
)
MAML_POOL_1 = _race(
    "conv-maml-pool-1",
    "Second-order MAML with max-pooling, k = 1",
    Workload("maml", maml_loss, down="max-pool", grouped=False),
    _goals(10.0, 2.2, False),
    2,
)
FOMAML_1 = _race("conv-fomaml-1", "First-order MAML, k = 1", Workload("fomaml", maml_loss), _goals(5.0, 2.0))
ANIL_5 = _race("anil-5", "ANIL, k = 5", Workload("anil", anil_loss, 0.1, 5), _goals(3.0, 1.6))
RIDGE = _race(
    "ridge-head", "A ridge regression as the head (R2-D2)", Workload("r2d2", ridge_loss, options=()), _goals(3.0, 1.6)
)
SVM = _race(
    "svm-conv",
    "A support vector machine as the head (MetaOptNet)",
    Workload("metaoptnet", svm_loss, options=("c",)),
    _goals(3.0, 1.6),
)
IMAML = _race(
    "imaml",
    "Implicit MAML, 16 inner steps and 5 conjugate gradients",
    Workload(
        "imaml",
        maml_loss,
        0.01,
        16,
        ("learning_rate", "steps", "strength", "cg_steps"),
        tasks=8,
        implicit=True,
        grouped=False,
    ),
    _goals(1.0, 1.0, False),
    2,
)
