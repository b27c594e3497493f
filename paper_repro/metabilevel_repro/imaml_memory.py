"""Memory and time of a meta-gradient: Figure 2b of Rajeswaran, Finn, Kakade & Levine 2019 (arXiv:1909.04630)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "MAML": ("maml", {}),
    "first-order MAML": ("fomaml", {}),
    "iMAML, CG 2": ("imaml", {"cg_steps": 2}),
    "iMAML, CG 5": ("imaml", {"cg_steps": 5}),
    "iMAML, CG 10": ("imaml", {"cg_steps": 10}),
}
FEW, MANY = 1, 16


@dataclass(frozen=True)
class Settings:
    """One task of `ways` and `shots` for a `network` of the family; every time is the least of `repeats`,
    taken in turns, so that what else the machine does falls on all alike."""

    methods: tuple[str, ...] = tuple(METHODS)
    steps: tuple[int, ...] = (1, 2, 5, 10, 16)
    ways: int = 20
    shots: int = 5
    network: str = "conv-flatten"
    filters: int = 64
    repeats: int = 30


MEMORY: dict[str, dict[int, float]] = {  # as a fraction of the largest
    "MAML": {1: 0.105, 2: 0.165, 5: 0.29, 8: 0.47, 10: 0.59, 12: 0.71, 16: 0.96},
    "first-order MAML": {1: 0.08, 16: 0.08},
    "iMAML, CG 2": {1: 0.11, 16: 0.11},
    "iMAML, CG 5": {1: 0.11, 16: 0.11},
    "iMAML, CG 10": {1: 0.11, 16: 0.11},
}
SECONDS: dict[str, dict[int, float]] = {
    "MAML": {1: 0.122, 2: 0.145, 5: 0.22, 10: 0.342, 16: 0.503},
    "first-order MAML": {1: 0.117, 16: 0.16},
    "iMAML, CG 2": {1: 0.21, 16: 0.29},
    "iMAML, CG 5": {1: 0.245, 16: 0.345},
    "iMAML, CG 10": {1: 0.32, 16: 0.414},
}


def growth(of: str, method: str) -> str:
    """The name of the row with what `of` (memory, time) is at many inner steps, relative to few."""
    return f"{of} of {MANY} inner steps over that of {FEW}, {method}"


def beside(steps: int, method: str) -> str:
    """The name of the row with the time of `method` relative to MAML's."""
    return f"time over MAML's, {steps} inner step{'s' if steps > 1 else ''}, {method}"


def _ratios(
    memory: Mapping[str, Mapping[int, float | int]], seconds: Mapping[str, Mapping[int, float]]
) -> dict[str, float]:
    """The rows, of measured numbers or of those of the figure."""
    found = {growth("memory", name): values[MANY] / values[FEW] for name, values in memory.items()}
    found |= {growth("time", name): values[MANY] / values[FEW] for name, values in seconds.items()}
    others = {name: values for name, values in seconds.items() if name != "MAML"}
    return found | {
        beside(k, name): values[k] / seconds["MAML"][k] for k in (FEW, MANY) for name, values in others.items()
    }


PUBLISHED = tuple(
    Published(name, round(value, 2), None, "Figure 2b", "figure") for name, value in _ratios(MEMORY, SECONDS).items()
)
CLAIMS = (
    Claim("MAML's memory grows with the inner steps.", "Figure 2b", (4.0, growth("memory", "MAML"))),
    *[
        Claim(f"That of {name} does not.", "Figure 2b", (1.0, growth("memory", name)), "near", margin=0.1)
        for name in METHODS
        if name != "MAML"
    ],
    Claim("With one inner step MAML is faster than an implicit gradient.", "Figure 2b",
          (1.0, beside(FEW, "iMAML, CG 2"))),
    *[
        Claim(f"With {MANY} inner steps {name} is faster than MAML.", "Figure 2b", (beside(MANY, name), 1.0))
        for name in METHODS
        if name.startswith("iMAML")
    ],
    Claim("Each conjugate gradient takes its time.", "Figure 2b",
          tuple(beside(FEW, f"iMAML, CG {cg}") for cg in (2, 5, 10))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Compiles the meta-gradient of one task, reads the compiler's plan, and runs it."""
    import jax

    tasks = mb.load_tasks("omniglot")(ways=s.ways, shots=s.shots, network=s.network, filters=s.filters)
    key = lab.key(2)
    x, batch = tasks.subject.init(key), mb.sample_batch(tasks, key, "train", 1)
    memory, programs = {}, {}
    for name in s.methods:
        plugin, options = METHODS[name]
        memory[name] = {}
        for k in s.steps:
            nested = mb.load_method(plugin)(tasks.subject, learning_rate=0.1, steps=k, **options).estimator
            meta_gradient = lambda x, batch, nested=nested: nested(x, batch, None, key)[0]
            programs[name, k] = jax.jit(meta_gradient).lower(x, batch).compile()
            memory[name][k] = _temporary(programs[name, k])
    rounds = [{run: _timed(program, x, batch) for run, program in programs.items()} for _ in range(s.repeats)]
    seconds = {name: {k: min(times[name, k] for times in rounds) for k in s.steps} for name in s.methods}
    panels = [
        _panel("memory", _curves(memory)),
        _panel("time", _curves(seconds)),
        _panel("memory: Figure 2b, read by eye", _curves(MEMORY, style="paper")),
        _panel("time: Figure 2b, read by eye", _curves(SECONDS, style="paper")),
    ]
    return Outcome(_ratios(memory, seconds), panels)


def _temporary(compiled: Any) -> int:
    """Bytes beside arguments and results, as the compiler plans."""
    return compiled.memory_analysis().temp_size_in_bytes


def _timed(compiled: Any, x: Any, batch: Any) -> float:
    import jax

    begun = time.perf_counter()
    jax.block_until_ready(compiled(x, batch))
    return time.perf_counter() - begun


def _curves(values: Mapping[str, Mapping[int, float | int]], **style: Any) -> list[Curve]:
    unit = values["MAML"][FEW]
    return [Curve(name, list(at), [v / unit for v in at.values()], **style) for name, at in values.items()]


def _panel(title: str, curves: list[Curve]) -> Panel:
    return Panel(title, "inner steps", f"relative to MAML of {FEW} step", curves)


FULL = Settings()
SMALL = replace(FULL, steps=(1, 5, 10, 16), filters=16)
SMOKE = replace(FULL, methods=("MAML", "iMAML, CG 5"), steps=(FEW, MANY), ways=2, shots=1, network="mlp", repeats=1)
PROTOCOL = (
    "Omniglot, 28 x 28; 4 blocks of a 3 x 3 convolution with {} filters and stride 2, batch normalisation, ReLU; the "
    "whole last map, linear head. 20-way 5-shot, one task; inner steps of gradient descent at .1; iMAML's strength 2. "
    "Memory: the temporary bytes of the compiler's plan. Time: the least of 30 runs, in rounds through all programs."
)
DEPARTURES = (
    "The paper measures a whole outer step on a GPU, of which part does not depend on the method; here it is one "
    "task's meta-gradient on this machine. Ratios of the figure's values, read by eye, are compared.",
)
REPRODUCTION = Reproduction(
    name="imaml-memory",
    title="Memory and time of a meta-gradient",
    citation="Rajeswaran, Finn, Kakade & Levine 2019, Meta-Learning with Implicit Gradients",
    arxiv="1909.04630",
    reproduces="Figure 2b",
    metric="ratios of temporary memory, and of time",
    interval="not given",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "Two methods, 2-way 1-shot, no convolutions, 1 and 16 inner steps, timed once: shows that it runs.",
            ("Far too small to compare numbers.", *DEPARTURES),
            tuple(p.setting for p in PUBLISHED if not p.setting.endswith(tuple(f", {name}" for name in SMOKE.methods))),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(SMALL, PROTOCOL.format(16), ("16 filters in place of 64.", *DEPARTURES)),
        "full": Scale(FULL, PROTOCOL.format(64), DEPARTURES),
    },
    experiment=experiment,
)
