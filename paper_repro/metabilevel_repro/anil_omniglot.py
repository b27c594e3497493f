"""ANIL against MAML on Omniglot: Raghu, Raghu, Bengio & Vinyals 2020 (arXiv:1909.09157), section 4."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Lab, Outcome, Published, Reproduction, Scale, percent

from .accuracy import at_test, in_training, test_panel, training_panel

METHODS = {"MAML": "maml", "ANIL": "anil"}
WAYS = 20
TRAINING, TEST = "ANIL over MAML, training iterations a second", "ANIL over MAML, adapted test tasks a second"


@dataclass(frozen=True)
class Settings:
    """Both methods train alike; `alpha` and `steps` are those of the inner loop, on the mean loss."""

    shots: tuple[int, ...] = (1, 5)
    iterations: int = 60_000
    meta_batch: int = 16
    alpha: float = 2.0
    steps: int = 5
    learning_rate: float = 1e-3
    cosine_decay: bool = False
    filters: int = 64
    episodes: int = 600


def setting(shots: int, method: str) -> str:
    """The name of a row."""
    return f"{WAYS}-way {shots}-shot, {method}"


PUBLISHED = (
    Published(setting(1, "MAML"), 93.7, 0.7, "section 4, Omniglot"),
    Published(setting(1, "ANIL"), 96.2, 0.5, "section 4, Omniglot"),
    Published(setting(5, "MAML"), 96.4, 0.1, "section 4, Omniglot"),
    Published(setting(5, "ANIL"), 98.0, 0.3, "section 4, Omniglot"),
    Published(TRAINING, 1.7, None, "section 4, mean over data sets"),
    Published(TEST, 4.1, None, "section 4, mean over data sets"),
)
CLAIMS = (
    Claim("Adapting the head alone loses next to nothing: ANIL is at most 1 point below MAML.", "section 4",
          (setting(1, "MAML"), setting(1, "ANIL")), margin=-1.0),
    Claim("The same with five shots.", "section 4", (setting(5, "MAML"), setting(5, "ANIL")), margin=-1.0),
    Claim("ANIL trains faster.", "section 4", (1.0, TRAINING)),
    Claim("ANIL adapts faster.", "section 4", (1.0, TEST)),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """The same training and tests for both methods; speeds are those of the first number of shots."""
    measured, panels, trained, training_speed, test_speed = {}, [], [], {}, {}
    for shots in s.shots:
        tasks = mb.load_tasks("omniglot")(ways=WAYS, shots=shots, filters=s.filters)
        curves = []
        for name, plugin in METHODS.items():
            method = mb.load_method(plugin)(tasks.subject, learning_rate=s.alpha, steps=s.steps)
            x = _train(setting(shots, name), method, tasks, s, lab)
            training_speed.setdefault(name, lab.stages[-1].rate)
            trained.append(in_training(setting(shots, name), lab))
            judged = (0, 1, s.steps, 2 * s.steps)
            label = f"{setting(shots, name)}: test, {tasks.subject.protocol}"
            found = lab.evaluate(label, method, x, tasks, episodes=s.episodes, steps=judged)
            measured[setting(shots, name)] = percent(found[s.steps]["accuracy"])
            curves += at_test(name, found, next(p.value for p in PUBLISHED if p.setting == setting(shots, name)))
            if name not in test_speed:
                test_speed[name] = _tasks_per_second(name, method, x, tasks, s, lab)
        panels.append(test_panel(f"{WAYS}-way {shots}-shot", curves))
    measured[TRAINING] = training_speed["ANIL"] / training_speed["MAML"]
    measured[TEST] = test_speed["ANIL"] / test_speed["MAML"]
    return Outcome(measured, [*panels, training_panel(trained)])


def _train(label: str, method: mb.Method, tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> Any:
    import optax

    rate = optax.cosine_decay_schedule(s.learning_rate, s.iterations) if s.cosine_decay else s.learning_rate
    return lab.fit(f"{label}: training", method, tasks, optax.adam(rate), steps=s.iterations, meta_batch=s.meta_batch)


def _tasks_per_second(name: str, method: mb.Method, x: Any, tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> float:
    """Adapted and judged test tasks a second: the second time, when nothing is left to be compiled."""
    for turn in ("compiling", "timed"):
        lab.evaluate(f"{name}: adaptation, {turn}", method, x, tasks, episodes=s.episodes)
    return s.episodes / lab.stages[-1].seconds


FULL = Settings()
SMALL = replace(FULL, shots=(1,), iterations=600, meta_batch=4, learning_rate=3e-3, cosine_decay=True, episodes=300)
SMOKE = replace(SMALL, iterations=2, meta_batch=1, steps=1, filters=8, episodes=2)
PROTOCOL = (
    "28 x 28; 4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch normalisation (trained shift, no "
    "factor), ReLU; mean over the last map, linear head: MAML's net. 5 inner steps in training and at test at 2.0 on "
    "the mean loss, which is .1 on the sum over 20 ways, as in MAML's code. Transductive; 600 test tasks, as many "
    "queries of a class as shots. ANIL adapts the head alone. "
)
DEPARTURES = (
    "The paper's appendix with these settings was not at hand: they are MAML's.",
    "One training run, with intervals over test tasks; the paper's ± is over 3 runs.",
    "The paper's speed-ups are means over data sets, on other hardware; ours are of 20-way 1-shot alone.",
)
FIVE_SHOT = tuple(p.setting for p in PUBLISHED if "5-shot" in p.setting)
REPRODUCTION = Reproduction(
    name="anil-omniglot",
    title="ANIL and MAML on Omniglot",
    citation="Raghu, Raghu, Bengio & Vinyals 2020, Rapid Learning or Feature Reuse?",
    arxiv="1909.09157",
    reproduces="the Omniglot results and the speed-ups of section 4",
    metric="accuracy (%) after 5 gradient steps, transductive; ratios of speeds",
    interval="standard deviation over 3 seeds",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 2 iterations of a task, 8 filters, an inner step and 2 test tasks: shows "
            "that it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            FIVE_SHOT,
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL + "600 iterations of 4 tasks; Adam's rate falls from 3e-3 to 0 as a cosine.",
            ("600 iterations of 4 tasks in place of 60,000 of 16 at Adam's 1e-3; 300 test tasks.", *DEPARTURES),
            FIVE_SHOT,
        ),
        "full": Scale(FULL, PROTOCOL + "60,000 iterations of 16 tasks, Adam 1e-3.", DEPARTURES),
    },
    experiment=experiment,
)
