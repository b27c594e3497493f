"""Reptile on Omniglot: Table 2 of Nichol, Achiam & Schulman 2018 (arXiv:1803.02999), section 6.1."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Lab, Outcome, Published, Reproduction, Scale, percent

from .accuracy import at_test, in_training, test_panel, training_panel


@dataclass(frozen=True)
class Training:
    """A net for one number of ways; 1-shot and 5-shot share it. Inner steps are Adam's, at `rate`, on minibatches."""

    ways: int
    iterations: int
    rate: float
    batch: int
    steps: int
    test_batch: int
    meta_batch: int = 5
    drawings: int = 10  # of a class, in training


@dataclass(frozen=True)
class Settings:
    """The outer step falls from `outer_rate` to 0 as a line."""

    trainings: tuple[Training, ...]
    outer_rate: float = 1.0
    filters: int = 64
    episodes: int = 10_000
    shots: tuple[int, ...] = (1, 5)
    judged: tuple[int, ...] = (0, 5, 10, 20, 50)  # steps at test; the last one gives the rows


def setting(ways: int, shots: int, transductive: bool) -> str:
    """The name of a row."""
    return f"{ways}-way {shots}-shot, Reptile, {'' if transductive else 'non-'}transductive"


TABLE: dict[tuple[int, int, bool], tuple[float, float]] = {
    (5, 1, False): (95.39, 0.09),
    (5, 1, True): (97.68, 0.04),
    (5, 5, False): (98.90, 0.10),
    (5, 5, True): (99.48, 0.06),
    (20, 1, False): (88.14, 0.15),
    (20, 1, True): (89.43, 0.14),
    (20, 5, False): (96.65, 0.33),
    (20, 5, True): (97.12, 0.32),
}
PUBLISHED = tuple(Published(setting(*cell), value, std, "Table 2") for cell, (value, std) in TABLE.items())
CLAIMS = (
    *[
        Claim(f"Transduction helps: {ways}-way {shots}-shot.", "Table 2",
              (setting(ways, shots, False), setting(ways, shots, True)))
        for ways in (5, 20) for shots in (1, 5)
    ],
    Claim("More drawings of a class, higher accuracy.", "Table 2", (setting(5, 1, True), setting(5, 5, True))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """One training for each number of ways; four tests of each."""
    measured, panels, trained = {}, [], []
    for training in s.trainings:
        x = _train(training, s, lab)
        trained.append(in_training(f"{training.ways}-way", lab))
        for shots in s.shots:
            curves = []
            for transductive in (False, True):
                row = setting(training.ways, shots, transductive)
                found = _test(training, shots, transductive, x, s, lab)
                measured[row] = percent(found[s.judged[-1]]["accuracy"])
                curves += at_test(row.split(", ")[-1], found, TABLE[training.ways, shots, transductive][0])
            panels.append(test_panel(f"{training.ways}-way {shots}-shot", curves))
    return Outcome(measured, [*panels, training_panel(trained, of="training tasks, drawings seen")])


def _train(training: Training, s: Settings, lab: Lab) -> Any:
    import optax

    tasks = mb.load_tasks("omniglot")(ways=training.ways, shots=training.drawings - 1, queries=1, **_family(s))
    method = mb.load_method("reptile")(
        tasks.subject, learning_rate=training.rate, steps=training.steps, batch=training.batch, optimizer="adam"
    )
    outer = optax.sgd(optax.linear_schedule(s.outer_rate, 0.0, training.iterations))
    return lab.fit(f"{training.ways}-way: training", method, tasks, outer,
                   steps=training.iterations, meta_batch=training.meta_batch)  # fmt: skip


def _test(training: Training, shots: int, transductive: bool, x: Any, s: Settings, lab: Lab) -> dict[Any, Any]:
    tasks = mb.load_tasks("omniglot")(
        ways=training.ways, shots=shots, queries=1, transductive=transductive, **_family(s)
    )
    method = mb.load_method("reptile")(
        tasks.subject, learning_rate=training.rate, optimizer="adam", test_batch=training.test_batch
    )
    label = f"{setting(training.ways, shots, transductive)}: test"
    return lab.evaluate(label, method, x, tasks, episodes=s.episodes, steps=s.judged)


def _family(s: Settings) -> dict[str, Any]:
    return {"rotate": "train", "network": "conv-flatten", "filters": s.filters}


FIVE = Training(5, iterations=100_000, rate=1e-3, batch=10, steps=5, test_batch=5)
TWENTY = Training(20, iterations=200_000, rate=5e-4, batch=20, steps=10, test_batch=10)
FULL = Settings((FIVE, TWENTY))
SMALL = Settings((replace(FIVE, iterations=2_000),), episodes=300)
SMOKE = replace(
    SMALL,
    trainings=(replace(FIVE, iterations=2, meta_batch=2),),
    filters=8,
    episodes=2,
    shots=(1,),
    judged=(0, 50),
)
PROTOCOL = (
    "28 x 28; 4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch normalisation (trained factor and "
    "shift), ReLU; the whole last map, linear head. Training: 5 tasks a step, 10 drawings of a class, 5 inner steps of "
    "Adam (beta_1 = 0) at 1e-3 on minibatches of 10 (20 ways: 10 steps at 5e-4 on 20), outer step from 1 to 0 as a "
    "line; 1-shot and 5-shot share a net. Test: 50 inner steps on minibatches of 5 (10), one query of a class. "
    "Transductive: batch statistics of all queries together; non-transductive: of the support set and one query. "
    "Rotations in training only. "
)
DEPARTURES = (
    "Adam's moments start anew at every task; the authors carry them from task to task, through the whole training.",
    "Minibatches are drawn anew at every step; the authors go through the examples in epochs.",
    "1,100 characters for training and 100, not used, for validation; the authors train on all 1,200.",
    "One training run, with intervals over test tasks; the paper's ± is over 3 runs of 10,000 test tasks.",
)
TWENTY_WAY = tuple(p.setting for p in PUBLISHED if p.setting.startswith("20-way"))
REPRODUCTION = Reproduction(
    name="reptile-omniglot",
    title="Reptile on Omniglot",
    citation="Nichol, Achiam & Schulman 2018, On First-Order Meta-Learning Algorithms",
    arxiv="1803.02999",
    reproduces="Table 2, Reptile",
    metric="accuracy (%) after 50 gradient steps",
    interval="standard deviation over 3 seeds",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to one shot, 2 iterations, 8 filters and 2 test tasks: shows that it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            tuple(p.setting for p in PUBLISHED if "5-way 1-shot" not in p.setting),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL + "2,000 iterations, 300 test tasks, 5 ways alone.",
            ("2,000 iterations in place of 100,000, 300 test tasks in place of 10,000.", *DEPARTURES),
            TWENTY_WAY,
        ),
        "full": Scale(FULL, PROTOCOL + "100,000 iterations (20 ways: 200,000); 10,000 test tasks.", DEPARTURES),
    },
    experiment=experiment,
)
