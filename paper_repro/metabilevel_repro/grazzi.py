"""On the iteration complexity of hypergradient computation: Grazzi et al. 2020 (arXiv:2006.16218)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale

CG, FP, ITD = "AID-CG", "AID-FP", "reverse mode"
PROBLEMS = ("ridge regression", "logistic regression", "20 newsgroups")


@dataclass(frozen=True)
class Settings:
    """`draws` hyperparameters each, a log decay for every weight about log `decay`; errors after `iterations`, those
    of `problems`, of which the synthetic have `features`."""

    problems: tuple[str, ...] = PROBLEMS
    draws: int = 20
    decay: float = 0.1
    features: int = 100
    examples: int = 90
    words: int = 1_000
    posts: int = 1_000
    iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


def row(problem: str, method: str, which: str) -> str:
    """The name of a row: the error after the last number of iterations, how many powers of ten it is above that of
    `CG` with the same hyperparameters, or how well a line fits."""
    return f"{problem}, {method}, {which}"


LAST, WORSE = "log10 error at the last t", "log10 of its error / AID-CG's"
LINE = "R^2 of log error against t >= 8"
CLAIMS = (
    *[
        Claim(f"At equal numbers of iterations, conjugate gradients have a smaller error than {other}: {problem}.",
              "abstract and section 4", (0.0, row(problem, other, WORSE)))
        for problem in PROBLEMS for other in (FP, ITD)
    ],
    *[
        Claim(f"The error of {method} decays linearly (a straight line on a logarithmic axis): {problem}.", "section 3",
              (1.0, row(problem, method, LINE)), "near", margin=0.05)
        for problem in PROBLEMS for method in (CG, FP, ITD)
    ],
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Every method has t iterations of the same contraction y - rate dG/dy, and t for its linear system; in float64."""
    import jax
    import numpy as np

    from metabilevel.evaluation import interval

    measured, panels, late = {}, [], np.array(s.iterations) >= 8
    with jax.enable_x64(True):
        for name, learner, task in _problems(s, lab):
            found = _errors(mb.load_method("implicit-hpo")(learner, per="weight", decay=s.decay), task, s, lab)
            for method, errors in found.items():
                logs = np.log10(errors)
                measured[row(name, method, LAST)] = interval(logs[-1])
                if method != CG:
                    measured[row(name, method, WORSE)] = interval(logs[-1] - np.log10(found[CG][-1]))
                line = np.corrcoef(np.array(s.iterations)[late], logs.mean(1)[late])[0, 1] ** 2
                measured[row(name, method, LINE)] = float(line)
            curves = [Curve(method, s.iterations, (10 ** np.log10(e).mean(1)).tolist()) for method, e in found.items()]
            panels.append(Panel(name, "iterations t = k", "relative error, geometric mean", _plain(curves), log="y"))
    return Outcome(measured, panels)


def _plain(curves: list[Curve]) -> list[Curve]:
    return [replace(curve, y=[float(y) for y in curve.y]) for curve in curves]


def _problems(s: Settings, lab: Lab) -> Iterator[tuple[str, mb.Learner, mb.Episode]]:
    """Names, learners and tasks; the synthetic tasks have fewer examples than features, which are of unequal scales."""
    import jax
    import jax.numpy as jnp

    k_truth, *keys = jax.random.split(lab.key(2), 3)
    truth = jax.random.normal(k_truth, (s.features, 1))

    def points(key: Any) -> tuple[Any, Any]:
        k_inputs, k_noise = jax.random.split(key)
        inputs = jax.random.normal(k_inputs, (s.examples, s.features)) / jnp.sqrt(1 + jnp.arange(s.features))
        return inputs, inputs @ truth + 0.1 * jax.random.normal(k_noise, (s.examples, 1))

    for name in s.problems:
        match name:
            case "ridge regression":
                support, query = (mb.Data(*points(k)) for k in keys)
                yield name, mb.regression(_linear(s.features, 1)), mb.Episode(support, query)
            case "logistic regression":
                support, query = (mb.Data(x, (y[:, 0] > 0).astype(int)) for x, y in map(points, keys))
                yield name, mb.classification(_linear(s.features, 2)), mb.Episode(support, query)
            case _:
                news = mb.load_tasks("newsgroups")(words=s.words, train=s.posts, valid=s.posts, seed=lab.seed)
                yield name, news.subject, news.sample(lab.key(3), "valid")


def _linear(features: int, outputs: int) -> mb.MLP:
    return mb.MLP(features, (), outputs, init_weights="zeros")


def _errors(method: mb.Method, task: mb.Episode, s: Settings, lab: Lab) -> dict[str, Any]:
    """Relative errors [iterations, draws] of the hypergradient, by method."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.flatten_util import ravel_pytree

    problem, key = method.problem, lab.key(4)
    start, shaped = ravel_pytree(method.init(key))
    logs = start + jax.random.normal(key, (s.draws, len(start))) / 2

    def contraction(log: Any) -> Any:
        """2 / (L + mu), with L the largest curvature at zero, where that of a logistic loss is largest."""
        x = shaped(log)
        y, unflat = ravel_pytree(problem.begin(x, task, key)[1])
        product = jax.linearize(lambda y: ravel_pytree(method.solver.residual(problem, x, unflat(y), task, key))[0], y)
        step = lambda u, _: (product[1](u / jnp.linalg.norm(u)), None)
        u, _ = jax.lax.scan(step, jax.random.normal(key, y.shape), length=50)
        return 2 / (jnp.linalg.norm(u) + jnp.exp(log.min()))

    def gradients(steps: int, adjoints: Any) -> Any:
        def one(log: Any, rate: Any) -> Any:
            solver = mb.GradientDescent(optax.sgd(rate), steps)
            found = {name: adjoint(rate) for name, adjoint in adjoints.items()}
            give = lambda adjoint: adjoint.hypergradient(problem, solver, shaped(log), task, key)[1]
            return {name: ravel_pytree(give(adjoint))[0] for name, adjoint in found.items()}

        return jax.jit(lambda logs, rates: jax.lax.map(lambda pair: one(*pair), (logs, rates)))(logs, rates)

    rates = jax.jit(lambda logs: jax.lax.map(contraction, logs))(logs)
    longest = 20 * max(s.iterations)
    exact = gradients(longest, {CG: lambda rate: mb.Implicit(mb.ConjugateGradient(longest))})[CG]
    errors = {CG: [], FP: [], ITD: []}
    for steps in s.iterations:
        found = gradients(steps, {
            CG: lambda rate, steps=steps: mb.Implicit(mb.ConjugateGradient(steps)),
            FP: lambda rate, steps=steps: mb.Implicit(mb.Neumann(steps - 1, rate)),
            ITD: lambda rate: mb.Unroll(),
        })  # fmt: skip
        for name, gradient in found.items():
            errors[name].append(np.linalg.norm(gradient - exact, axis=1) / np.linalg.norm(exact, axis=1))
    return {name: np.array(each) for name, each in errors.items()}


FULL = Settings()
SMALL = replace(FULL, draws=10, words=300, posts=300, iterations=(1, 4, 8, 16, 32, 64, 128))
SMOKE = replace(SMALL, problems=PROBLEMS[:1], draws=3, features=20, iterations=(1, 8, 16))
PROTOCOL = (
    "A log decay for every weight, normal about log .1 with standard deviation .5, {draws} draws of them. t steps of "
    "gradient descent with the rate 2 / (L + mu) from zero, then k = t iterations for the linear system (conjugate "
    "gradients; the fixed point v = (I - rate A) v + rate b, a Neumann series), or reverse mode through the t steps. "
    "The exact hypergradient has twenty times the most iterations. Ridge and binary logistic regression: 100 features "
    "of falling scale, 90 training and 90 validation points. 20 newsgroups: {words} words, {posts} posts for training "
    "and as many for validation, softmax regression."
)
DEPARTURES = (
    "Data of our own making, for which the paper's are not at hand, and 20 newsgroups with its commonest words.",
    "Gradient descent alone as the contraction; the paper's code has the heavy ball too.",
    "The paper shows curves and no numbers: their ranking and shape are compared.",
)
REPRODUCTION = Reproduction(
    name="grazzi-comparison",
    title="Errors of hypergradients by iterations",
    citation="Grazzi, Franceschi, Pontil & Salzo 2020, On the Iteration Complexity of Hypergradient Computation",
    arxiv="2006.16218",
    reproduces="the comparison of AID-CG, AID-FP and reverse mode in section 4",
    metric="relative error of the hypergradient, mean over hyperparameters",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to ridge regression of 20 features, 3 draws and 16 iterations: it runs.",
            ("Too few iterations to judge.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL, PROTOCOL.format(draws=10, words=300, posts=300), ("10 draws and 300 posts.", *DEPARTURES)
        ),
        "full": Scale(FULL, PROTOCOL.format(draws=20, words="1,000", posts="1,000"), DEPARTURES),
    },
    experiment=experiment,
)
