"""The public bilevel benchmark (Dagreou, Ablin, Vaiter & Moreau 2022, arXiv:2201.13409, section 4, and its code since).

An oracle call is one gradient, Hessian product or cross product of one loss on one minibatch of 64. The step of y is
`rate`, and that of x is rate / ratio, which is the benchmark's convention.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale

BATCH = 64
INNER = 10  # inner steps, and terms or steps of a linear system, of the methods that take several
METHODS = {
    "soba": ("SOBA", {}),
    "saba": ("SABA", {}),
    "stocbio": ("stocBiO", {"inner_steps": INNER, "terms": INNER}),
    "amigo": ("AmIGO", {"inner_steps": INNER, "linear_steps": INNER}),
    "mrbo": ("MRBO", {"terms": INNER}),
    "srba": ("SRBA", {}),
    "bsa": ("BSA", {"inner_steps": INNER, "terms": INNER}),
    "f2sa": ("F2SA", {"inner_steps": INNER}),
    "bome": ("BOME", {"inner_steps": INNER}),
    "pbgd": ("PBGD", {"inner_steps": 1}),
}
PAPER = ("soba", "saba", "stocbio", "amigo", "mrbo", "bsa")  # those that the paper compares; the others came later
GAP, GRADIENT, VALUE, ERROR, VALIDATION = "h - min h", "|grad h|^2", "h", "test error", "validation error"


class Judged(NamedTuple):
    """The names of the scores that are drawn, by which steps are tuned, and that are above the start's where a run
    diverged."""

    drawn: str
    tuned: str
    value: str


JUDGED = {
    "bilevel-quadratics": Judged(GAP, GAP, GAP),
    "bilevel-ijcnn1": Judged(GRADIENT, GRADIENT, VALUE),
    "bilevel-cleaning": Judged(ERROR, VALIDATION, VALIDATION),
}


@dataclass(frozen=True)
class Problem:
    """A task family with its options; every run has so many oracle `calls`; the grid is rates times ratios."""

    family: str
    options: dict[str, Any]
    rates: tuple[float, ...]
    ratios: tuple[float, ...]
    calls: int
    double: bool = True


@dataclass(frozen=True)
class Settings:
    """Each of `methods`, tuned on every problem by one run a cell, and then run with `seeds` others."""

    problems: dict[str, Problem]
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 10
    checkpoints: int = 20


class Run(NamedTuple):
    """What was seen at the checkpoints: oracle calls and seconds until then, and the scores."""

    calls: list[float]
    seconds: list[float]
    scores: list[dict[str, float]]


def row(problem: str, what: str, method: str) -> str:
    """The name of a row."""
    return f"{problem}: {what}, {METHODS[method][0]}"


def rank(problem: str, what: str, among: str = "the paper's methods") -> str:
    """The name of the row with SABA's rank, by the median over runs."""
    return f"{problem}: rank by {what}, SABA among {among}"


def calls(method: str, options: dict[str, int], blocks: list[int]) -> float:
    """Oracle calls of a step, on average; `blocks` are the minibatches of the inner and of the outer loss.

    SRBA evaluates its four oracles at two points, and all examples once in as many steps as there are minibatches.
    """
    inner, outer = blocks
    steps, system = float(options.get("inner_steps", 0)), options.get("terms", options.get("linear_steps", 0))
    match method:
        case "soba" | "saba":
            return 4.0
        case "stocbio" | "amigo":
            return steps + system + 2
        case "bsa":
            return steps + (system - 1) / 2 + 2
        case "mrbo":
            return 2.0 * (system + 3)
        case "srba":
            period = inner + outer
            return (8 * (period - 1) + 3 * inner + outer) / period
        case "f2sa":
            return 3 * steps + 3
        case _:
            return steps + 3


QUADRATICS, IJCNN1, CLEANING = "quadratics", "ijcnn1", "cleaning p=.5"
CLAIMS = (
    *[
        Claim(f"By the end SABA is among the two best of the paper's methods: {problem}.", "Figure 2",
              (rank(problem, what), 2.5))
        for problem, what in ((IJCNN1, GRADIENT), (CLEANING, ERROR))
    ],
    Claim("With constant steps SABA converges, and ends below SOBA: quadratics.", "section 3",
          (row(QUADRATICS, f"log10 {GAP}", "saba"), row(QUADRATICS, f"log10 {GAP}", "soba"))),
)  # fmt: skip


# the step size and the outer ratio that came out best
TUNED = {
    QUADRATICS: {"saba": (0.1, 1.0), "stocbio": (0.1, 1.0), "amigo": (0.01, 0.1), "mrbo": (0.1, 0.1),
                 "srba": (0.1, 1.0), "f2sa": (0.1, 1.0)},
    IJCNN1: {"soba": (0.03125, 0.01), "saba": (0.125, 1.0), "stocbio": (0.125, 1.0), "amigo": (0.125, 0.1**0.5),
             "mrbo": (0.5, 0.1**1.5), "srba": (0.25, 1.0), "bsa": (0.5, 0.01)},
    CLEANING: {"soba": (1.0, 1e-4), "saba": (0.1, 1e-3), "stocbio": (0.01, 1e-5), "amigo": (0.001, 1e-5),
               "mrbo": (0.1, 1e-4), "srba": (0.001, 1e-5), "bsa": (0.1, 1e-5)},
}  # fmt: skip
CONFIGS = {QUADRATICS: "quadratics_021424", IJCNN1: "ijcnn1", CLEANING: "datacleaning0_5"}
PUBLISHED = {
    (problem, method): [
        Published(
            row(problem, f"tuned {what}", method), value, None, f"config/{CONFIGS[problem]}_best_params.yml", "code"
        )
        for what, value in zip(("rate", "ratio"), pair, strict=True)
    ]
    for problem, best in TUNED.items()
    for method, pair in best.items()
}


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Tunes and runs every method on every problem; compilation and judgements are not timed."""
    import jax

    measured, by_calls, by_time = {}, [], []
    for name, problem in s.problems.items():
        with jax.enable_x64(problem.double):
            found, runs = _problem(name, problem, s, lab)
        measured |= found
        drawn = JUDGED[problem.family].drawn
        by_calls.append(Panel(name, "thousand oracle calls", drawn, _curves(runs, drawn, "calls", 1e3), log="xy"))
        by_time.append(Panel(name, "seconds", drawn, _curves(runs, drawn, "seconds"), log="xy"))
    return Outcome(measured, [*by_calls, *by_time])


def _problem(name: str, problem: Problem, s: Settings, lab: Lab) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    import numpy as np

    from metabilevel.evaluation import interval

    tasks: Any = mb.load_tasks(problem.family)(**problem.options)
    blocks = [-(-len(part.targets) // BATCH) for part in tasks.task[:2]]
    judge, walk = _judge(problem.family, tasks), _walker(tasks)
    judged, measured, runs = JUDGED[problem.family], {}, {}
    for method in s.methods:
        cost = calls(method, METHODS[method][1], blocks)
        last = max(1, round(problem.calls / cost))
        start = 0 if last < s.checkpoints else last // 100
        stops = sorted({*np.geomspace(max(1, start), last, s.checkpoints).astype(int).tolist(), last})

        def run(cell: tuple[float, float], stops: list[int], use: int, method=method, cost=cost) -> Run:
            rate, ratio = cell
            made = mb.load_method(method)(tasks.subject, batch=BATCH, **_options(method, rate))
            return walk(made, rate / ratio, stops, cost, judge, lab.key(use))

        cells = [(rate, ratio) for rate in problem.rates for ratio in problem.ratios]
        # one after the other: side by side SRBA would pass over all examples in every step, under whatever condition
        grid = {cell: run(cell, [last], 2).scores for cell in cells}
        best = min(grid, key=lambda cell, grid=grid: _end(grid[cell][-1], judged.tuned))
        runs[method] = [run(best, stops, 3 + seed) for seed in range(s.seeds)]
        for what in runs[method][0].scores[0]:
            values = np.array([each.scores[-1][what] for each in runs[method]], float)
            if what in (GAP, GRADIENT):
                what, values = f"log10 {what}", np.log10(np.maximum(values, np.finfo(float).tiny))
            measured[row(name, what, method)] = interval(values)
        seconds = [each.calls[-1] / each.seconds[-1] for each in runs[method]]
        measured[row(name, "oracle calls a second", method)] = interval(np.array(seconds))
        measured[row(name, "tuned rate", method)], measured[row(name, "tuned ratio", method)] = best
        diverged = sum(not _end(end, judged.value) < start[judged.value] for start, end in grid.values())
        measured[row(name, f"diverged of {len(cells)} cells", method)] = float(diverged)
    for what in dict.fromkeys((judged.drawn, judged.value)):
        medians = {m: np.median([_end(each.scores[-1], what) for each in runs[m]]) for m in runs}
        better = {method for method, median in medians.items() if median < medians["saba"]}
        measured[rank(name, what)] = 1.0 + len(better & {*PAPER})
        measured[rank(name, what, "all")] = 1.0 + len(better)
    return measured, runs


def _options(method: str, rate: float) -> dict[str, Any]:
    options = {"learning_rate": rate, **METHODS[method][1]}
    return options | {"inner_learning_rate": rate} if method == "bome" else options


def _end(scores: dict[str, float], what: str) -> float:
    """A score, which is infinite where it is no number."""
    return float("inf") if math.isnan(scores[what]) else scores[what]


def _walker(tasks: Any) -> Callable[..., Run]:
    """Descends x by rate times the direction of a method; one compilation serves all rates and numbers of steps."""
    import equinox as eqx
    import jax
    import optax

    batch = jax.tree.map(lambda a: a[None], tasks.task)

    @eqx.filter_jit
    def begin(method: mb.Method, batch: Any, key: Any) -> Any:
        x = method.init(key)
        return x, method.estimator.init(x, batch, key)

    @eqx.filter_jit
    def advance(method: mb.Method, batch: Any, state: Any, rate: Any, start: Any, stop: Any, key: Any) -> Any:
        def step(i: Any, state: Any) -> Any:
            direction, carry, _ = method.estimator(state[0], batch, state[1], jax.random.fold_in(key, i))
            return optax.tree.add_scale(state[0], -rate, direction), carry

        return jax.lax.fori_loop(start, stop, step, state)

    def walk(method: mb.Method, rate: float, stops: list[int], cost: float, judge: Any, key: Any) -> Run:
        state = begin(method, batch, key)
        seconds, run = 0.0, Run([], [], [])
        for start, stop in zip([0, 0, *stops], [0, *stops], strict=False):  # no step at first, which compiles
            begun = time.perf_counter()
            given = jax.numpy.asarray(rate), jax.numpy.asarray(start), jax.numpy.asarray(stop)
            state = jax.block_until_ready(advance(method, batch, state, *given, key))
            if stop:
                seconds += time.perf_counter() - begun
            memory, _, _ = state[1]
            score = {name: float(value) for name, value in judge(state[0], memory.y).items()}
            run.calls.append(stop * cost)
            run.seconds.append(seconds)
            run.scores.append(score)
        return run

    return walk


def _judge(family: str, tasks: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """The scores of x and of the y that a method holds: those of y as it is for cleaning, as in the benchmark."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from metabilevel_bilevel.quadratics import value_function

    key, problem, solver = jax.random.key(0), tasks.subject.problem, tasks.subject.solver
    match family:
        case "bilevel-quadratics":
            h = value_function(tasks.task)
            return lambda x, y: {GAP: h.gap(x)}
        case "bilevel-ijcnn1":
            adjoint = mb.Implicit(mb.Dense())

            @eqx.filter_jit
            def hypergradient(x: Any, y: Any, task: Any) -> dict[str, Any]:
                reached, gradient = adjoint.hypergradient(problem, solver, x, task, key, lambda y0: y)
                return {GRADIENT: jnp.sum(gradient**2), VALUE: reached.value}

            return lambda x, y: hypergradient(x, y, tasks.task)
        case _:
            held = [tasks.sample(key, split) for split in ("test", "valid")]

            @eqx.filter_jit
            def errors(x: Any, y: Any, held: Any) -> dict[str, Any]:
                found = [problem.objective(x, y, task, key)[1]["error"] for task in held]
                return dict(zip((ERROR, VALIDATION), found, strict=True))

            return lambda x, y: errors(x, y, held)


def _curves(runs: dict[str, list[Run]], drawn: str, along: str, unit: float = 1.0) -> list[Curve]:
    """The median over runs at each checkpoint, against the mean of `calls` or `seconds` in a unit; not the start."""
    import numpy as np

    curves = []
    for method, each in runs.items():
        scores = np.median([[_end(score, drawn) for score in run.scores[1:]] for run in each], 0)
        x = np.mean([getattr(run, along)[1:] for run in each], 0) / unit
        curves.append(Curve(METHODS[method][0], x.tolist(), scores.tolist()))
    return curves


IJCNN1_RATES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)
CLEANING_RATES, CLEANING_RATIOS = (0.001, 0.01, 0.1, 1.0), (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
FULL = Settings(
    {
        QUADRATICS: Problem("bilevel-quadratics", {}, (0.01, 0.1), (0.1, 1.0, 10.0, 100.0), 2**21),
        IJCNN1: Problem("bilevel-ijcnn1", {}, IJCNN1_RATES, (0.01, 0.1**1.5, 0.1, 0.1**0.5, 1.0), 2**22),
        **{
            f"cleaning p={str(p)[1:]}": Problem(
                "bilevel-cleaning", {"corruption": p}, CLEANING_RATES, CLEANING_RATIOS, 2**18, double=False
            )
            for p in (0.5, 0.7, 0.9)
        },
    }
)
_cut = {"corruption": 0.5, "train": 4000, "valid": 1000}
SMALL = Settings(
    {
        QUADRATICS: Problem("bilevel-quadratics", {}, (0.01, 0.1), (0.1, 1.0), 2**16),
        IJCNN1: Problem("bilevel-ijcnn1", {}, (0.125, 0.5), (0.1, 1.0), 2**18),
        CLEANING: Problem("bilevel-cleaning", _cut, (0.01, 0.1), (1e-3, 1e-2), 2**15, double=False),
    },
    seeds=3,
    checkpoints=16,
)
_tiny = {"train": 256, "valid": 128}
SMOKE = Settings(
    {
        name: replace(problem, options=problem.options | _tiny, rates=(0.1,), ratios=(1.0,), calls=400)
        for name, problem in SMALL.problems.items()
    },
    methods=("soba", "saba"),
    seeds=2,
    checkpoints=4,
)
PROTOCOL = (
    "Batches of 64. Every method is tuned on each problem by one run a cell of the grid, and then run with {seeds} "
    "other seeds, which differ in the minibatches alone; all runs of a problem have the same number of oracle calls. "
    "Steps are rate for y and the linear system and rate / ratio for x, falling as each method's paper says. Several "
    "inner steps, Neumann terms or steps of the linear system are 10. {problems} h and its gradient are those at the "
    "inner minimum, and errors are of the y that the method holds, as in the benchmark. Curves are medians."
)
DEPARTURES = (
    "The grid is searched with one seed, and a run ends after a number of oracle calls; the benchmark tunes on the "
    "median of 10 seeds and ends after 900 s.",
    "F2SA and BOME are tuned in their steps alone, and SRBA's period is the number of minibatches.",
    "The minimum of h on ijcnn1 is not known; |grad h|^2, by which the benchmark judges, rises and falls on the way "
    "from one plateau of h to the next.",
    "Minibatches are drawn independently; the benchmark goes through the data in a shuffled order.",
)
REPRODUCTION = Reproduction(
    name="bilevel-benchmark",
    title="Stochastic bilevel methods on the public benchmark",
    citation="Dagréou, Ablin, Vaiter & Moreau 2022, A framework for bilevel optimization that enables stochastic and "
    "global variance reduction algorithms",
    arxiv="2201.13409",
    reproduces="Figure 2 (ijcnn1, data cleaning) and the quadratics of the public benchmark",
    metric="by the row's name; errors are rates, losses in nats",
    interval="not given: medians of 10 runs",
    published=tuple(number for numbers in PUBLISHED.values() for number in numbers),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "SOBA and SABA with one pair of steps on 256 and 128 examples of each problem, 400 oracle calls: it runs.",
            ("Too short to judge.", *DEPARTURES),
            unmeasured=tuple(
                number.setting
                for (_, method), numbers in PUBLISHED.items()
                if method not in SMOKE.methods
                for number in numbers
            ),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL.format(
                seeds=3,
                problems="Quadratics (65,536 calls) and ijcnn1 (262,144) are whole; cleaning (32,768) has 4,000 "
                "training and 1,000 validation images, with p = .5.",
            ),
            ("Four cells of the grid, short runs, 4,000 of 20,000 training images and 3 seeds.", *DEPARTURES),
        ),
        "full": Scale(
            FULL,
            PROTOCOL.format(
                seeds=10,
                problems="All problems are whole: quadratics with 2^21 calls, ijcnn1 with 2^22, cleaning with p = .5, "
                ".7 and .9 with 2^18.",
            ),
            DEPARTURES,
        ),
    },
    experiment=experiment,
)
