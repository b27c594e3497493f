"""R2-D2 and LR-D2 on Omniglot and CIFAR-FS: Bertinetto, Henriques, Torr & Vedaldi 2019 (arXiv:1805.08136)."""

from dataclasses import replace
from typing import Any

from metabilevel.reproduction import Claim, Published, Reproduction, Scale

from .contest import Entry, Settings, Test, experiment

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "R2-D2": ("r2d2", {}),
    "LR-D2, 5 iterations": ("lrd2", {"iterations": 5}),
    "LR-D2, 1 iteration": ("lrd2", {"iterations": 1}),
    "prototypes": ("protonet", {}),
}


def setting(shots: int, head: str) -> str:
    """The name of a row."""
    return f"5-way {shots}-shot, {head}"


def _entries(heads: list[str], iterations: int, **tasks: Any) -> tuple[Entry, ...]:
    """One training for each head, tested with one shot and with five."""
    tests = lambda head: {setting(shots, head): Test({"shots": shots}) for shots in (1, 5)}
    make = lambda head: Entry(head, HEADS[head][0], tests(head), HEADS[head][1], tasks, iterations)
    return tuple(make(head) for head in heads)


PAPER = {
    "citation": "Bertinetto, Henriques, Torr & Vedaldi 2019, Meta-learning with differentiable closed-form solvers",
    "arxiv": "1805.08136",
}
TRANSDUCTIVE = "Batch statistics of the queries at test (transductive); the authors have running averages."
ONE_RUN = "One training run of each head; the intervals are over test tasks only."
RANDOM_SHOTS = "Training has a fixed number of shots; in the paper it is random, 1 to 10."
RIDGE = "The ridge starts at 1 and is learned; at 50 in the authors' code, for features of larger dimension."


def _shots_help(heads: list[str]) -> tuple[Claim, ...]:
    return tuple(
        Claim(f"More shots, higher accuracy: {head}.", "Table 1", (setting(1, head), setting(5, head)))
        for head in heads
    )


OMNIGLOT = Settings(
    _entries(list(HEADS), 60_000, train_ways=60, train_shots=5, queries=5),
    "omniglot",
    {"ways": 5, "network": "r2d2"},
    learning_rate=5e-3,
    episodes=10_000,
)
OMNIGLOT_SMALL = Settings(
    _entries(list(HEADS), 1_000, train_ways=20, train_shots=1, queries=10), "omniglot", {"ways": 5}
)
OMNIGLOT_SMOKE = Settings(
    _entries(["R2-D2"], 2, train_ways=8, queries=1), "omniglot", {"ways": 5, "filters": 8}, episodes=4
)
R2D2_OMNIGLOT = Reproduction(
    name="r2d2-omniglot",
    title="Closed-form heads on Omniglot",
    **PAPER,
    reproduces="Table 1, Omniglot",
    metric="accuracy (%), transductive",
    interval="not at hand: the paper's Omniglot numbers could not be checked, and are left out",
    published=(),
    claims=(
        *_shots_help(["R2-D2", "LR-D2, 5 iterations"]),
        Claim("Five steps of Newton's method are no worse than one.", "Table 1",
              (setting(1, "LR-D2, 1 iteration"), setting(1, "LR-D2, 5 iterations")), "near", margin=2.0),
        Claim("Trained on 20 ways for 1,000 episodes, R2-D2 separates 5 new characters from one drawing each: above "
              "94%.", "ours", (94.0, setting(1, "R2-D2"))),
    ),
    scales={
        "smoke": Scale(OMNIGLOT_SMOKE, "One head, 2 episodes, 8 filters and 4 test tasks: shows that it runs.",
                       ("Far too short to compare numbers.",), conclusive=False, compile_quickly=True),
        "small": Scale(
            OMNIGLOT_SMALL,
            "28 x 28; 4 blocks of a 3 x 3 convolution with 64 filters and stride 2, batch normalisation, ReLU; mean "
            "over the last map. 1,000 episodes of 20 ways, one drawing of each as support and 10 as queries; Adam from "
            "3e-3 to 0 as a cosine. 600 test tasks of 5 ways and 10 queries of a class.",
            ("1,000 episodes of 20 ways, in place of up to 120,000 of 60.",
             "A smaller net, without the paper's concatenation of two blocks.", RANDOM_SHOTS, TRANSDUCTIVE, ONE_RUN,
             RIDGE),
        ),
        "full": Scale(
            OMNIGLOT,
            "28 x 28; the paper's net (96-192-384-512, features of the last two blocks). 60,000 episodes of 60 ways, 5 "
            "shots and 5 queries; Adam from 5e-3 to 0 as a cosine; 10,000 test tasks.",
            (RANDOM_SHOTS, TRANSDUCTIVE, ONE_RUN, RIDGE,
             "Adam's rate falls as a cosine; in the paper it is halved every 2,000 episodes."),
        ),
    },
    experiment=experiment,
)  # fmt: skip

FIRST_VERSION = "first version of the paper, as two public reproductions quote it"
CIFAR = Settings(
    _entries(list(HEADS), 60_000, train_ways=20, train_shots=5, queries=7, network="r2d2", dropout=0.4),
    "cifar-fs",
    {"ways": 5},
    learning_rate=5e-3,
    episodes=10_000,
)
CIFAR_HEADS = ["R2-D2", "LR-D2, 5 iterations", "prototypes"]
CIFAR_SMALL = Settings(_entries(CIFAR_HEADS, 800, train_ways=8, train_shots=5, queries=8), "cifar-fs", {"ways": 5})
CIFAR_SMOKE = replace(CIFAR_SMALL, entries=_entries(["R2-D2"], 2, train_shots=1, queries=1, network="conv"), episodes=2)
R2D2_CIFAR_FS = Reproduction(
    name="r2d2-cifar-fs",
    title="Closed-form heads on CIFAR-FS",
    **PAPER,
    reproduces="Table 1, CIFAR-FS",
    metric="accuracy (%), transductive, 240 images a class where the packed data serve",
    interval="95% confidence interval over tasks",
    published=(
        Published(setting(1, "R2-D2"), 60.0, 0.7, FIRST_VERSION),
        Published(setting(5, "R2-D2"), 76.1, 0.6, FIRST_VERSION),
    ),
    claims=(
        *_shots_help(CIFAR_HEADS[:2]),
        Claim("A ridge regression is a better head than class means.", "Table 1",
              (setting(5, "prototypes"), setting(5, "R2-D2"))),
    ),
    scales={
        "smoke": Scale(CIFAR_SMOKE, "One head, 2 episodes, 2 test tasks and a smaller net: shows that it runs.",
                       ("Far too short to compare numbers.",), conclusive=False, compile_quickly=True),
        "small": Scale(
            CIFAR_SMALL,
            "32 x 32; 4 blocks of a 3 x 3 convolution with 64 filters, batch normalisation, max-pooling, ReLU; 256 "
            "features. 800 episodes of 8 ways, 5 shots and 8 queries; Adam from 3e-3 to 0 as a cosine. 600 test tasks "
            "of 5 ways and 15 queries of a class.",
            ("800 episodes of 8 ways, in place of up to 120,000 of 20; no dropout.",
             "240 images a class in place of 600, where the packed data serve.", RANDOM_SHOTS, TRANSDUCTIVE, ONE_RUN,
             RIDGE),
        ),
        "full": Scale(
            CIFAR,
            "32 x 32; the paper's net (96-192-384-512, features of the last two blocks, dropout .4). 60,000 episodes "
            "of 20 ways, 5 shots and 7 queries; Adam from 5e-3 to 0 as a cosine; 10,000 test tasks.",
            (RANDOM_SHOTS, TRANSDUCTIVE, ONE_RUN, RIDGE, "The published numbers are those of its net of 64 filters.",
             "Adam's rate falls as a cosine; in the paper it is halved every 2,000 episodes."),
        ),
    },
    experiment=experiment,
)  # fmt: skip
