"""A learned optimizer of pictures: section 3.4 of Andrychowicz et al. 2016 (arXiv:1606.04474)."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Image, Lab, Outcome, Panel, Reproduction, Scale

from .andrychowicz import CITATION, MEASURE
from .optimizer_race import BEST, LSTM, RUNS, Settings, ahead, race, racer, tuned_rate

TRAINED, LARGE, OTHER = "64 x 64", "128 x 128", "64 x 64 in a style not trained on"
ADAM = "Adam"


@dataclass(frozen=True)
class Gallery(Settings):
    """`shown`: which of the runs of a comparison has its picture shown, at the horizon."""

    shown: int = 7


def experiment(s: Gallery, lab: Lab) -> Outcome:
    """The curves; and of every problem what the LSTM and tuned Adam have painted of one crop of the test."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    weights, outcome = race(s, lab)
    panels = list(outcome.panels)
    paint = eqx.filter_jit(lambda method, x, task, key: method.adapt(x, task, key))
    for problem, options in s.problems.items():
        tasks = mb.load_tasks(s.family)(**options)
        rate = outcome.measured[tuned_rate(problem, ADAM, s.rates["adam"])]
        k_task, k_run = jax.random.split(jax.random.split(lab.key(RUNS), s.functions)[s.shown])
        task = tasks.sample(k_task, "test")
        pictures = {"photograph": task.content, "painting": tasks.subject.painting}
        for name, method, x in (
            (LSTM, racer("lstm", tasks, s), weights),
            (ADAM, racer("hand-made", tasks, s, optimizer="adam"), {"log_rate": jnp.log(jnp.asarray(rate))}),
        ):
            pictures[name] = paint(method, x, task, k_run)
        images = [Image(name, _pixels(picture)) for name, picture in pictures.items()]
        panels.append(Panel(f"{problem}, step {s.horizon}", "", "", (), images=images))
    return Outcome(outcome.measured, panels)


def _pixels(picture: Any) -> Any:
    import numpy as np

    return np.clip(np.asarray(picture, float), 0, 1).round(2).tolist()


def _claims() -> tuple[Claim, ...]:
    sentences = {
        TRAINED: "The LSTM is below tuned Adam on photographs not trained on",
        LARGE: "And on pictures of four times the pixels",
        OTHER: "And in a style that it was not trained on",
    }
    return tuple(
        Claim(
            f"{sentence}, step {step}: the paired difference is above 0.",
            "section 3.4",
            (0.0, ahead(problem, step, ADAM)),
        )
        for problem, sentence in sentences.items()
        for step in (20, 50)
    )


FULL = Gallery(
    family="neural-art",
    problems={TRAINED: {}, LARGE: {"size": 128}, OTHER: {"style": "the_scream"}},
    lstm={"window": 10, "objective": "log", "clip": 1.0},
    rates={
        "momentum": (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0),
        "nag": (16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
        "rmsprop": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
        "adam": (0.02, 0.04, 0.08, 0.16, 0.32),
    },
    learning_rate=3e-3,
    updates=20_000,
    meta_batch=4,
    validation=72,
    functions=144,
    tuning=72,
    at_once=1,
    horizon=50,
    length=128,
    read=(20, 50, 128),
    rivals=(BEST, ADAM),
)
SMALL = replace(
    FULL,
    problems={TRAINED: {}, LARGE: {"size": 128}},
    lstm=FULL.lstm | {"units": 10},
    updates=2_000,
    meta_batch=1,
    validation=6,
    functions=16,
    tuning=6,
    checks=8,
)
SMOKE = replace(
    SMALL,
    problems={TRAINED: {}},
    lstm=SMALL.lstm | {"window": 1},
    rates={"adam": (1e-6, 0.1, 1e3)},
    updates=2,
    validation=1,
    functions=2,
    tuning=1,
    horizon=2,
    length=2,
    read=(2,),
    shown=1,
    checks=1,
)
PROTOCOL = (
    "Crops of 64 x 64 pixels of 12 Kodak photographs, in the style of the Starry Night, from noise: .5 content + style "
    "+ 3 variation, by the maps of a random net of four convolutions (He-normal, seed 0). A 2-layer LSTM with {} units "
    "({} weights), trained on the logarithm of the loss in windows of 10 of 50 steps, no derivatives of the gradients, "
    "which are clipped at a norm of 1: {} updates by {} each, Adam from 3e-3 to 0 as a "
    "cosine, the best of {} checks. {} test crops of 6 other "
    "photographs, the same for all{}, where nothing is trained again; hand-made optimizers: for each size and style "
    "the rate of the least loss at step 50 on {} crops of 6 more photographs, on a grid (rows)."
)
DEPARTURES = (
    "The paper's net is VGG, trained on ImageNet; the family takes such weights from a file.",
    "12 photographs, of 24 crops each, where the paper has 1,800 of ImageNet.",
    "50 steps in windows of 10, where the paper has 128 in windows of 32.",
    "The paper has curves without numbers; the rows are ours alone.",
)
REPRODUCTION = Reproduction(
    name="neural-art",
    title="A learned optimizer of pictures",
    citation=CITATION,
    arxiv="1606.04474",
    reproduces="the curves and pictures of section 3.4",
    metric=MEASURE,
    interval="not given",
    published=(),
    claims=_claims(),
    scales={
        "smoke": Scale(
            SMOKE,
            "2 updates, 2 steps, Adam, 2 crops of 64 x 64: shows that it runs.",
            ("Far too short to compare numbers.",),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL.format(10, "1,371", "2,000", "one crop", 8, 16, ", also at 128 x 128", 6),
            ("2,000 updates by a single crop, and 10 units in place of 20.", *DEPARTURES),
        ),
        "full": Scale(
            FULL,
            PROTOCOL.format(
                20, "5,141", "20,000", "4 crops", 20, 144, ", also at 128 x 128 and in the style of The Scream", 72
            ),
            DEPARTURES,
        ),
    },
    experiment=experiment,
)
