"""Negative inner learning rates: Figure 2 of Bernacchia 2021 (arXiv:2102.00940)."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale

FIXED = 0.2  # the rate that stands still while the other one varies


@dataclass(frozen=True)
class Settings:
    """`runs` meta-trainings, each on `tasks` tasks and judged on `test_tasks`, at every one of the rates."""

    runs: int = 1000
    tasks: int = 3
    test_tasks: int = 100
    training_rates: tuple[float, ...] = (-3.0, -1.0, -0.4, -0.2, 0.0, 0.2, 0.4)
    adaptation_rates: tuple[float, ...] = (-0.2, 0.0, 0.1, 0.2, 0.4)


def row(which: str, rate: float) -> str:
    """The name of the row in which `which` rate (training, adaptation) is `rate`, and the other one is fixed."""
    other = {"training": "adaptation", "adaptation": "training"}[which]
    return f"{other} rate {FIXED:g}, {which} rate {rate:g}"


def rise(which: str, low: float, high: float) -> str:
    """The name of the row with how much more the loss is at `high` than at `low`."""
    return f"rise of the loss, {which} rate {low:g} to {high:g}"


FALLING = ((-0.4, -0.2), (-0.2, 0.0), (0.0, 0.2), (0.2, 0.4))  # the lower of two rates in training, and the higher
WORSE = ((0.1, 0.0), (0.0, -0.2), (0.0, 0.4))  # the better of two rates in adaptation, and the worse
CLAIMS = (
    *[
        Claim(f"In training a rate of {low:g} beats one of {high:g}.", "Figure 2b",
              (0.0, rise("training", low, high)))
        for low, high in FALLING
    ],
    *[
        Claim(f"In adaptation a rate of {better:g} beats one of {worse:g}.", "Figure 2a",
              (0.0, rise("adaptation", better, worse)))
        for better, worse in WORSE
    ],
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Every rate meets the same tasks, so that a difference of two rates is had run by run."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from metabilevel.evaluation import interval

    family = mb.load_tasks("mixture")()
    maml = mb.load_method("maml")(family.subject, steps=1)
    at = lambda rate: replace(maml, solver=mb.GradientDescent(optax.sgd(rate), steps=1))
    rates = {"training": s.training_rates, "adaptation": s.adaptation_rates}
    pairs = [(rate, FIXED) for rate in s.training_rates] + [(FIXED, rate) for rate in s.adaptation_rates]

    def run(key: Any) -> Any:
        k_train, k_test, k_score = jax.random.split(key, 3)
        train = mb.sample_batch(family, k_train, "train", s.tasks)
        test = mb.sample_batch(family, k_test, "test", s.test_tasks)
        loss = lambda pair: at(pair[1]).score(meta_solution(at(pair[0]), family, train, k_train), test, k_score)["loss"]
        return jax.vmap(loss)(jnp.array(pairs))

    losses = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(jax.random.split(lab.key(2), s.runs)))
    points = [(which, rate) for which in rates for rate in rates[which]]
    by_run = dict(zip(points, losses.T, strict=True))
    measured = {row(*point): interval(values) for point, values in by_run.items()}
    for which, steps in {"training": FALLING, "adaptation": WORSE}.items():
        measured |= {rise(which, a, b): interval(by_run[which, b] - by_run[which, a]) for a, b in steps}
    panels = []
    for letter, which in {"a": "adaptation", "b": "training"}.items():
        found = [measured[row(which, rate)] for rate in rates[which]]
        curve = Curve("MAML, one step", rates[which], [i.mean for i in found], [i.ci95 for i in found])
        title = f"{letter}) learning rate in {which}"
        panels.append(Panel(title, f"learning rate in {which}", "half the mean squared error", [curve]))
    return Outcome(measured, panels)


def meta_solution(method: mb.Method, family: mb.TaskDistribution, tasks: Any, key: Any) -> Any:
    """The x nearest to the start, zero, among those with the lowest mean query loss over `tasks` after adaptation.

    The model is linear and a step of gradient descent on a squared error is affine, so the residuals are too:
    r(x) = r(0) + J x. What minimises |r(x)|^2 with the least |x| is x = -J^+ r(0).
    """
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    start, shaped = ravel_pytree(family.subject.init(key))

    def residuals(x: Any) -> Any:
        def one(task: Any) -> Any:
            y = method.adapt(shaped(x), task, key)
            return family.subject.predict(y, task.query.inputs) - task.query.targets

        return jax.vmap(one)(tasks).ravel()

    solution, *_ = jnp.linalg.lstsq(jax.jacfwd(residuals)(start), -residuals(start))
    return shaped(solution)


FULL = Settings()
PROTOCOL = (
    "60 inputs, weights N(0, .5^2 / 60), noise of standard deviation 1. {runs} runs: 3 training tasks of 30 + 2 "
    "points, whose least-squares solution of least norm is computed, and 100 test tasks of 20 + 50 points; one inner "
    "step on half the mean squared error. The other rate is .2."
)
NO_NUMBERS = "The paper shows its values as curves, not as numbers: only their shape is compared."
REPRODUCTION = Reproduction(
    name="bernacchia-negative-rates",
    title="Negative inner learning rates",
    citation="Bernacchia 2021, Meta-learning with negative learning rates",
    arxiv="2102.00940",
    reproduces="Figure 2",
    metric="half the mean squared error after adaptation, mean over runs",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(replace(FULL, runs=100), PROTOCOL.format(runs=100), ("100 runs for either panel.", NO_NUMBERS)),
        "small": Scale(replace(FULL, runs=300), PROTOCOL.format(runs=300), ("300 runs for either panel.", NO_NUMBERS)),
        "full": Scale(
            FULL, PROTOCOL.format(runs="1,000"), ("1,000 runs for either panel; the paper has 100 in (a).", NO_NUMBERS)
        ),
    },
    experiment=experiment,
)
