"""Reptile on sinusoids: Figure 1 of Nichol, Achiam & Schulman 2018 (arXiv:1803.02999), section 4."""

from dataclasses import dataclass, replace

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale

from .adaptation import unseen_task

RATE = 0.02  # of every gradient step on a task


@dataclass(frozen=True)
class Settings:
    """`outer_rate` is Reptile's step towards the adapted weights; the other methods have Adam's `learning_rate`."""

    iterations: int = 30_000
    outer_rate: float = 0.1
    learning_rate: float = 1e-3
    maml_steps: int = 5
    maml_batch: int = 5
    episodes: int = 10_000
    judged: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)  # steps at test


def setting(method: str, steps: int) -> str:
    """The name of a row."""
    return f"10 points, {method}, {steps} steps"


CLAIMS = (
    Claim("After Reptile, 32 gradient steps on 10 points fit a new sinusoid; without training they do not.", "Figure 1",
          (setting("Reptile", 32), setting("before training", 32)), margin=1.0),
    Claim("Reptile learns such an initialisation as MAML does.", "Figure 1",
          (setting("MAML", 32), setting("before training", 32)), margin=1.0),
    Claim("Joint training gives no such initialisation: the mean over the phases is zero everywhere.", "section 4",
          (setting("Reptile", 32), setting("joint training", 32))),
    Claim("It is adaptation that Reptile learns: without it, its net is far off.", "Figure 1",
          (setting("Reptile", 32), setting("Reptile", 0)), margin=1.0),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains on tasks of 50 points; tests on 10, and judges on a grid."""
    import jax.numpy as jnp
    import optax

    sinusoid = mb.load_tasks("sinusoid")
    family = {"max_phase": float(2 * jnp.pi), "network": "tanh-64-64", "grid": True}
    tasks = sinusoid(shots=10, queries=40, **family)
    make = {name: mb.load_method(name) for name in ("reptile", "maml", "union", "scratch")}
    learner, adam = tasks.subject, optax.adam(s.learning_rate)
    reptile = make["reptile"](learner, learning_rate=RATE, steps=5, batch=10)
    maml = make["maml"](learner, learning_rate=RATE, steps=s.maml_steps)
    union = make["union"](learner, learning_rate=RATE)
    fit = lambda name, method, optimizer, batch: lab.fit(
        f"{name}: training", method, tasks, optimizer, steps=s.iterations, meta_batch=batch
    )
    nets = {
        "before training": (make["scratch"](learner, learning_rate=RATE), {}),
        "MAML": (maml, fit("MAML", maml, adam, s.maml_batch)),
        "Reptile": (reptile, fit("Reptile", reptile, optax.sgd(s.outer_rate), 1)),
        "joint training": (union, fit("joint training", union, adam, 1)),
    }
    measured, curves, shown = {}, [], [k for k in (0, 8, 32) if k in s.judged]
    for name, (method, x) in nets.items():
        found = lab.evaluate(name, method, x, tasks, episodes=s.episodes, steps=s.judged)
        losses = [found[k]["loss"] for k in s.judged]
        measured |= {setting(name, k): loss for k, loss in zip(s.judged, losses, strict=True) if k in shown}
        curves.append(Curve(name, s.judged, [i.mean for i in losses], [i.ci95 for i in losses]))
    path = Panel("600 unseen tasks", "gradient steps at test", "mean squared error", curves, log="y")
    example = sinusoid(shots=10, min_amplitude=3.0, **family)
    return Outcome(measured, [path, *unseen_task(nets, example, lab.key(2), shown)])


FULL = Settings()
PROTOCOL = (
    "Amplitude U[.1, 5], phase U[0, 2 pi], x U[-5, 5]; net 1-64-64-1, tanh. At test 32 steps of gradient descent at "
    ".02 on 10 points, judged on 50 equispaced points. Reptile: 30,000 tasks of 50 points, 5 steps at .02 on "
    "minibatches of 10, outer step .1. The paper gives no more than the net, the points and the steps at test; the "
    "rest follows a public reproduction (30,000 iterations, .02, batches of 10, .1)."
)
DEPARTURES = (
    "A task's 50 training points are uniform on [-5, 5]; there they are equispaced.",
    "Minibatches are drawn anew at every step, not in epochs.",
    "How MAML was trained the paper does not say: here 5 inner steps at .02 on 10 + 40 points, Adam 1e-3, 5 tasks.",
    "Joint training has Adam 1e-3.",
    "The paper shows one task and no numbers: the errors are ours alone.",
    "One training run; the intervals are over test tasks only.",
)
REPRODUCTION = Reproduction(
    name="reptile-sine",
    title="Reptile on sinusoids",
    citation="Nichol, Achiam & Schulman 2018, On First-Order Meta-Learning Algorithms",
    arxiv="1803.02999",
    reproduces="Figure 1",
    metric="mean squared error on 50 equispaced points",
    interval="the paper gives no numbers here",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            replace(FULL, iterations=200, episodes=50, judged=(0, 32)),
            "The small protocol, cut to 200 iterations and 50 test tasks: shows that it runs, and no more.",
            ("Far too short to compare numbers.", *DEPARTURES),
            conclusive=False,
        ),
        "small": Scale(replace(FULL, episodes=600), PROTOCOL + " 600 test tasks.", DEPARTURES),
        "full": Scale(FULL, PROTOCOL + " 10,000 test tasks.", DEPARTURES),
    },
    experiment=experiment,
)
