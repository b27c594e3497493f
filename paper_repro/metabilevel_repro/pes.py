"""Gradients of a long unroll out of short windows: influence balancing in Vicol, Metz & Sohl-Dickstein 2021
(arXiv:2112.13835).

    y_{t+1} = A y_t + x s,   A = (I + N) / 2,   s = (1 x 10, -1 x 13),   L = (y_t[0] - 1)^2 / 2

with N the shift that moves every coordinate to the one before it. What x adds to the last 13 coordinates takes at
least 20 steps to arrive at the first. So x raises y_t[0] at first, by 10 x in 10 steps, and in the long run lowers it
by 6 x: a gradient that looks back a few steps has the wrong sign.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale

if TYPE_CHECKING:
    from metabilevel.evaluation import Interval

COORDINATES, POSITIVE = 23, 10
START, HORIZON, LONG = 0.5, 100, 500  # x at first; the steps of a gradient, and of a judgement
TRUNCATED, ES, PES, WHOLE = "truncated backpropagation", "evolution strategies", "persistent ES", "whole gradient"


@dataclass(frozen=True)
class Settings:
    """`runs` trainings of `iterations` where there is noise, `pairs` of it in a step; the mean of `estimates` gradients
    at each of `windows`."""

    iterations: int = 3_000
    runs: int = 10
    pairs: int = 500
    rate: float = 1e-4
    deviation: float = 0.1
    windows: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    estimates: int = 20_000


def loss(name: str, window: int | None = None) -> str:
    """The name of the row with the loss after training."""
    return f"log10 of the loss, {_label(name, window)}"


def gradient(name: str, window: int | None = None) -> str:
    """The name of the row with the mean of estimated gradients at the start."""
    return f"gradient, {_label(name, window)}"


def _label(name: str, window: int | None) -> str:
    return name if window is None else f"{name}, window {window}"


PLACE = "influence balancing experiment"
BEFORE, EXACT, OFF = loss("before training"), gradient("exact"), "distance from the exact one in standard errors"
CLAIMS = (
    *[
        Claim(f"With {name} and windows of {window}, x goes the wrong way: the loss grows.", PLACE,
              (BEFORE, loss(name, window)))
        for name, window in ((TRUNCATED, 1), (TRUNCATED, 10), (ES, 1))
    ],
    Claim("With persistent evolution strategies and windows of 1, the loss falls.", PLACE, (loss(PES, 1), BEFORE)),
    Claim("So it does with truncated backpropagation and windows of 100.", PLACE, (loss(TRUNCATED, 100), BEFORE)),
    Claim("So it does with the whole gradient.", PLACE, (loss(WHOLE), BEFORE)),
    *[
        Claim(f"The gradient by {name} with windows of 10 has the wrong sign.", PLACE,
              (gradient(name, 10), 0.0, EXACT))
        for name in (TRUNCATED, ES)
    ],
    *[
        Claim(f"That of persistent ES is unbiased: the exact one lies within the 95% interval of its mean, windows of "
              f"{window}.", "abstract", (f"{gradient(PES, window)}, {OFF}", 1.96))
        for window in (1, 10)
    ],
)  # fmt: skip


class Balancing(mb.AbstractIterativeSolver):
    """The recurrence, as an inner solver that descends nothing."""

    @property
    def symmetric(self) -> bool:
        return False

    def init(self, x: Any, y: Any) -> Any:
        return None

    def step(self, x: Any, gradient_fn: Any, y: Any, state: Any) -> Any:
        import jax.numpy as jnp

        signs = jnp.where(jnp.arange(COORDINATES) < POSITIVE, 1, -1)
        return (y + jnp.append(y[1:], 0)) / 2 + x * signs, state

    def residual(self, problem: Any, x: Any, y: Any, task: Any, key: Any) -> Any:
        return y - self.step(x, None, y, None)[0]


def balancing() -> tuple[mb.BilevelProblem, mb.TaskDistribution]:
    """The problem, and its only task."""
    import jax.numpy as jnp

    start = lambda *given: jnp.ones(COORDINATES)
    objective = lambda x, y, task, key: (y[0] - 1) ** 2 / 2
    family = mb.from_function(start, lambda *given: objective(None, *given))
    return mb.BilevelProblem(start, lambda *given: jnp.zeros(()), objective), family


def experiment(s: Settings, lab: Lab) -> Outcome:
    """In float64: losses on the way of x, and gradients at its start."""
    import jax

    with jax.enable_x64(True):
        losses, curves = _trainings(s, lab)
        gradients, estimates = _gradients(s, lab)
    panels = [
        Panel("Descent, ES with windows of 1", "iterations", f"loss after {LONG} steps", curves, log="y"),
        Panel(f"Mean of {s.estimates:,} gradients at x = {START}", "steps of a window", "gradient", estimates, log="x"),
    ]
    return Outcome(losses | gradients, panels)


def _trainings(s: Settings, lab: Lab) -> tuple[dict[str, Any], list[Curve]]:
    """In `s.iterations` windows of one run of the recurrence each, with a loss at the end of every window."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from metabilevel.evaluation import interval

    problem, family = balancing()
    noise = {"deviation": s.deviation}
    chosen: list[tuple[str, Any, int | None, dict[str, Any], int, int]] = [
        *[(TRUNCATED, mb.Truncated, window, {"adjoint": mb.Unroll()}, 1, 1) for window in (1, 10, 100)],
        (ES, mb.EvolutionStrategies, 1, noise, s.pairs, s.runs),
        (PES, mb.PersistentES, 1, noise, s.pairs, s.runs),
        (WHOLE, None, None, {}, 1, 1),
    ]
    measured, curves = {}, []
    for name, kind, window, options, batch, runs in chosen:
        if window is None:
            estimator = mb.Nested(problem, Balancing(steps=LONG), mb.ForwardMode())
        else:
            ends = lambda t, window=window: t % window == 0
            horizon = Balancing(steps=s.iterations * window)
            estimator = kind(problem, horizon, window=window, weights=ends, **options)
        method = mb.Method(problem, lambda key: jnp.array(START), estimator, Balancing(steps=LONG))
        judge = jax.jit(jax.vmap(lambda x, method=method: method.test(x, jnp.zeros(()), lab.key(1))["loss"]))
        seeded = [replace(lab, seed=lab.seed + run) for run in range(runs)]
        label = f"{_label(name, window)}: training"
        protocol = {"steps": s.iterations, "every": max(1, s.iterations // 50), "meta_batch": batch}
        paths = [each.path(f"{label} {each.seed}", method, family, optax.sgd(s.rate), **protocol) for each in seeded]
        logs = np.array([np.log10(judge(jnp.stack([*path.values()]))) for path in paths])
        measured[BEFORE] = float(logs[0, 0])
        measured[loss(name, window)] = interval(logs[:, -1]) if runs > 1 else float(logs[0, -1])
        shown = _label(name, window) if kind is mb.Truncated else name
        means = [float(10**y) for y in logs.mean(0)]
        curves.append(Curve(shown, [*paths[0]], means, style="truth" if window is None else "line"))
    return measured, curves


def _gradients(s: Settings, lab: Lab) -> tuple[dict[str, Any], list[Curve]]:
    """Of the loss after `HORIZON` steps alone: what the windows of a run add up to."""
    import jax
    import jax.numpy as jnp

    problem, _ = balancing()
    x, solver = jnp.array(START), Balancing(steps=HORIZON)
    last: dict[str, Any] = {"problem": problem, "solver": solver, "weights": lambda t: t == HORIZON}
    exact = float(mb.hypergradient(problem, x, jnp.zeros(()), key=lab.key(2), solver=solver)[1])
    measured: dict[str, Any] = {EXACT: exact}
    curves = [Curve("exact", s.windows, [exact] * len(s.windows), style="truth")]
    chosen: list[tuple[str, Any, dict[str, Any], int]] = [
        (TRUNCATED, mb.Truncated, {"adjoint": mb.Unroll()}, 2),  # which has no noise
        (ES, mb.EvolutionStrategies, {"deviation": s.deviation}, s.estimates),
        (PES, mb.PersistentES, {"deviation": s.deviation}, s.estimates),
    ]
    for beside, (name, kind, options, estimates) in zip((0.93, 1, 1.07), chosen, strict=True):
        found = [
            _mean(kind(window=w, **last, **options), x, jax.random.split(lab.key(3), estimates)) for w in s.windows
        ]
        for window, mean in zip(s.windows, found, strict=True):
            measured[gradient(name, window)] = mean
            if name == PES:
                measured[f"{gradient(name, window)}, {OFF}"] = abs(mean.mean - exact) / (mean.ci95 / 1.96)
        at = [beside * window for window in s.windows]  # so that equal points can be seen
        curves.append(Curve(name, at, [i.mean for i in found], [i.ci95 for i in found], style="points"))
    return measured, curves


def _mean(estimator: Any, x: Any, keys: Any) -> "Interval":
    """Of the sums of the directions of one run's windows, for each of `keys`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from metabilevel.evaluation import interval

    task = jnp.zeros(1)

    def one(key: Any) -> Any:
        def call(carry: Any, k: Any) -> Any:
            direction, carry, _ = estimator(x, task, carry, k)
            return carry, direction

        windows = jax.random.split(key, HORIZON // estimator.window)
        return jax.lax.scan(call, estimator.init(x, task, key), windows)[1].sum()

    return interval(np.asarray(jax.jit(jax.vmap(one))(keys)))


FULL = Settings()
SMALL = replace(FULL, runs=3, pairs=100, windows=(1, 10, 20, 50, 100), estimates=2_000)
SMOKE = replace(SMALL, iterations=20, runs=2, pairs=5, windows=(10,), estimates=20)
PROTOCOL = (
    "x = .5 and y_0 = 1 at first, and gradient descent with the rate 1e-4 for 3,000 steps, each from one window of "
    "one run of the recurrence that goes on all the time, with a loss at the end of the window. Evolution "
    "strategies: noise of standard deviation .1, {pairs} antithetic pairs in a step, {runs} trainings. Judged by the "
    "loss after 500 steps from y_0. Then the gradient of the loss after 100 steps at x = .5, as the sum of what the "
    "windows of one run give: the mean of {estimates} such sums. All in float64."
)
DEPARTURES = (
    "The whole gradient is that of the loss after 500 steps from y_0, by forward mode; the authors have real-time "
    "recurrent learning, whose derivatives are carried along as x changes. UORO is left out.",
    "In evolution strategies every pair has a run of its own; the runs are alike.",
    "The paper shows the losses as curves: what rises and what falls is compared. Means of gradients are ours.",
)
REPRODUCTION = Reproduction(
    name="pes-influence-balancing",
    title="Gradients of a long unroll out of short windows",
    citation="Vicol, Metz & Sohl-Dickstein 2021, Unbiased Gradient Estimation in Unrolled Computation Graphs with "
    "Persistent Evolution Strategies",
    arxiv="2112.13835",
    reproduces="the influence balancing experiment, as in the authors' influence_balancing.py",
    metric="log10 of the loss after 500 steps, and gradients",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 20 steps of 5 pairs and 20 gradients: it runs.",
            ("Far too short to compare.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL.format(pairs=100, runs=3, estimates="2,000"),
            ("100 pairs; the authors have 500.", *DEPARTURES),
        ),
        "full": Scale(FULL, PROTOCOL.format(pairs=500, runs=10, estimates="20,000"), DEPARTURES),
    },
    experiment=experiment,
)
