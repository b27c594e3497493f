"""Which inner gradients make a good outer step: Figure 3 of Nichol, Achiam & Schulman 2018 (arXiv:1803.02999)."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale, percent

Combination: TypeAlias = tuple[int, Literal["sum", "mean", "last"]]

COMBINATIONS: dict[str, Combination] = {
    "g1": (1, "sum"),
    "(g1+g2)/2": (2, "mean"),
    "g1+g2": (2, "sum"),
    "g2": (2, "last"),
    "(g1+g2+g3)/3": (3, "mean"),
    "g3": (3, "last"),
    "g1+g2+g3": (3, "sum"),
    "(g1+g2+g3+g4)/4": (4, "mean"),
    "g4": (4, "last"),
    "g1+g2+g3+g4": (4, "sum"),
}
FIGURE = {  # accuracy, read by eye off the curves
    0: (0.49, 0.50, 0.55, 0.54, 0.53, 0.55, 0.56, 0.52, 0.53, 0.58),
    2_000: (0.55, 0.67, 0.66, 0.70, 0.74, 0.76, 0.75, 0.74, 0.74, 0.78),
    5_000: (0.51, 0.77, 0.72, 0.80, 0.83, 0.865, 0.85, 0.83, 0.84, 0.89),
    10_000: (0.43, 0.82, 0.80, 0.88, 0.89, 0.91, 0.91, 0.88, 0.89, 0.93),
    20_000: (0.37, 0.84, 0.84, 0.92, 0.92, 0.91, 0.935, 0.92, 0.92, 0.945),
    40_000: (0.335, 0.90, 0.915, 0.935, 0.94, 0.93, 0.955, 0.95, 0.94, 0.965),
}
RATE = 25 * 3e-3  # of the inner steps, on the mean loss of 25 drawings: the authors' code sums their losses
ANNEALED = 40_000  # iterations in which the outer step falls to 0


@dataclass(frozen=True)
class Settings:
    """The first `iterations` of a training of `ANNEALED`, judged after each `every`."""

    combinations: tuple[str, ...] = tuple(COMBINATIONS)
    iterations: int = ANNEALED
    every: int = 1_000
    outer_rate: float = 0.25
    filters: int = 64
    episodes: int = 1_000


def setting(iteration: int, combination: str) -> str:
    """The name of a row."""
    return f"{combination}, iteration {iteration}"


PUBLISHED = tuple(
    Published(setting(iteration, name), 100 * value, None, "Figure 3", "figure")
    for iteration, values in FIGURE.items()
    for name, value in zip(COMBINATIONS, values, strict=True)
)


def last(combination: str) -> str:
    """The name of the row with the accuracy at the end."""
    return f"{combination}, last iteration"


CLAIMS = (
    Claim("The sum of the first two gradients learns to learn; the first alone is joint training, and does not.",
          "Figure 3", (last("g1"), last("g1+g2"))),
    Claim("The second gradient alone is better than its sum with the first.", "Figure 3",
          (last("g1+g2"), last("g2"))),
    Claim("The fourth gradient alone is better than the second.", "Figure 3", (last("g2"), last("g4"))),
    Claim("The sum of all four, Reptile's, is better than the fourth alone.", "Figure 3",
          (last("g4"), last("g1+g2+g3+g4"))),
    Claim("The first gradient alone is useless: in the end it is worse than no training.", "Figure 3",
          (last("g1"), setting(0, "g1"))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Every combination starts at the same x, meets the same tasks, and is judged on the same episodes."""
    import optax

    omniglot = mb.load_tasks("omniglot")
    family = {"shots": 5, "queries": 1, "rotate": "train", "network": "conv-flatten", "filters": s.filters}
    training, test = omniglot(train_shots=19, **family), omniglot(transductive=False, **family)
    reptile, falling = mb.load_method("reptile"), optax.linear_schedule(s.outer_rate, 0.0, ANNEALED)
    judged = reptile(test.subject, learning_rate=RATE, steps=5)
    measured, curves = {}, []
    for name in s.combinations:
        steps, combine = COMBINATIONS[name]
        method = reptile(training.subject, learning_rate=RATE, steps=steps, batch=25, combine=combine)
        path = lab.path(f"{name}: training", method, training, optax.sgd(falling),
                        steps=s.iterations, every=s.every, meta_batch=1)  # fmt: skip
        found = {}
        for iteration, x in path.items():
            label = f"{setting(iteration, name)}: test, {test.subject.protocol}"
            found[iteration] = percent(lab.evaluate(label, judged, x, test, episodes=s.episodes)[None]["accuracy"])
        measured |= {setting(i, name): accuracy for i, accuracy in found.items() if i in FIGURE}
        measured[last(name)] = found[s.iterations]
        curves.append(Curve(name, list(found), [i.mean for i in found.values()], [i.ci95 for i in found.values()]))
    return Outcome(measured, [_panel("5-way 5-shot", curves), _panel("Figure 3, read by eye", _published(s))])


def _published(s: Settings) -> list[Curve]:
    rows = {name: [100 * values[i] for values in FIGURE.values()] for i, name in enumerate(COMBINATIONS)}
    return [Curve(name, list(FIGURE), rows[name], style="paper") for name in s.combinations]


def _panel(title: str, curves: list[Curve]) -> Panel:
    return Panel(title, "iterations", "accuracy (%)", curves)


FULL = Settings()
SMALL = replace(
    FULL, combinations=("g1", "g1+g2", "g2", "g4", "g1+g2+g3+g4"), iterations=2_000, every=1_000, episodes=600
)
SMOKE = replace(SMALL, combinations=("g1+g2",), iterations=2, every=2, filters=8, episodes=2)


def _unmeasured(s: Settings) -> tuple[str, ...]:
    kept = {setting(i, name) for i in FIGURE if i <= s.iterations for name in s.combinations}
    return tuple(p.setting for p in PUBLISHED if p.setting not in kept)


PROTOCOL = (
    "Reptile's net for Omniglot, 28 x 28 (4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch "
    "normalisation with a trained factor and shift, ReLU; the whole last map, linear head). A step has one task, whose "
    "100 drawings, 20 of a class, make 4 minibatches of 25 without overlap; k steps of gradient descent on the first k "
    "of them move y by -rate (g1 + ... + gk), and x goes .25 of the sum, of the mean or of the last summand; .25 falls "
    "to 0 as a line in 40,000 iterations. The rate of 3e-3 is on the sum of the 25 losses, as in the authors' code. "
    "Test: 5 steps on the 25 support drawings together, one query of a class, non-transductive. "
)
DEPARTURES = (
    "A minibatch is any 25 of a task's 100 drawings, not 5 of each class.",
    "Whether the figure is transductive the paper does not say: here it is not.",
    "1,100 characters for training and 100, not used, for validation; the authors train on all 1,200.",
    "One training run of each combination; the intervals are over test tasks.",
)
REPRODUCTION = Reproduction(
    name="reptile-gradients",
    title="Combinations of inner gradients",
    citation="Nichol, Achiam & Schulman 2018, On First-Order Meta-Learning Algorithms",
    arxiv="1803.02999",
    reproduces="Figure 3",
    metric="accuracy (%) after 5 gradient steps, non-transductive",
    interval="not given",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to one combination, 2 iterations, 8 filters and 2 test tasks: it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            _unmeasured(SMOKE),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL + "The first 2,000 iterations of five combinations; 600 test tasks.",
            ("The first 2,000 of 40,000 iterations, and five of ten combinations.", *DEPARTURES),
            _unmeasured(SMALL),
        ),
        "full": Scale(FULL, PROTOCOL + "40,000 iterations; 1,000 test tasks.", DEPARTURES),
    },
    experiment=experiment,
)
