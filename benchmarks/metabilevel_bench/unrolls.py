"""Temporary memory and time of the gradient through K = 100 inner steps, for each way to unroll them.

Memory is what the compiler plans, `memory_analysis()`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

import metabilevel as mb
from metabilevel.bench import Case, Race, compiled

STEPS = 100
WAYS = {
    f"checkpoint={checkpoint!r}, mixed_mode={mixed_mode}": mb.Unroll(checkpoint=checkpoint, mixed_mode=mixed_mode)
    for checkpoint in (None, "step", "sqrt")
    for mixed_mode in (False, True)
}
PLAIN = next(iter(WAYS))
NUMBERS = lambda key, n: jax.random.normal(key, (n, 1))
CLASSES = lambda key, n: jax.random.randint(key, (n,), 0, 5)


def build(
    learner: Callable[[bool], mb.Learner],
    shape: tuple[int, ...],
    targets: Callable[..., Any],
    inner: optax.GradientTransformation,
    quick: bool,
) -> Case:
    """The gradient of the loss after K steps with respect to the start; small: K = 4."""
    k_init, k_inputs, k_targets, key = jax.random.split(jax.random.key(0), 4)
    data = mb.Data(jax.random.normal(k_inputs, shape), targets(k_targets, shape[0]))
    chosen = learner(quick)
    loss = lambda x, y, task, key: chosen.fit(y, data)
    problem = mb.BilevelProblem(lambda x, task, key: x, loss, loss)
    solver, x = mb.GradientDescent(inner, steps=4 if quick else STEPS), chosen.init(k_init)

    def outer(adjoint: mb.Unroll, x: Any) -> Any:
        return problem.outer_loss(x, adjoint(problem, solver, x, x, None, key), None, key)

    candidates = {way: compiled(jax.value_and_grad(partial(outer, adjoint)), x) for way, adjoint in WAYS.items()}
    return Case(candidates, PLAIN, PLAIN, gradient_tolerance=2e-3)


def sine(quick: bool) -> mb.Learner:
    """The sinusoids' net."""
    return mb.regression(mb.MLP(1, (40, 40), 1))


def mlp(quick: bool) -> mb.Learner:
    """Wider than its batch is long."""
    return mb.classification(mb.MLP(64, (64, 64), 10))


def conv(quick: bool) -> mb.Learner:
    """The Omniglot net with half of its filters."""
    return mb.classification(mb.ConvNet((28, 28, 1), 5, filters=2 if quick else 32))


def _race(name: str, about: str, *given: Any) -> Race:
    return Race(f"unroll-{name}", f"Gradient through 100 inner steps: {about}.", partial(build, *given), rounds=5)


SINE = _race("sine", "sinusoid net, 100 points, SGD", sine, (100, 1), NUMBERS, optax.sgd(0.01))
MLP = _race("mlp", "MLP 64-64-64-10, 128 examples, SGD", mlp, (128, 64), CLASSES, optax.sgd(0.1))
CONV = _race("conv", "conv net, 32 filters, 5 images, SGD", conv, (5, 28, 28, 1), CLASSES, optax.sgd(0.1))
CONV_ADAM = _race("conv-adam", "conv net, 32 filters, 5 images, Adam", conv, (5, 28, 28, 1), CLASSES, optax.adam(1e-3))
