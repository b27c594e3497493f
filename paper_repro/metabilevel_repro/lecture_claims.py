"""What a lecture on meta-learning says of MAML and its alternatives, claim by claim, each with its condition."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale, percent

from . import bernacchia

ALPHA = 0.01  # the inner rate on sinusoids, of MAML's paper
METHODS = {"MAML": "maml", "first-order MAML": "fomaml", "ANIL": "anil", "joint training": "union"}
CLASSIFIERS = {"MAML": "maml", "ANIL": "anil", "multi-task with a head per task": "union"}
FINE_TUNING = (0.02, 0.05)  # rates that are tried, beside ALPHA, in joint training's fine-tuning
PRODUCTS = {"below 2": 0.5, "above 2": 2.2}  # rate x curvature of a quadratic inner loss
UNSTABLE = 0.03  # a rate at which some sinusoids' inner paths leave the linear regime


@dataclass(frozen=True)
class Settings:
    """Of sinusoids (`methods`, `iterations`, `meta_batch`, `episodes`), of Omniglot, and of the inner paths.

    `shown` are inner steps at test; `path` the three along which gradients are followed on `path_tasks` tasks;
    `memory` the two whose memory is compared; `runs` those of mixed linear regression. No `path`, no `runs` and
    no `omniglot_iterations` leave that part out.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    iterations: int = 70_000
    meta_batch: int = 25
    learning_rate: float = 1e-3
    episodes: int = 600
    shown: tuple[int, ...] = (0, 1, 5, 10)
    path: tuple[int, ...] = (1, 20, 100)
    path_tasks: int = 200
    memory: tuple[int, int] = (64, 256)
    runs: int = 1_000
    omniglot_iterations: int = 10_000
    omniglot_pool: int = 1_000
    filters: int = 64


def sine(method: str, steps: int) -> str:
    """The name of a row: error on sinusoids."""
    return f"{method} on sinusoids, {steps} step{'' if steps == 1 else 's'}"


def omniglot(method: str) -> str:
    """The name of a row: accuracy on Omniglot."""
    return f"Omniglot 5-way 1-shot, {method}"


def quadratic(which: str, steps: int) -> str:
    """The name of a row: the outer gradient through a quadratic inner problem."""
    return f"quadratic, rate x curvature {which} ({PRODUCTS[which]:g}), |dy_k/dy_0| at k = {steps}"


def path(rate: float, statistic: str, end: str) -> str:
    """The name of a row: norms of the outer gradient along inner paths of sinusoids."""
    return f"outer gradient, rate {rate:g}, {statistic} at the {end} k"


K0 = "k = 0, |direction of MAML - gradient of joint training| / |gradient|"
QUADRATIC_STEPS = (1, 20)
ENDS = ("first", "middle", "last")
TAIL, MEDIAN = "95th percentile", "median"
MEMORY = {"Unroll()": "memory, four times the steps, all kept: factor",
          "Unroll(checkpoint='sqrt')": "memory, four times the steps, square-root checkpoints: factor",
          "Unroll(first_order=True)": "memory, four times the steps, first order: factor"}  # fmt: skip
TANGENT = {rate: f"tangent model, untrained, rate {rate:g}: relative error of a step" for rate in (3e-3, 3e-4)}
TANGENT_TRAINED = f"tangent model, after MAML, rate {ALPHA:g}: relative error of 10 steps"
TANGENT_RATIO = "tangent model, untrained, error at ten times the rate: factor"


def negative(low: float, high: float) -> str:
    """The name of a row: how much worse the higher training rate is in mixed linear regression."""
    return f"mixed linear regression, loss at training rate {high:g} less that at {low:g}"


CLAIMS = (
    Claim("Training with k = 0 inner steps is joint training: the directions agree to rounding.", "(a)",
          (0.0, K0), "near", margin=1e-5),
    Claim("Joint training without heads fails where tasks contradict one another: on sinusoids, fine-tuned by ten "
          "steps at the best of three rates, it stays far behind MAML after one.", "(b)",
          (sine("MAML", 1), sine("fine-tuned joint training", 10)), margin=0.5),
    Claim("With a head for each training task, joint training is competitive in classification: at most 2 points "
          "below MAML (on larger data: union-vs-maml).", "(b)",
          (omniglot("MAML"), omniglot("multi-task with a head per task")), margin=-2.0),
    Claim("The outer gradient vanishes along a long inner path where rate x curvature is between 0 and 2.", "(c)",
          (quadratic("below 2", 20), quadratic("below 2", 1))),
    Claim("It explodes where rate x curvature is above 2.", "(c)", (quadratic("above 2", 1), quadratic("above 2", 20))),
    Claim(f"In a net, at a small rate ({ALPHA:g}) most tasks' gradients shrink from the first k to the last.", "(c)",
          (path(ALPHA, MEDIAN, "last"), path(ALPHA, MEDIAN, "first"))),
    Claim(f"In a net, the tail of its tasks' gradients grows again along the path at a rate of {UNSTABLE:g}.", "(c)",
          (path(UNSTABLE, TAIL, "middle"), path(UNSTABLE, TAIL, "last"))),
    Claim("Memory of the unrolled gradient grows like k: four times the steps, four times the memory.", "(d)",
          (4.0, MEMORY["Unroll()"]), "near", margin=0.4),
    Claim("With checkpoints it grows like the square root of k.", "(d)",
          (2.0, MEMORY["Unroll(checkpoint='sqrt')"]), "near", margin=0.4),
    Claim("First-order MAML comes close to MAML at equal iterations, within .3 after one step on sinusoids.", "(e)",
          (sine("MAML", 1), sine("first-order MAML", 1)), "near", margin=0.3),
    Claim("First-order MAML is a little behind MAML at equal iterations.", "(e)",
          (sine("MAML", 1), sine("first-order MAML", 1))),
    Claim("More inner steps at test than in training (one) help, on sinusoids.", "(f)",
          (sine("MAML", 10), sine("MAML", 1), sine("MAML", 0))),
    Claim("Adapting the head alone is nearly as good in few-shot classification: ANIL is at most 2 points below MAML.",
          "(g)", (omniglot("MAML"), omniglot("ANIL")), margin=-2.0),
    Claim("Adapting the head alone is nearly as good on sinusoids too: within .3 of MAML after one step.", "(g)",
          (sine("MAML", 1), sine("ANIL", 1)), "near", margin=0.3),
    Claim("A negative inner rate in training can be better than none, at a positive one at test: in over-parametrised "
          "mixed linear regression.", "(h)", (0.0, negative(-0.2, 0.0))),
    Claim("There, none is better than a positive one.", "(h)", (0.0, negative(0.0, 0.2))),
    Claim("A step of fine-tuning is one of the linearised model, with a relative error proportional to the rate "
          "(a smooth net).", "(i)",
          (10.0, TANGENT_RATIO), "near", margin=2.0),
    Claim("At MAML's own rate, the fine-tuning of MAML's net is more than 10% away from its linearised model.", "(i)",
          (0.1, TANGENT_TRAINED)),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Part after part; none depends on another, but for MAML's trained net."""
    tasks = mb.load_tasks("sinusoid")()
    x, errors, panel = _sinusoids(tasks, s, lab)
    tangent, linearised = _tangent(tasks, x, lab)
    gradients, paths = _paths(tasks, s, lab) if s.path else ({}, [])
    classification = _omniglot(s, lab) if s.omniglot_iterations else {}
    regression = _negative_rates(s, lab) if s.runs else {}
    rest = {**_memory(tasks, s, lab), **regression, **tangent}
    measured = {**_joint(tasks, lab), **errors, **classification, **_quadratic(lab), **gradients, **rest}
    return Outcome(measured, [panel, *paths, linearised])


def _joint(tasks: mb.TaskDistribution, lab: Lab) -> dict[str, Any]:
    """(a): MAML's direction of k = 0 steps beside the gradient of the queries' mean loss."""
    import jax
    from jax.flatten_util import ravel_pytree

    key, learner = lab.key(2), tasks.subject
    x, batch = learner.init(key), mb.sample_batch(tasks, key, "train", 25)
    estimator = mb.load_method("maml")(learner, steps=0).estimator
    direction = jax.jit(lambda x: estimator(x, batch, None, key)[0])(x)
    loss = lambda x: jax.vmap(lambda task: learner.fit(x, task.query))(batch).mean()
    a, b = (ravel_pytree(tree)[0] for tree in (direction, jax.jit(jax.grad(loss))(x)))
    return {K0: float(abs(a - b).max() / abs(b).max())}


def _sinusoids(tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> tuple[Any, dict[str, Any], Panel]:
    """(b), (e), (f), (g): MAML's x; errors after each number of steps, of four trainings of as many iterations."""
    import optax

    adam = optax.adam(optax.cosine_decay_schedule(s.learning_rate, s.iterations))
    trained, measured, curves = {}, {}, []
    for name in s.methods:
        method = mb.load_method(METHODS[name])(tasks.subject, learning_rate=ALPHA, steps=1)
        trained[name] = x = lab.fit(f"sinusoids, {name}: training", method, tasks, adam,
                                    steps=s.iterations, meta_batch=s.meta_batch)  # fmt: skip
        found = _errors(f"sinusoids, {name}: test", method, x, tasks, s, lab)
        measured |= {sine(name, k): error for k, error in found.items()}
        curves.append(Curve(name, s.shown, [i.mean for i in found.values()], [i.ci95 for i in found.values()]))
    last = s.shown[-1]
    tuned = [mb.load_method("union")(tasks.subject, learning_rate=rate) for rate in FINE_TUNING]
    ends = [measured[sine("joint training", last)]] + [
        _errors("sinusoids, joint training: fine-tuning", method, trained["joint training"], tasks, s, lab)[last]
        for method in tuned
    ]
    measured[sine("fine-tuned joint training", last)] = min(ends, key=lambda error: error.mean)
    panel = Panel("sinusoids", "gradient steps at test", "mean squared error", curves, log="y")
    return trained["MAML"], measured, panel


def _errors(
    label: str, method: mb.Method, x: Any, tasks: mb.TaskDistribution, s: Settings, lab: Lab
) -> Mapping[Any, mb.Interval]:
    found = lab.evaluate(label, method, x, tasks, episodes=s.episodes, steps=s.shown)
    return {steps: metrics["loss"] for steps, metrics in found.items()}


def _omniglot(s: Settings, lab: Lab) -> dict[str, Any]:
    """(b), (g): classification by MAML, by ANIL, and by multi-task training whose new head alone is fitted at test."""
    import optax

    tasks = mb.load_tasks("omniglot")(queries=5, filters=s.filters, pool=s.omniglot_pool)
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, s.omniglot_iterations))
    loop = {"learning_rate": 2.0, "steps": 1, "test_steps": 5}
    options = {"union": {"heads": "per-task", "learning_rate": 2.0, "steps": 5, "adapts": "head"}}
    measured = {}
    for name, plugin in CLASSIFIERS.items():
        method = mb.load_method(plugin)(tasks.subject, **options.get(plugin, loop))
        x = lab.fit(f"{omniglot(name)}: training", method, tasks, adam, steps=s.omniglot_iterations, meta_batch=8)
        found = lab.evaluate(f"{omniglot(name)}, {tasks.subject.protocol}", method, x, tasks, episodes=s.episodes)
        measured[omniglot(name)] = percent(found[None]["accuracy"])
    return measured


def _quadratic(lab: Lab) -> dict[str, Any]:
    """(c): dy_k/dy_0 = (1 - rate x curvature)^k for G(y) = y^2 / 2 and F = y."""
    import jax.numpy as jnp
    import optax

    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: y**2 / 2,
        outer_loss=lambda x, y, task, key: y,
    )
    measured = {}
    for which, product in PRODUCTS.items():
        for k in QUADRATIC_STEPS:
            solver = mb.GradientDescent(optax.sgd(product), k)
            gradient = mb.hypergradient(problem, jnp.array(1.0), None, key=lab.key(2), solver=solver)[1]
            measured[quadratic(which, k)] = abs(float(gradient))
    return measured


def _paths(tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> tuple[dict[str, Any], list[Panel]]:
    """(c): norms of the outer gradient of an untrained net against the number of inner steps, at two rates."""
    x, measured, curves = tasks.subject.init(lab.key(2)), {}, []
    for rate in (ALPHA, UNSTABLE):
        method = mb.load_method("maml")(tasks.subject, learning_rate=rate)
        found = mb.gradients(method, x, tasks, key=lab.key(3), steps=s.path, episodes=s.path_tasks)
        rows = [row for row in found.rows if row["norm"] == "outer gradient"]
        for statistic in (MEDIAN, TAIL):
            norms = [row[statistic] for row in rows]
            measured |= {path(rate, statistic, end): n for end, n in zip(ENDS, norms, strict=True)}
            curves.append(Curve(f"rate {rate:g}, {statistic}", s.path, norms))
    return measured, [Panel("untrained net, sinusoids", "inner steps k", "|outer gradient|", curves, log="xy")]


def _memory(tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> dict[str, Any]:
    """(d): how much more memory the compiler plans for the larger number of inner steps."""
    method = mb.load_method("maml")(tasks.subject, learning_rate=ALPHA)
    found = mb.memory(method, tasks.subject.init(lab.key(2)), tasks, steps=s.memory)
    sizes = {(row["adjoint"], row["steps"]): row["bytes"] for row in found.rows}
    few, many = s.memory
    return {name: sizes[adjoint, many] / sizes[adjoint, few] for adjoint, name in MEMORY.items()}


def _negative_rates(s: Settings, lab: Lab) -> dict[str, Any]:
    """(h): by the reproduction of Bernacchia 2021."""
    found = bernacchia.experiment(bernacchia.Settings(runs=s.runs), lab).measured
    return {negative(low, high): found[bernacchia.rise("training", low, high)] for low, high in bernacchia.FALLING}


def _tangent(tasks: mb.TaskDistribution, x: Any, lab: Lab) -> tuple[dict[str, Any], Panel]:
    """(i): |f - f_lin| / |f - f_0| on the queries of one task, of an untrained net (tanh) and of MAML's."""
    smooth = mb.load_tasks("sinusoid")(network="tanh-64-64")

    def errors(start: str, tasks: mb.TaskDistribution, x: Any, rate: float) -> list[float]:
        method = mb.load_method("maml")(tasks.subject, learning_rate=rate, steps=10)
        rows = mb.tangent(method, x, tasks, key=lab.key(4)).rows
        return [row["relative"] for row in rows if row["start"] == start]

    found = {TANGENT[rate]: errors("fresh", smooth, smooth.subject.init(lab.key(2)), rate) for rate in TANGENT}
    found[TANGENT_TRAINED] = errors("meta-trained", tasks, x, ALPHA)
    curves = [Curve(name.split(", ", 1)[1].split(":")[0], list(range(1, 11)), y) for name, y in found.items()]
    large, small = (found[name][0] for name in TANGENT.values())
    measured = {**dict(zip(TANGENT.values(), (large, small), strict=True)), TANGENT_TRAINED: found[TANGENT_TRAINED][-1]}
    panel = Panel("linearised against real", "inner steps", "|f - f_lin| / |f - f₀|", curves, log="y")
    return {**measured, TANGENT_RATIO: large / small}, panel


FULL = Settings()
SMALL = replace(
    FULL,
    iterations=10_000,
    learning_rate=3e-3,
    path_tasks=100,
    runs=100,
    omniglot_iterations=600,
    omniglot_pool=500,
    filters=32,
    episodes=300,
)
SMOKE = replace(
    SMALL,
    methods=("MAML", "joint training"),
    iterations=2,
    shown=(0, 1, 10),
    path=(),
    memory=(1, 4),
    runs=0,
    omniglot_iterations=0,
    episodes=10,
)
PROTOCOL = (
    "(a) One batch of 25 sinusoids, an untrained net. (b, e, f, g) Sinusoids of Finn et al. 2017, 10 + 10 points, net "
    "1-40-40-1: {iterations} iterations of 25 tasks for every method, one inner step at .01, Adam whose rate falls "
    "from {rate} to 0 as a cosine, weights of standard deviation 1/sqrt(inputs). Joint training is fine-tuned at .01, "
    ".02 and .05, and the best on the test tasks themselves is taken, in its favour. Omniglot 5-way 1-shot, {filters} "
    "filters, {pool} training tasks of fixed characters, {omniglot} iterations of 8 tasks with 5 queries of a class; 5 "
    "steps at test at 2.0 on the mean loss; of the multi-task net only a new head. (c) G(y) = y^2 / 2; and an "
    "untrained net for sinusoids, {tasks} tasks, 1, 20 and 100 steps. (d) Bytes that the compiler plans, 64 and 256 "
    "steps. (h) The reproduction bernacchia-negative-rates, {runs} runs. (i) One sinusoid; an untrained net 1-64-64-1 "
    "(tanh) at 3e-3 and 3e-4, and MAML's net of (b) at its .01. "
)
DEPARTURES = (
    "A lecture has no table: every claim is tested on what can show it, and its sentence says on what.",
    "One training run; intervals are over test tasks. Norms, bytes and errors of the tangent model have none.",
)
REPRODUCTION = Reproduction(
    name="lecture-claims",
    title="Claims about MAML and its alternatives",
    citation="A lecture on meta-learning, whose claims (a) to (i) have no publication of their own",
    arxiv="",
    reproduces="claims (a) to (i)",
    metric="sinusoids: mean squared error; Omniglot: accuracy (%); else as the row says",
    interval="there is none",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 2 iterations, 10 test tasks, and 1 and 4 steps in (d), without (e), (g), (h), "
            "Omniglot and the net of (c): shows that it runs.",
            ("Far too short to judge the claims.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL.format(iterations="10,000", rate="3e-3", filters=32, pool=500, omniglot=600, tasks=100, runs=100)
            + "300 test tasks.",
            DEPARTURES,
        ),
        "full": Scale(
            FULL,
            PROTOCOL.format(
                iterations="70,000", rate="1e-3", filters=64, pool="1,000", omniglot="10,000", tasks=200, runs="1,000"
            )
            + "600 test tasks.",
            DEPARTURES,
        ),
    },
    experiment=experiment,
)
