"""MetaOptNet on CIFAR-FS: Lee, Maji, Ravichandran & Soatto 2019 (arXiv:1904.03758), Table 2."""

from dataclasses import replace
from typing import Any

from metabilevel.reproduction import Claim, Published, Reproduction, Scale

from .contest import Entry, Settings, Test, experiment

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "SVM": ("metaoptnet", {"c": 0.1, "scale": 10.0}),
    "ridge": ("metaoptnet", {"head": "ridge", "scale": 10.0}),
    "prototypes": ("protonet", {}),
}


def setting(shots: int, head: str) -> str:
    """The name of a row."""
    return f"5-way {shots}-shot, {head}"


def _entries(iterations: int, meta_batch: int, **tasks: Any) -> tuple[Entry, ...]:
    tests = lambda head: {setting(shots, head): Test({"shots": shots, "queries": 15}) for shots in (1, 5)}
    return tuple(
        Entry(head, method, tests(head), options, tasks, iterations, meta_batch)
        for head, (method, options) in HEADS.items()
    )


TABLE = {
    "SVM": ((72.0, 0.7), (84.2, 0.5)),
    "ridge": ((72.6, 0.7), (84.3, 0.5)),
    "prototypes": ((72.2, 0.7), (83.5, 0.5)),
}
PUBLISHED = tuple(
    Published(setting(shots, head), value, ci95, "Table 2, ResNet-12")
    for head, cells in TABLE.items()
    for shots, (value, ci95) in zip((1, 5), cells, strict=True)
)
FULL = Settings(
    _entries(60_000, 8, train_shots=5, queries=6, network="resnet12", dropout=0.1),
    "cifar-fs", {"ways": 5}, learning_rate=1e-3, episodes=1_000,
)  # fmt: skip
SMALL = Settings(_entries(600, 1, train_shots=5, queries=15), "cifar-fs", {"ways": 5})
SMOKE = replace(SMALL, entries=_entries(2, 1, train_shots=1, queries=1, network="conv")[:1], episodes=2)
ONE_RUN = "One training run of each head; the intervals are over test tasks only."
TRANSDUCTIVE = "Batch statistics of the queries at test (transductive); the authors have running averages."
REPRODUCTION = Reproduction(
    name="metaoptnet-cifar-fs",
    title="MetaOptNet on CIFAR-FS",
    citation="Lee, Maji, Ravichandran & Soatto 2019, Meta-Learning with Differentiable Convex Optimization",
    arxiv="1904.03758",
    reproduces="Table 2, CIFAR-FS",
    metric="accuracy (%), transductive, 240 images a class where the packed data serve",
    interval="95% confidence interval over tasks",
    published=PUBLISHED,
    claims=(
        *(Claim(f"More shots, higher accuracy: {head}.", "Table 2", (setting(1, head), setting(5, head)))
          for head in HEADS),
        Claim("The three heads are close to one another with five shots.", "Table 2",
              (setting(5, "SVM"), setting(5, "ridge"), setting(5, "prototypes")), "near", margin=5.0),
    ),
    scales={
        "smoke": Scale(SMOKE, "The SVM, 2 episodes, 2 test tasks and a smaller net: shows that it runs.",
                       ("Far too short to compare numbers.",),
                       tuple(p.setting for p in PUBLISHED if "SVM" not in p.setting),
                       conclusive=False, compile_quickly=True),
        "small": Scale(
            SMALL,
            "32 x 32; 4 blocks of a 3 x 3 convolution with 64 filters, batch normalisation, max-pooling, ReLU; 256 "
            "features. 600 episodes of 5 ways, 5 shots and 15 queries; Adam from 3e-3 to 0 as a cosine. C = .1; the "
            "ridge is 1; both scales start at 10. 600 test tasks.",
            ("A net of four convolutions; the published numbers are those of ResNet-12.",
             "600 episodes in place of 480,000, no augmentation, Adam in place of SGD.",
             "240 images a class in place of 600, where the packed data serve.", TRANSDUCTIVE, ONE_RUN),
        ),
        "full": Scale(
            FULL,
            "32 x 32; ResNet-12 (64-160-320-640) with DropBlock, 60,000 steps of 8 episodes of 5 ways, 5 shots and 6 "
            "queries; 1,000 test tasks.",
            ("Adam from 1e-3 to 0 as a cosine, in place of SGD with momentum and steps; no augmentation.",
             "A ridge of 1 on the mean squared error; the authors' is 50 on the sum.", TRANSDUCTIVE, ONE_RUN),
        ),
    },
    experiment=experiment,
)  # fmt: skip
