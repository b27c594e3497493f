"""Implicit MAML on Omniglot: the table of Rajeswaran, Finn, Kakade & Levine 2019 (arXiv:1909.04630)."""

from dataclasses import replace
from typing import Any

from metabilevel.reproduction import Claim, Published, Reproduction, Scale

from .contest import Entry, Settings, Test, experiment

MAML, DESCENT, FREE, CODE = "MAML", "iMAML, gradient descent", "iMAML, Hessian-free", "iMAML, as in the code"
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # plugin, options, further ones at test
    MAML: ("maml", {"learning_rate": 2.0}, {"steps": 3}),
    DESCENT: ("imaml", {"learning_rate": 0.1}, {"test_strength": 0.0}),
    FREE: ("imaml", {"inner": "hessian-free", "steps": 3}, {"test_strength": 0.0}),
    CODE: ("imaml", {"learning_rate": 0.1, "variant": "code"}, {"test_strength": 0.0}),
}


def setting(ways: int, shots: int, method: str) -> str:
    """The name of a row."""
    return f"{ways}-way {shots}-shot, {method}"


def _entries(ways: int, shots: int, methods: tuple[str, ...], iterations: int, **fields: Any) -> tuple[Entry, ...]:
    def entry(method: str) -> Entry:
        plugin, options, at_test = METHODS[method]
        if ways == 20:
            options = options | ({"steps": 5} if method == MAML else {} if method == FREE else {"steps": 25})
            at_test = {name: value for name, value in at_test.items() if name != "steps"}
        name = setting(ways, shots, method)
        tasks = {"ways": ways, "shots": shots} | fields.get("tasks", {})
        return Entry(name, plugin, {name: Test({}, at_test)}, options, tasks, iterations, fields["meta_batch"])

    return tuple(entry(method) for method in methods)


TABLE = {
    DESCENT: ((99.16, 0.35), (99.67, 0.12), (94.46, 0.42), (98.69, 0.1)),
    FREE: ((99.50, 0.26), (99.74, 0.11), (96.18, 0.36), (99.14, 0.1)),
    MAML: ((98.7, 0.4), (99.9, 0.1), (95.8, 0.3), (98.9, 0.2)),
}
CELLS = ((5, 1), (5, 5), (20, 1), (20, 5))
PUBLISHED = tuple(
    Published(setting(*cell, method), *number, "MAML's Table 1" if method == MAML else "Omniglot table")
    for method, numbers in TABLE.items()
    for cell, number in zip(CELLS, numbers, strict=True)
)
CLAIMS = (
    *[
        Claim(f"The Hessian-free inner solver is no worse than gradient descent, {shots}-shot.", "Omniglot table",
              (setting(5, shots, DESCENT), setting(5, shots, FREE)), margin=-1.0)
        for shots in (1, 5)
    ],
    *[
        Claim(f"Implicit MAML is no worse than MAML after as many iterations: {method.partition(', ')[2]}, "
              f"{shots}-shot.", "Omniglot table", (setting(5, shots, MAML), setting(5, shots, method)), margin=-1.0)
        for shots in (1, 5)
        for method in (DESCENT, FREE)
    ],
    Claim("More shots, higher accuracy: iMAML.", "Omniglot table",
          (setting(5, 1, DESCENT), setting(5, 5, DESCENT))),
)  # fmt: skip
FULL = Settings(
    tuple(
        entry
        for ways, shots in CELLS
        for entry in _entries(ways, shots, tuple(METHODS), 20_000, meta_batch=32)
    ),
    "omniglot",
    {"network": "conv-flatten"},
    learning_rate=1e-3,
    cosine_decay=False,
)  # fmt: skip
SMALL = Settings(
    (
        *_entries(5, 1, tuple(METHODS), 400, meta_batch=4, tasks={"queries": 5}),
        *_entries(5, 5, (MAML, DESCENT, FREE), 120, meta_batch=4),
    ),
    "omniglot",
    {"filters": 32},
    episodes=300,
)
SMOKE = replace(
    SMALL,
    entries=_entries(5, 1, (DESCENT,), 2, meta_batch=1),
    family={"filters": 4},
    episodes=2,
)
INNER = (
    "iMAML: strength 2, 5 conjugate gradients; inner solvers: 16 steps of gradient descent at .1 (20 ways: 25), or 3 "
    "Hessian-free steps (5 conjugate gradients for a direction, then a line search), tested at strength 0; and what "
    "the authors' code does, which pulls to x in one last step and solves (2 I + H / 12) v = g. "
)
MAMLS = "MAML: one inner step at 2.0 in training, 3 at test. "
DEPARTURES = (
    "How many Hessian-free steps the paper takes we could not read, and the released code has none: 3 here.",
    "The authors' initial weights are larger, and their Adam has an eps of 1e-3.",
    "One training run of each; the intervals are over test tasks only.",
)


def _unmeasured(s: Settings) -> tuple[str, ...]:
    rows = {row for entry in s.entries for row in entry.tests}
    return tuple(p.setting for p in PUBLISHED if p.setting not in rows)


REPRODUCTION = Reproduction(
    name="imaml-omniglot",
    title="Implicit MAML on Omniglot",
    citation="Rajeswaran, Finn, Kakade & Levine 2019, Meta-Learning with Implicit Gradients",
    arxiv="1909.04630",
    reproduces="the Omniglot table",
    metric="accuracy (%), transductive",
    interval="95% confidence interval over tasks",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "Gradient descent alone, 2 iterations of a task, 4 filters and 2 test tasks: shows that it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            _unmeasured(SMOKE),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            "28 x 28; 4 blocks of a 3 x 3 convolution with 32 filters and stride 2, batch normalisation (shift, no "
            "factor), ReLU; mean over the last map, linear head. " + INNER + MAMLS + "400 iterations of 4 tasks with "
            "5 queries of a class (1-shot), 120 (5-shot); Adam from 3e-3 to 0 as a cosine; 300 test tasks.",
            (
                "400 and 120 iterations of 4 tasks in place of 20,000 of 32; 32 filters, and MAML's net, whose "
                "features are the mean of the last map.",
                *DEPARTURES,
            ),
            _unmeasured(SMALL),
        ),
        "full": Scale(
            FULL,
            "28 x 28; 4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch normalisation, ReLU; the "
            "whole last map, linear head. " + INNER + MAMLS + "20,000 iterations of 32 tasks, as many queries of a "
            "class as shots, Adam 1e-3; 600 test tasks.",
            DEPARTURES,
        ),
    },
    experiment=experiment,
)
