"""Ten learned images: Maclaurin et al. 2015 (arXiv:1502.03492) and Lorraine et al. 2020 (arXiv:1911.02590)."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Image, Lab, Outcome, Panel, Published, Reproduction, Scale

LEARNED, REAL = "ten learned images", "ten random real images"


@dataclass(frozen=True)
class Settings:
    """`runs` cuts of MNIST; in each, images are learned from `images` real ones by `options` of `distillation`.

    `brightness` is the standard deviation of the pixels, in place of the 1 of the family.
    """

    options: dict[str, Any]
    optimizer: Literal["sgd", "adam"]
    rate: float
    iterations: int
    every: int
    runs: int = 10
    images: int = 10_000
    test: int = 10_000
    brightness: float = 1.0


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Each run learns ten images, and draws ten real ones of the same data; both are judged on the test part."""
    import numpy as np
    import optax

    from metabilevel.evaluation import interval

    families = [_family(s, lab.seed + run) for run in range(s.runs)]
    method = mb.load_method("distillation")(families[0].subject, **s.options)
    found, pictures, path = {}, {}, {}
    for run, tasks in enumerate(families):

        def judge(key: Any, x: Any, on: Any) -> None:
            scores = lab.evaluate(f"run {run}: {key}", method, x, on, episodes=1)[None]  # noqa: B023
            found.setdefault(key, []).append({name: value.mean for name, value in scores.items()})

        path = lab.path(f"run {run}: training", method, tasks, getattr(optax, s.optimizer)(s.rate),
                        steps=s.iterations, every=s.every, meta_batch=1)  # fmt: skip
        for iteration, x in path.items():
            judge(f"test, iteration {iteration}", x, tasks)
        for iteration in (0, s.iterations):
            judge(f"images distilled, iteration {iteration}", path[iteration], replace(tasks, test=tasks.train))
        drawn = _one_of_each(tasks.train, np.random.default_rng(lab.seed + run))
        judge(REAL, {"inputs": drawn}, tasks)
        pictures = pictures or {LEARNED: path[s.iterations]["inputs"], REAL: drawn}
    over_runs = lambda key, metric, unit=1: interval(unit * np.array([row[metric] for row in found[key]]))
    curve = {i: over_runs(f"test, iteration {i}", "accuracy", 100) for i in path}
    level = over_runs(REAL, "accuracy", 100)
    measured = {f"test accuracy, {LEARNED}": curve[s.iterations], f"test accuracy, {REAL}": level}
    for part, iteration in [(part, i) for part in ("images distilled", "test") for i in (0, s.iterations)]:
        key = f"{part}, iteration {iteration}"
        measured[f"loss on the {key}"] = over_runs(key, "loss")
    curves = [
        Curve(LEARNED, list(curve), [i.mean for i in curve.values()], [i.ci95 for i in curve.values()]),
        Curve(REAL, [0, s.iterations], [level.mean] * 2, [level.ci95] * 2),
    ]
    panels = [Panel("a linear net trained on", "iterations", "test accuracy (%)", curves, within=(0.0, 100.0))]
    for name, images in pictures.items():
        pixels = np.asarray(images, float).reshape(-1, 28, 28).tolist()
        panels.append(Panel(f"{name}, first run", "", "", (), images=[Image(str(i), p) for i, p in enumerate(pixels)]))
    return Outcome(measured, panels)


def _family(s: Settings, seed: int) -> Any:
    """MNIST in the brightness wanted."""
    tasks = mb.load_tasks("mnist")(train=s.images, valid=1, test=s.test, seed=seed)
    scaled = lambda data: data._replace(inputs=s.brightness * data.inputs)
    return replace(tasks, train=scaled(tasks.train), test=scaled(tasks.test))


def _one_of_each(data: mb.Data, rng: Any) -> Any:
    """A random image of every class [10, 784]."""
    import numpy as np

    rows = [rng.choice(np.flatnonzero(np.asarray(data.targets) == label)) for label in range(10)]
    return data.inputs[np.array(rows)].reshape(10, -1)


def _scales(
    full: Settings, protocol: str, departures: tuple[str, ...], small: dict[str, Any], unmeasured: tuple[str, ...] = ()
) -> dict[str, Scale]:
    smoke = replace(full, iterations=4, every=2, runs=2, images=200, test=200)
    cut = replace(full, **small)
    runs = "The intervals are over {} cuts of the data, where the paper has one."
    return {
        "smoke": Scale(
            smoke,
            "The full protocol, cut to 4 iterations, 2 runs and 200 images: it runs.",
            ("Far too short to compare numbers.", *departures),
            unmeasured,
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            cut,
            f"{protocol} {cut.iterations:,} iterations, {cut.runs} runs.",
            (runs.format(cut.runs), *([] if cut.iterations == full.iterations else
             [f"{cut.iterations:,} of {full.iterations:,} iterations."]), *departures),
        ),
        "full": Scale(full, f"{protocol} {full.iterations:,} iterations, {full.runs} runs.",
                      (runs.format(full.runs), *departures)),
    }  # fmt: skip


CLAIM = "A linear net learns much more from ten learned images than from ten real ones, 15 points and more."
METRIC = "cross-entropy in nats, or accuracy in %, as the row says; mean over runs"
MACLAURIN_NUMBERS = (
    Published("loss on the images distilled, iteration 0", 2.32, None, "authors' figure", "figure"),
    Published("loss on the images distilled, iteration 40", 0.43, None, "authors' figure", "figure"),
    Published("loss on the test, iteration 0", 2.3, None, "authors' figure", "figure"),
    Published("loss on the test, iteration 40", 0.50, None, "authors' figure", "figure"),
)
MACLAURIN = Reproduction(
    name="maclaurin-distillation",
    title="Ten learned images, by reverse mode",
    citation="Maclaurin, Duvenaud & Adams 2015, Gradient-based Hyperparameter Optimization through Reversible Learning",
    arxiv="1502.03492",
    reproduces="the learned training images",
    metric=METRIC,
    interval="not given",
    published=MACLAURIN_NUMBERS,
    claims=(
        Claim(
            CLAIM, "the learned training images", (f"test accuracy, {REAL}", f"test accuracy, {LEARNED}"), margin=15.0
        ),
    ),
    scales=_scales(
        # a momentum that averages, v <- .9 v - .1 g, with a rate of 1 is one that sums with a rate of .1
        Settings(
            {"optimizer": "momentum", "learning_rate": 0.1, "steps": 20, "decay": 0.02, "noise": 0.01},
            "sgd",
            rate=1.0,
            iterations=40,
            every=2,
            brightness=0.3081,
        ),
        "Softmax regression, 20 full-batch steps with rate 1 and averaging momentum .9 on ten images, one of a class, "
        "that start as noise of .01; outer gradient descent with rate 1 on the loss of 10,000 real images.",
        (
            "The decay of the weights stays at its start; the authors learn it too.",
            "Weights start at zero, not at normal numbers of standard deviation e^-4.",
            "One mean is taken off all pixels, not each pixel's own.",
            "10,000 test images, not the first 1,000.",
        ),
        {},
        tuple(number.setting for number in MACLAURIN_NUMBERS if number.setting.endswith("iteration 40")),
    ),
    experiment=experiment,
)
LORRAINE = Reproduction(
    name="lorraine-distillation",
    title="Ten learned images, by the implicit function theorem",
    citation="Lorraine, Vicol & Duvenaud 2020, Optimizing Millions of Hyperparameters by Implicit Differentiation",
    arxiv="1911.02590",
    reproduces="the distilled MNIST of the section on data sets as hyperparameters",
    metric=METRIC,
    interval="not given",
    published=(),
    claims=(Claim(CLAIM, "the picture of distilled MNIST",
                  (f"test accuracy, {REAL}", f"test accuracy, {LEARNED}"), margin=15.0),),
    scales=_scales(
        Settings(
            {"adjoint": "implicit", "inverse": "neumann", "terms": 20, "decay": 0.01, "learning_rate": 0.1, "steps": 5,
             "test_steps": 500, "batch": 100, "warm_start": True, "noise": 0.0},
            "adam", rate=0.01, iterations=10_000, every=500,
        ),
        "Softmax regression on ten images, one of a class, that start at zero: 5 full-batch steps between two outer "
        "ones, from where the net stood; 20 terms of the Neumann series; outer Adam, rate .01, on the loss of 100 of "
        "10,000 real images. Test: 500 steps from a fresh start.",
        (
            "The paper shows images and no numbers.",
            "The inner loss has a decay of .01, for without one it has no minimum and the theorem does not apply.",
        ),
        {"iterations": 1_000, "every": 50},
    ),
    experiment=experiment,
)  # fmt: skip
