"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al. 2016, arXiv:1606.04474)."""

from dataclasses import replace
from typing import Any

from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale

from .optimizer_race import LSTM, NAMES, Settings, ahead, experiment, setting

CITATION = "Andrychowicz et al. 2016, Learning to learn by gradient descent by gradient descent"
MEASURE = (
    "loss, mean over test functions with its 95% interval; differences are paired, function by function; rates; seconds"
)


def _published(problem: str, place: str, **losses: float) -> tuple[Published, ...]:
    return tuple(Published(setting(problem, name, 100), loss, None, place, "figure") for name, loss in losses.items())


def _ahead(sentence: str, problem: str, steps: tuple[int, ...], place: str) -> tuple[Claim, ...]:
    return tuple(
        Claim(f"{sentence}, step {step}: the paired difference is above 0.", place, (0.0, ahead(problem, step)))
        for step in steps
    )


QUADRATICS = "quadratics"
QUADRATICS_FULL = Settings(
    family="quadratics",
    problems={QUADRATICS: {}},
    lstm={"preprocess": None},
    rates={
        "sgd": (0.01, 0.016, 0.025, 0.04),
        "momentum": (0.01, 0.016, 0.025, 0.04, 0.063),
        "nag": (0.004, 0.0063, 0.01, 0.016),
        "rmsprop": (0.01, 0.016, 0.025, 0.04),
        "adam": (0.16, 0.25, 0.4, 0.63),
    },
    learning_rate=3e-3,
    updates=50_000,
    meta_batch=128,
    validation=1_000,
    functions=2_000,
    tuning=1_000,
    at_once=200,
)
QUADRATICS_SMALL = replace(QUADRATICS_FULL, updates=10_000, meta_batch=16)
QUADRATICS_SMOKE = replace(
    QUADRATICS_FULL,
    rates={"sgd": (1e-5, 0.01, 1e3), "adam": (1e-4, 0.3, 1e3)},
    updates=20,
    meta_batch=2,
    validation=4,
    functions=10,
    tuning=10,
    at_once=10,
    checks=2,
)
QUADRATICS_PROTOCOL = (
    "f(y) = |W y - t|^2 in 10 dimensions, W and t standard normal, y0 = 0. A 2-layer LSTM with 20 units on raw "
    "gradients (5,061 weights), windows of 20 of 100 steps, no derivatives of the gradients. "
)
RATES = "hand-made optimizers: the rate of the least validation loss at step 100 on a grid (rows)."
ANDRYCHOWICZ_QUADRATICS = Reproduction(
    name="andrychowicz-quadratics",
    title="A learned optimizer on quadratics",
    citation=CITATION,
    arxiv="1606.04474",
    reproduces="Figure 4, left",
    metric=MEASURE,
    interval="not given",
    published=_published(QUADRATICS, "Figure 4, left", LSTM=0.037, Adam=0.050, RMSprop=0.058, NAG=0.078, SGD=0.21),
    claims=(
        *_ahead("The LSTM is below the best tuned optimizer", QUADRATICS, (20, 50, 100), "Figure 4, left"),
        *_ahead("And beyond the steps that it was trained for", QUADRATICS, (200,), "section 3.1"),
        *[
            Claim(f"The LSTM is below {name} at step 100, each with its interval over functions.", "Figure 4, left",
                  (setting(QUADRATICS, LSTM, 100), setting(QUADRATICS, name, 100)))
            for name in ("Adam", "NAG", "momentum")
        ],
    ),
    scales={
        "smoke": Scale(
            QUADRATICS_SMOKE,
            "20 updates of 2 runs, SGD and Adam, 10 test functions: shows that it runs.",
            ("Far too short to compare numbers.",),
            tuple(setting(QUADRATICS, name, 100) for name in ("RMSprop", "NAG")),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            QUADRATICS_SMALL,
            QUADRATICS_PROTOCOL + "10,000 updates by 16 runs each, Adam from 3e-3 to 0 as a cosine, the best of 20 "
            "checks on 1,000 functions. 2,000 test functions, the same for all; " + RATES,
            (
                "2,000 epochs of 16 functions, where the authors' code has up to 10,000 of 128.",
                "The paper's scale of the loss does not follow from its text: only the order can be compared.",
                "Momentum is not in the paper's comparison.",
            ),
        ),
        "full": Scale(
            QUADRATICS_FULL,
            QUADRATICS_PROTOCOL + "10,000 epochs of 128 functions, Adam from 3e-3 to 0 as a cosine, the best of 20 "
            "checks on 1,000 functions. 2,000 test functions, the same for all; " + RATES,
            ("The paper's scale of the loss does not follow from its text: only the order can be compared.",),
        ),
    },
    experiment=experiment,
)  # fmt: skip

MNIST, UNITS, LAYERS, RELU = "MNIST", "MNIST 40 units", "MNIST 2 layers", "MNIST ReLU"
NARROW, WIDE, REDUCED = "MNIST 5 units", "MNIST 50 units", "MNIST 14 x 14 pixels"
WIDTHS = {5: NARROW, 20: MNIST, 40: UNITS, 50: WIDE}
MNIST_FULL = Settings(
    family="mnist-training",
    problems={
        MNIST: {},
        REDUCED: {"side": 14},
        UNITS: {"hidden": 40},
        LAYERS: {"layers": 2},
        RELU: {"activation": "relu"},
        NARROW: {"hidden": 5},
        WIDE: {"hidden": 50},
    },
    lstm={"objective": "log", "clip": 1.0, "scale": 0.03, "window": 50},
    rates={
        "sgd": (0.1, 0.3, 1.0, 3.0, 10.0),
        "momentum": (0.03, 0.1, 0.3, 1.0, 3.0),
        "nag": (0.03, 0.1, 0.3, 1.0, 3.0),
        "rmsprop": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        "adam": (0.003, 0.01, 0.03, 0.1, 0.3),
    },
    learning_rate=3e-3,
    updates=20_000,
    meta_batch=1,
    validation=20,
    functions=100,
    tuning=10,
    at_once=1,
    checks=100,
)
MNIST_SMALL = replace(
    MNIST_FULL,
    problems={name: MNIST_FULL.problems[name] for name in (MNIST, REDUCED, UNITS, LAYERS, RELU)},
    updates=1_800,
    validation=6,
    functions=10,
    tuning=3,
    checks=20,
)
MNIST_SMOKE = replace(
    MNIST_SMALL,
    problems={MNIST: {"side": 14, "hidden": 5}},
    lstm={"window": 2},
    rates={"sgd": (1e-4, 0.1, 1e3)},
    updates=4,
    meta_batch=1,
    validation=1,
    functions=2,
    tuning=1,
    horizon=4,
    length=8,
    read=(2, 4, 8),
    checks=1,
)


def mnist(s: Settings, lab: Lab) -> Outcome:
    """The comparison, and the final loss against the width."""
    outcome = experiment(s, lab)
    measured, curves = dict[str, Any](outcome.measured), []
    for name in (*[NAMES[optimizer] for optimizer in s.rates], LSTM):
        at = {units: measured[setting(p, name, s.horizon)] for units, p in WIDTHS.items() if p in s.problems}
        finals = list(at.values())
        curves.append(Curve(name, list(at), [i.mean for i in finals], [i.ci95 for i in finals]))
    title = f"after {s.horizon} steps, by width"
    return Outcome(measured, [*outcome.panels, Panel(title, "hidden units", "loss", curves, log="y")])


MNIST_PUBLISHED = (
    *_published(MNIST, "Figure 4, centre", LSTM=0.25, NAG=0.32, Adam=0.35, RMSprop=0.36, SGD=0.46),
    *_published(UNITS, "Figure 5, left", LSTM=0.19, NAG=0.30, Adam=0.32, RMSprop=0.31, SGD=0.44),
    *_published(LAYERS, "Figure 5, centre", LSTM=0.32, Adam=0.69, RMSprop=0.72, NAG=0.73, SGD=1.8),
    *_published(RELU, "Figure 5, right", LSTM=2.6, NAG=0.36, Adam=0.36, RMSprop=0.40, SGD=0.44),
    *_published(NARROW, "Figure 6", LSTM=0.59, Adam=0.83, NAG=0.57),
    *_published(WIDE, "Figure 6", LSTM=0.195, Adam=0.29, NAG=0.225),
)
MNIST_CLAIMS = (
    *_ahead("The LSTM is below the best tuned optimizer", MNIST, (20, 50, 100), "Figure 4, centre"),
    *_ahead("And beyond the steps that it was trained for", MNIST, (200,), "Figure 4, right"),
    *_ahead("It transfers to images of 14 x 14 pixels", REDUCED, (100,), "not in the paper"),
    *_ahead("It transfers to 40 hidden units", UNITS, (100,), "Figure 5, left"),
    *_ahead("It transfers to 2 hidden layers", LAYERS, (100,), "Figure 5, centre"),
    Claim("It fails with ReLU: its loss is above the best tuned optimizer's, step 100.", "Figure 5, right",
          (ahead(RELU, 100), 0.0)),
)  # fmt: skip
MNIST_PROTOCOL = (
    "MNIST, pixels in [0, 1], an MLP 784-20-10 with sigmoids (15,910 weights, at the start normal of standard "
    "deviation .01), batches of 128. A 2-layer LSTM with 20 units (preprocessing p = 10, output scale .03: 5,141 "
    "weights), by the logarithms of the losses in windows of 50 of 100 steps, gradients clipped at a norm of 1. "
    "Loss: on 1,000 images of the split that is trained on; the LSTM learns on "
    "50,000 images, is chosen on 10,000, and is tested with the 10,000 test images. "
)
ANDRYCHOWICZ_MNIST = Reproduction(
    name="andrychowicz-mnist",
    title="A learned optimizer on MNIST",
    citation=CITATION,
    arxiv="1606.04474",
    reproduces="Figures 4 (centre and right), 5 and 6 (one hidden layer)",
    metric=MEASURE,
    interval="not given",
    published=MNIST_PUBLISHED,
    claims=MNIST_CLAIMS,
    scales={
        "smoke": Scale(
            MNIST_SMOKE,
            "14 x 14 pixels, 5 units, 4 steps, 4 updates by 1 run, SGD alone, 2 test runs: shows that it runs.",
            ("Far too short to compare numbers.",),
            tuple(number.setting for number in MNIST_PUBLISHED),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            MNIST_SMALL,
            MNIST_PROTOCOL
            + "1,800 updates by 1 run each, Adam from 3e-3 to 0 as a cosine, the best of 20 checks by 6 runs. 10 test "
            "runs, with the same starts and minibatches for all; " + RATES,
            (
                "900 training runs.",
                "The logarithms of the losses, and clipped gradients, where the paper sums the losses in windows of "
                "20.",
                "10 test runs; 5 and 50 units are left out.",
                "Momentum is not in the paper's comparison.",
            ),
            tuple(setting(problem, name, 100) for problem in (NARROW, WIDE) for name in ("LSTM", "Adam", "NAG")),
        ),
        "full": Scale(
            MNIST_FULL,
            MNIST_PROTOCOL + "10,000 runs in training, Adam from 3e-3 to 0 as a cosine, the best of 100 checks by 20 "
            "runs. 100 test runs, with the same starts and minibatches for all; " + RATES,
            (
                "The paper chooses Adam's rate by random search, and sums the losses, not their logarithms.",
                "Momentum is not in the paper's comparison.",
            ),
        ),
    },
    experiment=mnist,
)

CIFAR = "CIFAR-10"
CIFAR_FULL = replace(
    MNIST_FULL,
    family="cifar-training",
    problems={CIFAR: {}},
    lstm={"objective": "log", "clip": 1.0},
    updates=50_000,
    rates={
        "sgd": (0.03, 0.1, 0.3, 1.0, 3.0),
        "momentum": (0.003, 0.01, 0.03, 0.1, 0.3),
        "nag": (0.003, 0.01, 0.03, 0.1, 0.3),
        "rmsprop": (0.0003, 0.001, 0.003, 0.01, 0.03),
        "adam": (0.001, 0.003, 0.01, 0.03, 0.1),
    },
    horizon=1_000,
    length=1_000,
    read=(20, 50, 100, 200, 1_000),
)
CIFAR_SMALL = replace(
    CIFAR_FULL,
    problems={CIFAR: {"filters": 8, "batch": 64}},
    updates=200,
    validation=3,
    functions=6,
    tuning=2,
    checks=5,
    horizon=100,
    length=100,
    read=(20, 50, 100),
)
CIFAR_SMOKE = replace(
    MNIST_SMOKE,
    family="cifar-training",
    problems={CIFAR: {"filters": 2, "blocks": 1, "batch": 32}},
    rates={"sgd": (1e-6, 0.01, 1e3)},
)
CIFAR_PROTOCOL = (
    "CIFAR-10, a net of three 3 x 3 convolutions with {} filters, batch normalisation and 2 x 2 max-pooling, linear "
    "head ({} weights, Glorot's), batches of {}. A 2-layer LSTM with 20 units (preprocessing p = 10, output scale "
    ".1), by the logarithms of the losses in windows of 20 steps, gradients clipped at a norm of 1. "
    "Loss: on 1,000 images of the split that is trained on. "
)
NET = (
    "The paper's net has 5 x 5 convolutions and a layer of 32 units, its LSTM one part each for convolutions and rest."
)
ANDRYCHOWICZ_CIFAR = Reproduction(
    name="andrychowicz-cifar",
    title="A learned optimizer on CIFAR-10",
    citation=CITATION,
    arxiv="1606.04474",
    reproduces="Figure 7, left, in its first steps",
    metric=MEASURE,
    interval="not given",
    published=(),
    claims=_ahead("The LSTM is below the best tuned optimizer", CIFAR, (20, 50, 100), "Figure 7, left"),
    scales={
        "smoke": Scale(
            CIFAR_SMOKE,
            "1 block of 2 filters, batches of 32, 4 steps, 4 updates by 1 run, SGD alone, 2 test runs: it runs.",
            ("Far too short to compare numbers.",),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            CIFAR_SMALL,
            CIFAR_PROTOCOL.format(8, "2,682", 64)
            + "100 steps; 200 updates by 1 run each, Adam from 3e-3 to 0 as a cosine, the best of 5 checks by "
            "3 runs. 6 test runs, with the same starts and minibatches for all; " + RATES,
            (
                "100 steps in place of 1,000, 8 filters; 40 training runs, by logarithms of losses; 6 test runs.",
                NET,
            ),
        ),
        "full": Scale(
            CIFAR_FULL,
            CIFAR_PROTOCOL.format(16, "7,658", 128)
            + "1,000 steps; 1,000 runs in training, Adam from 3e-3 to 0 as a cosine, the best of 100 "
            "checks by 20 runs. 100 test runs, with the same starts and minibatches for all; "
            + RATES.replace("100", "1,000"),
            (NET,),
        ),
    },
    experiment=experiment,
)
