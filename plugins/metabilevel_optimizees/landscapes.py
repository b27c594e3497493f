"""Test functions of optimisation, as collected by Surjanovic & Bingham, Virtual Library of Simulation Experiments."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import metabilevel as mb
from metabilevel import errors

Name: TypeAlias = Literal[
    "all", "ackley", "beale", "booth", "branin", "himmelblau", "rastrigin", "rosenbrock", "styblinski-tang"
]
Point: TypeAlias = Float[Array, " n"]


class Landscape(NamedTuple):
    """A function, the usual box of its points, and a minimiser: one number for every coordinate, or both coordinates
    of a function that is defined in two dimensions only."""

    function: Callable[[Point], Float[Array, ""]]
    low: float | tuple[float, float]
    high: float | tuple[float, float]
    minimiser: float | tuple[float, float]


def ackley(x: Point) -> Float[Array, ""]:
    square = jnp.mean(x**2)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # a kink: its slope is 0 here
    return 20 + jnp.e - 20 * jnp.exp(-0.2 * length) - jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))


def beale(x: Point) -> Float[Array, ""]:
    a, b = x
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def booth(x: Point) -> Float[Array, ""]:
    a, b = x
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


def branin(x: Point) -> Float[Array, ""]:
    a, b = x
    valley = b - 5.1 / (4 * jnp.pi**2) * a**2 + 5 / jnp.pi * a - 6
    return valley**2 + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(a) + 10


def himmelblau(x: Point) -> Float[Array, ""]:
    a, b = x
    return (a**2 + b - 11) ** 2 + (a + b**2 - 7) ** 2


def rastrigin(x: Point) -> Float[Array, ""]:
    return jnp.sum(x**2 + 10 - 10 * jnp.cos(2 * jnp.pi * x))


def rosenbrock(x: Point) -> Float[Array, ""]:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def styblinski_tang(x: Point) -> Float[Array, ""]:
    """Divided by the dimension, so that the minimum does not depend on it."""
    return jnp.mean(x**4 - 16 * x**2 + 5 * x) / 2


LANDSCAPES = {
    "ackley": Landscape(ackley, -32.768, 32.768, 0.0),
    "beale": Landscape(beale, -4.5, 4.5, (3.0, 0.5)),
    "booth": Landscape(booth, -10.0, 10.0, (1.0, 3.0)),
    "branin": Landscape(branin, (-5.0, 0.0), (10.0, 15.0), (np.pi, 2.275)),
    "himmelblau": Landscape(himmelblau, -5.0, 5.0, (3.0, 2.0)),
    "rastrigin": Landscape(rastrigin, -5.12, 5.12, 0.0),
    "rosenbrock": Landscape(rosenbrock, -2.048, 2.048, 1.0),
    "styblinski-tang": Landscape(styblinski_tang, -5.0, 5.0, float(np.roots([4, 0, -32, 5]).min())),
}


class Surface(mb.AbstractOptimizee):
    """f(y) = (g(x) - minimum) / scale at x = centre + radius y, for the function g whose number the task is.

    The box of g is -1 <= y_i <= 1, y0 is uniform in it, and scale is the mean of g - minimum over 4,096 points of it:
    so every f has the minimum 0, and is 1 at a start in the mean.
    """

    centres: Float[Array, "k n"]
    radii: Float[Array, "k n"]
    minima: Float[Array, " k"]
    scales: Float[Array, " k"]
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return f"{', '.join(self.names)} in {self.centres.shape[1]}-d; the minimum is 0, the mean start 1"

    @property
    def shapes(self) -> Any:
        return jax.eval_shape(lambda: self.centres[0])

    def init(self, task, key):
        return jax.random.uniform(key, self.shapes.shape, minval=-1.0)

    def loss(self, y, task, key):
        return self._excess(y, task) / self.scales[task]

    def judge(self, y, task, key):
        excess = self._excess(y, task)
        return excess / self.scales[task], {"excess": excess}

    def _excess(self, y: Point, task: Int[Array, ""]) -> Float[Array, ""]:
        """g - minimum, in the units of g."""
        x = self.centres[task] + self.radii[task] * y
        return jax.lax.switch(task, [LANDSCAPES[name].function for name in self.names], x) - self.minima[task]


class Surfaces(mb.TaskDistribution):
    """One of the functions, all equally likely; all splits are one distribution."""

    subject: Surface

    def sample(self, key, split):
        return jax.random.randint(key, (), 0, len(self.subject.names))


def landscapes(*, function: Name = "all", dimension: int = 2) -> Surfaces:
    """Functions on which optimizers are tried, brought to a common scale, from random starts.

    Coordinates are such that the usual box is [-1, 1]^n, in which the start is uniform, and values such that the
    minimum is 0 and the mean start 1; the metric `excess` is the distance to the minimum in the function's own units.

    **Arguments:**

    - `function`: its name; all draws one of those that there are in that dimension for each task.
    - `dimension`: 2, or more for ackley, rastrigin, rosenbrock and styblinski-tang.

    **Raises:** `InputError` for another function, or one that there is not in that dimension.
    """
    errors.count("dimension", dimension, 2)
    possible = [name for name, each in LANDSCAPES.items() if dimension == 2 or np.ndim(each.minimiser) == 0]
    if function not in ("all", *LANDSCAPES):
        raise mb.InputError(f"function = {function!r}: all or one of {', '.join(LANDSCAPES)} is wanted.")
    if function not in ("all", *possible):
        raise mb.InputError(f"dimension = {dimension}: {function} has 2. In more there are {', '.join(possible)}.")
    names = tuple(possible) if function == "all" else (function,)
    points = np.random.default_rng(0).uniform(-1, 1, (4096, dimension))
    rows = []
    for landscape in map(LANDSCAPES.__getitem__, names):
        low, high, minimiser = (np.broadcast_to(value, dimension) for value in landscape[1:])
        centre, radius = (low + high) / 2, (high - low) / 2
        minimum = landscape.function(jnp.asarray(minimiser, float))
        mean = jax.vmap(landscape.function)(jnp.asarray(centre + radius * points, float)).mean()
        rows.append((centre, radius, minimum, mean - minimum))
    stacked = (jnp.stack([jnp.asarray(each, float) for each in column]) for column in zip(*rows, strict=True))
    return Surfaces(Surface(*stacked, names=names))
