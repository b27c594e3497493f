"""Rapid learning or feature reuse: Raghu, Raghu, Bengio & Vinyals 2020 (arXiv:1909.09157), sections 3.2, 5.1, 5.2.

The paper's images, mini-ImageNet's, are not at hand: its numbers stand beside the same experiments on Omniglot.
"""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Lab, Outcome, Published, Reproduction, Scale, percent

from .accuracy import at_test, in_training, test_panel, training_panel

FROZEN = ("none", "1", "1-2", "1-3", "1-4")  # blocks of the body, of which there are four
BODIES = {"MAML": "maml", "ANIL": "anil", "multi-task without heads": "union", "NIL": "nil"}


@dataclass(frozen=True)
class Settings:
    """The `bodies`, of which MAML is one, train alike; `alpha` and `steps` are those of the inner loop (mean loss)."""

    bodies: tuple[str, ...] = tuple(BODIES)
    shots: tuple[int, ...] = (1, 5)
    iterations: int = 60_000
    meta_batch: int = 32
    queries: int | None = None  # of a class, in training; as many as shots if None
    alpha: float = 2.0
    steps: int = 1
    test_steps: int = 3  # the point of `judged` that gives the rows
    judged: tuple[int, ...] = (0, 1, 3, 10)
    learning_rate: float = 1e-3
    cosine_decay: bool = False
    filters: int = 64
    episodes: int = 600


def frozen(shots: int, blocks: str, data: str = "Omniglot") -> str:
    """The name of a row: MAML's net, adapted with so many blocks frozen."""
    return f"{data} 5-way {shots}-shot, blocks frozen at test: {blocks}"


def no_loop(shots: int, body: str, data: str = "Omniglot") -> str:
    """The name of a row: a body, and no inner loop at test."""
    return f"{data} 5-way {shots}-shot, no inner loop at test, body: {body}"


MINI = "mini-ImageNet"
FREEZING = {"none": (44.5, 61.7), "1": (44.8, 61.7), "1-2": (44.8, 61.4), "1-3": (44.7, 60.2), "1-4": (44.7, 60.2)}
FREEZING_STD = {"none": (0.8, 0.6), "1-4": (0.8, 0.7)}
NIL = {
    "MAML": ((48.4, 0.3), (61.5, 0.8)),
    "ANIL": ((48.0, 0.7), (62.2, 0.5)),
    "multi-class": ((39.7, 0.3), (54.4, 0.5)),
    "multi-task without heads": ((26.5, 1.1), (34.2, 3.5)),
    "random": ((32.9, 0.6), (43.2, 0.5)),
    "NIL": ((38.3, 0.6), (43.0, 0.2)),
}
PUBLISHED = tuple(
    number
    for i, shots in enumerate((1, 5))
    for number in (
        *[
            Published(frozen(shots, blocks, MINI), values[i], FREEZING_STD.get(blocks, (None, None))[i], "section 3.2")
            for blocks, values in FREEZING.items()
        ],
        *[Published(no_loop(shots, body, MINI), *values[i], "Table 5") for body, values in NIL.items()],
    )
)
CLAIMS = (
    *[
        Claim(f"Freezing blocks {blocks} at test costs at most 1.5 points.", "section 3.2",
              (frozen(1, "none"), frozen(1, blocks)), margin=-1.5)
        for blocks in FROZEN[1:]
    ],
    *[
        Claim(f"Without an inner loop at test, the body of {body} loses at most 1.5 points to MAML with one.",
              "section 5.1", (frozen(1, "none"), no_loop(1, body)), margin=-1.5)
        for body in ("MAML", "ANIL")
    ],
    *[
        Claim(f"Without an inner loop at test, the body of {body} is below MAML's.", "Table 5",
              (no_loop(1, body), no_loop(1, "MAML")))
        for body in ("random", "multi-task without heads", "NIL")
    ],
    Claim("Multi-task training without heads is even below random features.", "Table 5",
          (no_loop(1, "multi-task without heads"), no_loop(1, "random"))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains the bodies; adapts MAML's net with blocks frozen, and classifies by every body without an inner loop."""
    measured, panels, trained = {}, [], []
    for shots in s.shots:
        family = {"shots": shots, "filters": s.filters}
        training, test = (mb.load_tasks("omniglot")(**family, queries=queries) for queries in (s.queries, None))
        nets = {}
        for body in s.bodies:
            nets[body] = _train(f"5-way {shots}-shot, {body}", body, training, s, lab)
            trained.append(in_training(f"5-way {shots}-shot, {body}", lab))
        nets["random"] = training.subject.init(lab.key(2))
        maml = mb.load_method("maml")(test.subject, learning_rate=s.alpha, steps=s.test_steps)
        curves = []
        for count, blocks in enumerate(FROZEN):
            label = f"{frozen(shots, blocks)}, {test.subject.protocol}"
            method = replace(maml, solver=_freezing(count, s))
            found = lab.evaluate(label, method, nets["MAML"], test, episodes=s.episodes, steps=s.judged)
            measured[frozen(shots, blocks)] = percent(found[s.test_steps]["accuracy"])
            curves += at_test(f"frozen: {blocks}", found, None)
        panels.append(test_panel(f"5-way {shots}-shot, MAML", curves))
        nearest = mb.load_method("nil")(test.subject)
        for body, x in nets.items():
            label = f"{no_loop(shots, body)}, {test.subject.protocol}"
            found = lab.evaluate(label, nearest, x, test, episodes=s.episodes)
            measured[no_loop(shots, body)] = percent(found[None]["accuracy"])
    return Outcome(measured, [*panels, training_panel(trained)])


def _train(label: str, body: str, tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> Any:
    import optax

    loop = {"learning_rate": s.alpha, "steps": s.steps}
    options = {"MAML": loop, "ANIL": loop, "NIL": {"train": "nil"}}.get(body, {})
    method = mb.load_method(BODIES[body])(tasks.subject, **options)
    rate = optax.cosine_decay_schedule(s.learning_rate, s.iterations) if s.cosine_decay else s.learning_rate
    return lab.fit(f"{label}: training", method, tasks, optax.adam(rate), steps=s.iterations, meta_batch=s.meta_batch)


def _freezing(blocks: int, s: Settings) -> mb.Descent:
    """Gradient descent at rate 0 in the first `blocks` of the body; the rates are arrays, to be compiled once."""
    import jax
    import jax.numpy as jnp

    rates = {"body": [jnp.array(s.alpha if i >= blocks else 0.0) for i in range(4)], "head": jnp.array(s.alpha)}
    return mb.Descent(jax.tree_util.Partial(_as_given, rates), steps=s.test_steps)


def _as_given(rates: Any, x: Any, i: Any) -> Any:
    """The rates, whatever x and the step."""
    return rates


FULL = Settings()
SMALL = replace(
    FULL, shots=(1,), iterations=1_200, meta_batch=8, queries=5, learning_rate=3e-3, cosine_decay=True, episodes=300
)
SMOKE = replace(SMALL, bodies=("MAML",), iterations=2, meta_batch=1, queries=1, filters=8, episodes=2, judged=(0, 3))
PROTOCOL = (
    "Omniglot, 28 x 28; 4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch normalisation (trained "
    "shift, no factor), ReLU; mean over the last map, linear head. MAML and ANIL: one inner step in training, 3 at "
    "test, at 2.0 on the mean loss; frozen blocks have a rate of 0 at test. Without an inner loop: the support labels, "
    "weighted by a softmax of 10 times the cosine similarity of the features. Multi-task without heads: one head for "
    "all tasks, whose labels are in random order. NIL: the body is trained as this very classifier. Transductive. "
)
DEPARTURES = (
    "Omniglot in place of mini-ImageNet, whose images are not at hand: the paper's numbers are there for the pattern.",
    "The settings are those of MAML for Omniglot, with 64 filters; the paper's appendix was not at hand.",
    "The temperature of the softmax over similarities is ours; the paper does not give one.",
    "Multi-class training is left out.",
    "One training run, with intervals over test tasks; the paper's ± is over 3 runs.",
)
UNMEASURED = tuple(p.setting for p in PUBLISHED)
REPRODUCTION = Reproduction(
    name="anil-freezing",
    title="Frozen bodies and no inner loop",
    citation="Raghu, Raghu, Bengio & Vinyals 2020, Rapid Learning or Feature Reuse?",
    arxiv="1909.09157",
    reproduces="the freezing table of section 3.2 and Table 5, on Omniglot",
    metric="accuracy (%), transductive",
    interval="standard deviation over 3 seeds",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to MAML's body and a random one, 2 iterations of a task, 8 filters and 2 test "
            "tasks: shows that it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            UNMEASURED,
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL + "1,200 iterations of 8 tasks with 5 queries of a class, Adam's rate falls from 3e-3 to 0 as a "
            "cosine; 300 test tasks.",
            ("1,200 iterations; one shot alone.", *DEPARTURES),
            UNMEASURED,
        ),
        "full": Scale(FULL, PROTOCOL + "60,000 iterations of 32 tasks, Adam 1e-3.", DEPARTURES, UNMEASURED),
    },
    experiment=experiment,
)
