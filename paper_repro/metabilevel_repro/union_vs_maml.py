"""Multi-task training against meta-learning on CIFAR-FS: Wang, Zhao & Li 2021 (arXiv:2106.09017)."""

from dataclasses import replace

from metabilevel.reproduction import Claim, Published, Reproduction, Scale

from .contest import Entry, Settings, Test, experiment

UNION, TUNED, SHARED = "union, heads per task, new head", "union, heads per task, all fine-tuned", "union, one head"
MAML, ANIL, R2D2 = "MAML", "ANIL", "R2-D2"


def setting(name: str) -> str:
    """The name of a row."""
    return f"5-way 5-shot, {name}"


def _entries(iterations: int, pool: int) -> tuple[Entry, ...]:
    rows = lambda *names: {setting(name): Test() for name in names}
    whole = {"learning_rate": 0.1, "steps": 5, "adapts": "all"}
    union = {"learning_rate": 0.1, "steps": 100, "adapts": "head"}
    return (
        Entry("union, heads per task", "union", {setting(UNION): Test(), setting(TUNED): Test({}, whole)},
              {"heads": "per-task", **union}, {"pool": pool}, 3 * iterations),
        Entry(SHARED, "union", rows(SHARED), union, {}, iterations // 2),
        Entry(R2D2, "r2d2", rows(R2D2), {}, {}, iterations),
        Entry(ANIL, "anil", rows(ANIL), {"learning_rate": 0.05}, {}, iterations),
        Entry(MAML, "maml", rows(MAML), {"learning_rate": 0.1, "steps": 1}, {}, iterations),
    )  # fmt: skip


FULL = Settings(_entries(20_000, 2_000), "cifar-fs", {"ways": 5, "shots": 5, "queries": 15, "network": "resnet12"})
SMALL = Settings(_entries(1_000, 40), "cifar-fs", {"ways": 5, "shots": 5, "queries": 15}, episodes=300)
SMOKE = replace(
    SMALL, entries=(_entries(2, 2)[0],), family={"ways": 5, "shots": 1, "queries": 1, "network": "conv"}, episodes=2
)
ONE_RUN = "One training run of each method; the intervals are over test tasks only."
TRANSDUCTIVE = "Batch statistics of the queries at test (transductive); the authors have running averages."
REPRODUCTION = Reproduction(
    name="union-vs-maml",
    title="Multi-task training against meta-learning on CIFAR-FS",
    citation="Wang, Zhao & Li 2021, Bridging Multi-Task Learning and Meta-Learning",
    arxiv="2106.09017",
    reproduces="the comparison on CIFAR-FS",
    metric="accuracy (%), transductive, 240 images a class where the packed data serve",
    interval="95% confidence interval over tasks",
    published=(Published(setting(UNION), 84.1, 0.1, "authors' README, ResNet-12"),),
    claims=(
        Claim("Multi-task training with a head per task and a new head at test comes within 5 points of R2-D2.",
              "abstract", (setting(R2D2), setting(UNION)), "near", margin=5.0),
        Claim("It is ahead of MAML.", "results", (setting(MAML), setting(UNION))),
        Claim("One head for all tasks learns next to nothing of use, since labels differ from task to task.",
              "the lecture", (setting(SHARED), setting(UNION)), margin=5.0),
    ),
    scales={
        "smoke": Scale(SMOKE, "One training of 2 iterations, two tests of 2 tasks, a smaller net: shows that it runs.",
                       ("Far too short to compare numbers.",), conclusive=False, compile_quickly=True),
        "small": Scale(
            SMALL,
            "32 x 32; 4 blocks of a 3 x 3 convolution with 64 filters, batch normalisation, max-pooling, ReLU; 256 "
            "features. One task of 25 + 75 images an iteration, Adam from 3e-3 to 0 as a cosine: union with heads per "
            "task 3,000 iterations, whose step is the cheapest; R2-D2, ANIL (5 steps of .05) and MAML (1 step of .1) "
            "1,000; union with one head 500. Heads per task: 40 training tasks of fixed classes, whose support and "
            "query images serve alike; at test a new head by 100 steps of .1, or everything by 5 steps of .1. 300 "
            "test tasks.",
            ("A net of four convolutions; the published number is that of ResNet-12.",
             "A new head is fitted by gradient descent, in place of a logistic regression with an l2 penalty.",
             "240 images a class in place of 600, where the packed data serve.", TRANSDUCTIVE, ONE_RUN),
        ),
        "full": Scale(
            FULL,
            "The same with ResNet-12, 2,000 training tasks and 20 times the iterations.",
            ("A new head is fitted by gradient descent, in place of a logistic regression with an l2 penalty.",
             "240 images a class in place of 600, where the packed data serve.", TRANSDUCTIVE, ONE_RUN),
        ),
    },
    experiment=experiment,
)  # fmt: skip
