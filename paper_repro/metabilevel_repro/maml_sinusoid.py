"""MAML on sinusoids: Table 2 and Figure 6 of Finn, Abbeel & Levine 2017 (arXiv:1703.03400), section 5.1."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale

from .adaptation import unseen_task

ALPHA = 0.01
METHODS = {"MAML": "maml", "first-order MAML": "fomaml", "pretrained": "union"}
STEPS = {5: (1, 5, 10), 10: (0, 1, 2, 9), 20: (1, 2, 9)}  # the inner steps that have a row, by shots
JUDGED = (0, 1, 2, 5, 9, 10)  # those that have a point in the figure


@dataclass(frozen=True)
class Settings:
    """All methods train alike. `rates`: of the pretrained net's fine-tuning, tried on `episodes` validation tasks."""

    iterations: int = 70_000
    meta_batch: int = 25
    learning_rate: float = 1e-3  # Adam's
    cosine_decay: bool = False
    init: Literal["fan-in", "truncated-normal"] = "truncated-normal"
    episodes: int = 600
    methods: tuple[str, ...] = tuple(METHODS)
    shots: tuple[int, ...] = (5, 10, 20)
    rates: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05)


def setting(shots: int, method: str, steps: int) -> str:
    """The name of a row."""
    return f"{shots}-shot, {method}, {steps} step" + ("s" if steps != 1 else "")


def _published(method: str, shots: int, values: dict[int, float]) -> list[Published]:
    place: tuple[str, Any] = ("Table 2", "paper") if shots == 5 else ("Figure 6", "figure")
    return [Published(setting(shots, method, steps), value, None, *place) for steps, value in values.items()]


PUBLISHED = (
    *_published("MAML", 5, {1: 0.67, 5: 0.38, 10: 0.35}),
    *_published("pretrained", 5, {1: 2.41, 5: 2.23, 10: 2.19}),
    *_published("MAML", 10, {0: 3.0, 1: 0.41, 2: 0.24, 9: 0.13}),
    *_published("pretrained", 10, {1: 2.3, 9: 1.7}),
    *_published("MAML", 20, {1: 0.26, 2: 0.13, 9: 0.06}),
    *_published("pretrained", 20, {1: 2.1, 9: 1.4}),
    *[
        Published(f"{shots}-shot, pretrained, fine-tuning rate", rate, None, "Figure 6, legend")
        for shots, rate in {5: 0.01, 10: 0.02, 20: 0.02}.items()
    ],
)

CLAIMS = (
    Claim("MAML after one step is far better than pretraining after ten.", "Table 2",
          (setting(5, "MAML", 1), setting(5, "pretrained", 10)), margin=1.0),
    Claim("Even with four times the points, pretraining stays behind MAML after one step.", "Figure 6",
          (setting(5, "MAML", 1), setting(20, "pretrained", 9))),
    Claim("MAML, trained for one step, goes on improving with more of them.", "section 5.1",
          (setting(5, "MAML", 10), setting(5, "MAML", 1))),
    Claim("It does so with ten points as well, and does not overfit.", "Figure 6",
          (setting(10, "MAML", 9), setting(10, "MAML", 2), setting(10, "MAML", 1), setting(10, "MAML", 0))),
    Claim("More points, lower error.", "Figure 6",
          (setting(20, "MAML", 1), setting(10, "MAML", 1), setting(5, "MAML", 1))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains on 10 shots; tests on 5, 10 and 20."""
    import optax

    sinusoid = mb.load_tasks("sinusoid")
    training = sinusoid(shots=10, queries=10, init=s.init)
    rate = optax.cosine_decay_schedule(s.learning_rate, s.iterations) if s.cosine_decay else s.learning_rate
    make = {name: mb.load_method(METHODS[name]) for name in s.methods}
    trained = {
        name: lab.fit(f"{name}: training", method(training.subject, learning_rate=ALPHA), training, optax.adam(rate),
                      steps=s.iterations, meta_batch=s.meta_batch)
        for name, method in make.items()
    }  # fmt: skip
    measured, panels = {}, []
    for shots in s.shots:
        tasks = sinusoid(shots=shots, queries=shots, init=s.init)
        oracle = mb.load_method("oracle")(tasks.subject)
        tuned = _tuned_rate(trained["pretrained"], tasks, s, lab)
        adapted, fine_tuned = (make["MAML"](tasks.subject, learning_rate=rate) for rate in (ALPHA, tuned))
        curves = []
        for name, x in trained.items():
            method = fine_tuned if name == "pretrained" else adapted
            found = lab.evaluate(f"{name}: {shots} shots", method, x, tasks, episodes=s.episodes, steps=JUDGED)
            losses = {steps: metrics["loss"] for steps, metrics in found.items()}
            measured |= {setting(shots, name, steps): losses[steps] for steps in STEPS[shots]}
            curves.append(Curve(name, JUDGED, [i.mean for i in losses.values()], [i.ci95 for i in losses.values()]))
        measured[f"{shots}-shot, pretrained, fine-tuning rate"] = tuned
        found = lab.evaluate(f"oracle: {shots} shots", oracle, {}, tasks, episodes=s.episodes)
        measured[f"{shots}-shot, oracle, any step"] = found[None]["loss"]
        published = [_published_curve(name, shots) for name in ("MAML", "pretrained")]
        title = f"K = {shots} points"
        panels.append(Panel(title, "gradient steps at test", "mean squared error", [*curves, *published], log="y"))
    example = sinusoid(shots=5, min_amplitude=3.0, grid=True, init=s.init)
    method = make["MAML"](example.subject, learning_rate=ALPHA)
    nets = {name: (method, x) for name, x in trained.items()}
    return Outcome(measured, [*panels, *unseen_task(nets, example, lab.key(3), (0, 1, 10))])


def _tuned_rate(x: Any, tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> float:
    """The rate with the lowest error after ten steps of fine-tuning on validation tasks."""
    import jax
    import jax.numpy as jnp
    import optax

    key, union = lab.key(2), mb.load_method("union")(tasks.subject)
    batch = mb.sample_batch(tasks, key, "valid", s.episodes)
    tuned = lambda rate: replace(union, solver=mb.GradientDescent(optax.sgd(rate), 10))
    error = lambda rate: tuned(rate).score(x, batch, key)["loss"]
    return s.rates[int(jnp.nanargmin(jax.jit(jax.vmap(error))(jnp.array(s.rates))))]


def _published_curve(method: str, shots: int) -> Curve:
    points = {k: p.value for k in range(11) for p in PUBLISHED if p.setting == setting(shots, method, k)}
    return Curve(method, list(points), list(points.values()), style="paper")


FULL = Settings()
SMALL = replace(FULL, iterations=20_000, learning_rate=3e-3, cosine_decay=True, init="fan-in")
ONE_SEED = "One training run; the intervals are over test tasks only."
REPRODUCTION = Reproduction(
    name="maml-sinusoid",
    title="MAML on sinusoids",
    citation="Finn, Abbeel & Levine 2017, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
    arxiv="1703.03400",
    reproduces="Table 2 and Figure 6",
    metric="mean squared error on as many query points as shots",
    interval="not given",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            replace(SMALL, iterations=300, episodes=50, methods=("MAML", "pretrained"), shots=(5,)),
            "The small protocol, cut to 300 iterations and 50 test tasks of 5 shots: shows that it runs, and no more.",
            ("Far too short to compare numbers.",),
            tuple(p.setting for p in PUBLISHED if not p.setting.startswith("5-shot")),
            conclusive=False,
        ),
        "small": Scale(
            SMALL,
            "Amplitude U[.1, 5], phase U[0, pi], x U[-5, 5]; net 1-40-40-1, ReLU. Trained with 10 + 10 points, one "
            "inner step of .01 on the mean loss, 25 tasks, Adam, 20,000 iterations; 600 test tasks. The "
            "pretrained net is fine-tuned at the rate that is best on 600 validation tasks.",
            (
                "20,000 iterations in place of 70,000; Adam's rate falls from 3e-3 to 0 as a cosine, in place of 1e-3 "
                "throughout.",
                "Weights start with standard deviation 1/sqrt(inputs); in the authors' code with .01, which needs some "
                "five times the iterations.",
                ONE_SEED,
            ),
        ),
        "full": Scale(
            FULL,
            "As in the paper and, where that is silent, in the authors' code: 70,000 iterations, weights from a "
            "truncated normal of .01. The pretrained net is fine-tuned at the rate that is best on 600 validation "
            "tasks.",
            ("The inner rate is the paper's .01; the default in the authors' code is .001.", ONE_SEED),
        ),
    },
    experiment=experiment,
)
