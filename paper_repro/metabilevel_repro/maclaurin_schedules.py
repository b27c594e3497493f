"""Learned training schedules of Maclaurin, Duvenaud & Adams 2015 (arXiv:1502.03492)."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale

FIGURE = {0: 0.53, 3: 0.33, 10: 0.25, 20: 0.21, 30: 0.165, 50: 0.12}  # final training loss, read by eye
EARLY, LATE = slice(0, 10), slice(-10, None)  # steps of a schedule


@dataclass(frozen=True)
class Settings:
    """`starts` fresh trainings judge a schedule; the authors judge it by one."""

    iterations: int = 50
    starts: int = 10
    widths: tuple[int, ...] = (50, 50, 50)
    images: int = 10_000
    steps: int = 100
    batch: int = 200


def setting(iteration: int) -> str:
    """The name of a row."""
    return f"final training loss, iteration {iteration}"


def rate(layer: str, when: str) -> str:
    """The name of the row with a mean of learned rates."""
    return f"learned rate, {layer}, {when}"


CLAIMS = (
    Claim("Learned schedules end training at a much lower loss: half of it and less.", "curve of the outer iterations",
          (setting(50), 0.53 / 2)),
    Claim("The loss still falls after ten outer iterations.", "curve of the outer iterations",
          (setting(50), setting(10), setting(0))),
    Claim("In the last ten steps the learned rates are smaller than before.", "picture of the learned schedules",
          (rate("all layers", "last 10 steps"), rate("all layers", "steps before"))),
    Claim("The top layer is trained first: its rates begin above those of the bottom layer.",
          "picture of the learned schedules",
          (rate("bottom layer", "first 10 steps"), rate("top layer", "first 10 steps"))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Every outer iteration trains a net anew; a schedule is judged on fresh starts by its final training loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    tasks = mb.load_tasks("mnist")(train=s.images, valid=1, test=1, seed=lab.seed)
    learner = replace(tasks.subject, network=mb.MLP(28 * 28, s.widths, 10, "tanh"))
    bright = tasks.train._replace(inputs=0.3081 * tasks.train.inputs + 0.1307)  # pixels in [0, 1] again
    tasks = replace(tasks, subject=learner, train=bright, test=bright)
    method = mb.load_method("learned-schedules")(
        learner, learn="all", learning_rate=float(np.exp(-1)), momentum=0.5, init_scale=float(np.exp(-3)),
        steps=s.steps, batch=s.batch,
    )  # fmt: skip
    # the authors' Adam: its momentum ends after the first step, and the correction for momentum does not
    size = lambda i: 0.04 * jnp.where(i == 0, 1, 1 / (1 - 0.9 ** (i + 1)))
    adam = optax.chain(optax.scale_by_adam(0.0, 0.99, 1e-4), optax.scale_by_learning_rate(size))
    path = lab.path("training", method, tasks, adam, steps=s.iterations, every=1, meta_batch=1)
    at = sorted({0, 1, s.steps // 2, s.steps} | set(range(0, s.steps, max(1, s.steps // 20))))
    found = {
        i: lab.evaluate(f"training loss, iteration {i}", method, path[i], tasks, episodes=s.starts, steps=at,
                        task_chunk=1)
        for i in sorted({*FIGURE, s.iterations} & path.keys())
    }  # fmt: skip
    measured: dict[str, Any] = {setting(i): curve[s.steps]["loss"] for i, curve in found.items()}
    logs = path[s.iterations]["log_rate"]
    layers = [layer["weights"] for layer in [*logs["body"], logs["head"]]]
    rates = np.exp(np.array(jax.device_get(layers), float))  # [layer, step]
    mean = lambda a: float(a.mean())
    measured |= {
        rate("bottom layer", "first 10 steps"): mean(rates[0, EARLY]),
        rate("top layer", "first 10 steps"): mean(rates[-1, EARLY]),
        rate("all layers", "last 10 steps"): mean(rates[:, LATE]),
        rate("all layers", "steps before"): mean(rates[:, : LATE.start]),
    }
    finals = [measured[setting(i)] for i in found]
    paper = [i for i in FIGURE if i <= s.iterations]
    curves = [Curve(f"iteration {i}", list(found[i]), [m["loss"].mean for m in found[i].values()],
                    [m["loss"].ci95 for m in found[i].values()]) for i in (0, s.iterations)]  # fmt: skip
    ours = Curve("training loss", list(found), [i.mean for i in finals], [i.ci95 for i in finals])
    published = Curve("training loss", paper, [FIGURE[i] for i in paper], style="paper")
    smooth = rates[:, : s.steps // 5 * 5].reshape(len(rates), -1, 5).mean(-1)  # the means of five steps
    centres = list(range(3, s.steps // 5 * 5 + 1, 5))
    schedules = [Curve(f"layer {i + 1}", centres, values.tolist()) for i, values in enumerate(smooth)]
    return Outcome(measured, [
        Panel("after 100 steps, by outer iteration", "outer iterations", "training loss", [ours, published]),
        Panel("in the course of training", "steps", "training loss", curves),
        Panel("learned rates of the weights", "steps, by fives", "learning rate", schedules),
    ])  # fmt: skip


FULL = Settings(starts=100)
SMALL = replace(FULL, starts=10)
SMOKE = replace(SMALL, iterations=2, starts=2, widths=(8,), images=200, steps=20, batch=20)
PROTOCOL = (
    "A tanh net 784-50-50-50-10 on 10,000 images of MNIST, 100 steps on minibatches of 200, from weights and biases of "
    "standard deviation e^-3. Learned by reverse mode through all steps, by the training loss at the end: a rate for "
    "each of the 8 arrays and 100 steps, from e^-1; as in the authors' code also a momentum for each, from .5, and a "
    "scale of the start for each array. 50 outer iterations of the authors' Adam, rate .04. "
)
DEPARTURES = ("Steps are computed again on the way back, in place of the paper's exact reversal.",)
REPRODUCTION = Reproduction(
    name="maclaurin-schedules",
    title="Learned training schedules",
    citation="Maclaurin, Duvenaud & Adams 2015, Gradient-based Hyperparameter Optimization through Reversible Learning",
    arxiv="1502.03492",
    reproduces="the learned training schedules and the curves of their learning",
    metric="cross-entropy in nats on the training images after the last step, mean over fresh starts; or a rate",
    interval="not given",
    published=tuple(
        Published(setting(i), loss, None, "curve of the outer iterations", "figure") for i, loss in FIGURE.items()
    ),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 2 iterations, 20 steps, 200 images and one hidden layer of 8: it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            tuple(setting(i) for i in FIGURE if i > SMOKE.iterations),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(SMALL, PROTOCOL + "10 fresh starts judge a schedule.", DEPARTURES),
        "full": Scale(FULL, PROTOCOL + "100 fresh starts judge a schedule.", DEPARTURES),
    },
    experiment=experiment,
)
