"""Single-loop methods beside transcriptions in plain NumPy: a small problem, and the blocks that its oracles drew."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

import metabilevel as mb

BATCH, BLOCKS = 4, 3  # twelve examples of each loss
DIMENSION = 3  # of y; x has two entries


class Quadratics:
    """For examples i, with symmetric A_i of eigenvalues from about .5 to 1.5:

    G_i = y.A_i y / 2 + x.B_i y + a_i.y,    F_i = |y - c_i|^2 / 2 + x.D_i y + e_i.x + |x|^2
    """

    def __init__(self, noise: float = 0.3, seed: int = 0):
        rng = np.random.default_rng(seed)
        n = BATCH * BLOCKS
        centred = lambda *shape: noise * (lambda a: a - a.mean(0))(rng.normal(size=(n, *shape)))
        q = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
        spread = centred(DIMENSION, DIMENSION) / 4
        self.a = q @ np.diag([0.5, 1.0, 1.5]) @ q.T + (spread + spread.transpose(0, 2, 1)) / 2
        self.b, self.d = (rng.normal(size=(2, DIMENSION)) / s + centred(2, DIMENSION) for s in (2, 4))
        self.linear, self.c = (rng.normal(size=DIMENSION) + centred(DIMENSION) for _ in range(2))
        self.e = rng.normal(size=2) + centred(2)
        self.rows: dict[str, deque[Any]] = {"inner": deque(), "outer": deque()}
        self.order: list[str] = []

    @property
    def task(self) -> mb.Episode:
        """The examples; each has its number, by which a loss reports what it saw."""
        number = jnp.arange(BATCH * BLOCKS)
        inner = [jnp.asarray(a, float) for a in (self.a, self.b, self.linear)]
        outer = [jnp.asarray(a, float) for a in (self.c, self.d, self.e)]
        return mb.Episode(mb.Data(inner, number), mb.Data(outer, number))  # pyright: ignore[reportArgumentType]

    @property
    def problem(self) -> mb.BilevelProblem:
        """Its losses report the examples that they saw, where they are not traced."""

        def inner_loss(x, y, task, key):
            a, b, linear = task.support.inputs
            self._report("inner", task.support.targets)
            return y @ a.mean(0) @ y / 2 + x @ b.mean(0) @ y + linear.mean(0) @ y

        def outer_loss(x, y, task, key):
            c, d, e = task.query.inputs
            self._report("outer", task.query.targets)
            squares = jnp.sum((y - c) ** 2, -1).mean() / 2
            return squares + x @ d.mean(0) @ y + e.mean(0) @ x + x @ x

        return mb.BilevelProblem(lambda x, task, key: jnp.zeros(DIMENSION), inner_loss, outer_loss)

    def _report(self, part: str, numbers: Any) -> None:
        if not isinstance(numbers, Tracer):
            self.rows[part].append(np.asarray(numbers))
            self.order.append(part)

    # The oracles of the transcriptions: `rows` are the numbers of examples.

    def inner_gradients(self, x: Any, y: Any, rows: Any = slice(None)) -> tuple[Any, Any]:
        """dG/dx, dG/dy."""
        a, b, linear = (m[rows].mean(0) for m in (self.a, self.b, self.linear))
        return b @ y, a @ y + b.T @ x + linear

    def inner_loss(self, x: Any, y: Any, rows: Any = slice(None)) -> Any:
        a, b, linear = (m[rows].mean(0) for m in (self.a, self.b, self.linear))
        return y @ a @ y / 2 + x @ b @ y + linear @ y

    def products(self, v: Any, rows: Any = slice(None)) -> tuple[Any, Any]:
        """(d2G/dy dy) v, (d2G/dx dy) v."""
        return self.a[rows].mean(0) @ v, self.b[rows].mean(0) @ v

    def outer_gradients(self, x: Any, y: Any, rows: Any = slice(None)) -> tuple[Any, Any]:
        """dF/dx, dF/dy."""
        c, d, e = (m[rows].mean(0) for m in (self.c, self.d, self.e))
        return d @ y + e + 2 * x, y - c + d.T @ x

    def solution(self, x: Any) -> Any:
        """y*(x)."""
        return -np.linalg.solve(self.a.mean(0), self.b.mean(0).T @ x + self.linear.mean(0))

    def hypergradient(self, x: Any) -> Any:
        """Of F(x, y*(x))."""
        f_x, f_y = self.outer_gradients(x, self.solution(x))
        return f_x - self.b.mean(0) @ np.linalg.solve(self.a.mean(0), f_y)

    @property
    def minimum(self) -> Any:
        """x where the hypergradient, which is affine, is zero."""
        zero = self.hypergradient(np.zeros(2))
        slope = np.stack([self.hypergradient(e) - zero for e in np.eye(2)], 1)
        return -np.linalg.solve(slope, zero)


class Family(mb.TaskDistribution):
    """The one task of a problem."""

    single: ClassVar[bool] = True
    subject: mb.Posed
    task: mb.Episode

    def sample(self, key, split):
        return self.task


def family(quadratics: Quadratics) -> Family:
    """For `fit` and the factories."""
    solver = mb.GradientDescent(optax.sgd(0.5), 200)
    return Family(mb.Posed(quadratics.problem, lambda key: jnp.zeros(2), solver), quadratics.task)


def walk(
    loop: mb.AbstractSingleLoop, quadratics: Quadratics, steps: int, rate: float, batch: int | None = BATCH
) -> list[tuple[Any, Any]]:
    """x and y after each of `steps` steps of x by gradient descent, from zeros.

    Not compiled, so that the losses report: `quadratics.rows` are what the oracles saw, in their order, and
    `quadratics.order` says of which part each was.
    """
    minibatches = None if batch is None else mb.Minibatches(batch)
    oracles = mb.Oracles(quadratics.problem, quadratics.task, minibatches)
    x, key, seen = jnp.zeros(2), jax.random.key(1), []
    with jax.disable_jit():
        memory = loop.begin(oracles, x, jnp.zeros(DIMENSION), key)
        for rows in quadratics.rows.values():
            rows.clear()
        quadratics.order.clear()
        for t in range(steps):
            stride = loop.step(oracles, x, memory, jnp.int32(t), jax.random.fold_in(key, t))
            x, memory = x - rate * stride.direction, stride.memory
            seen.append((np.asarray(x), np.asarray(memory.y)))
    return seen


def assert_transcribed(
    loop: mb.AbstractSingleLoop,
    transcription: Callable[[Quadratics], Iterator[tuple[Any, Any]]],
    steps: int,
    rate: float = 0.1,
    batch: int | None = BATCH,
) -> None:
    """`loop` does what `transcription` does, which takes what its oracles see from `rows`, and yields x and y."""
    quadratics = Quadratics()
    ours = walk(loop, quadratics, steps, rate, batch)
    theirs = list(transcription(quadratics))
    assert not any(quadratics.rows.values()), "the transcription saw other samples"
    np.testing.assert_allclose([x for x, _ in ours], [x for x, _ in theirs], rtol=0, atol=1e-10)
    np.testing.assert_allclose([y for _, y in ours], [y for _, y in theirs], rtol=0, atol=1e-10)


def reached(
    loop: mb.AbstractSingleLoop, quadratics: Quadratics, steps: int, rate: float, batch: int | None = BATCH
) -> Any:
    """x after `steps` compiled steps by gradient descent at `rate`."""
    method = mb.Method(
        quadratics.problem,
        lambda key: jnp.zeros(2),
        mb.SingleLoop(quadratics.problem, loop, None if batch is None else mb.Minibatches(batch)),
        family(quadratics).subject.solver,
    )
    x, _ = mb.fit(method, family(quadratics), optax.sgd(rate), key=jax.random.key(0), steps=steps, meta_batch=1)
    return np.asarray(x)
