"""Approximate inverses beside the true one: the comparison in Lorraine, Vicol & Duvenaud 2020 (arXiv:1911.02590)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale

from .lorraine_overfit import tuned

TRUE = {"inverse": "cg", "terms": 1_000}  # which stop at rounding error
TERMS: dict[str, tuple[int, ...]] = {"Neumann": (0, 1, 5, 10, 20), "CG": (1, 5, 10, 20), "Nystrom": (5, 20)}
TUNED = {
    "Neumann-0": {"inverse": "neumann", "terms": 0},
    "Neumann-5": {"inverse": "neumann", "terms": 5},
    "Neumann-20": {"inverse": "neumann", "terms": 20},
    "CG-5": {"inverse": "cg", "terms": 5},
    "CG-20": {"inverse": "cg", "terms": 20},
}
WORSE = ("Neumann-0", "Neumann-5", "Neumann-20", "CG-20")  # each than the one after it


@dataclass(frozen=True)
class Settings:
    """`cuts` of MNIST for the hypergradients; `draws` of a linear regression for the curves."""

    cuts: int = 3
    images: int = 3_500
    inner_steps: int = 1_000
    draws: int = 20
    examples: int = 40
    outer_steps: int = 400
    every: int = 10


def lower(worse: str, better: str) -> str:
    """The name of the row with how much lower the last validation loss is by `better`, draw by draw."""
    return f"fall of the validation loss, {worse} to {better}"


PLACE = "comparison of approximate inverses"
CLAIMS = (
    Claim("More terms of the series turn the hypergradient towards the true one.", PLACE,
          tuple(f"cosine, Neumann-{terms}" for terms in TERMS["Neumann"])),
    *[
        Claim(f"The error of {terms} terms of the series is larger than that of as many conjugate gradients.", PLACE,
              (f"relative error, CG-{terms}", f"relative error, Neumann-{terms}"))
        for terms in (1, 5, 20)
    ],
    *[
        Claim(f"{better} tunes faster than {worse}.", PLACE, (0.0, lower(worse, better)))
        for worse, better in pairwise(WORSE)
    ],
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """First the inverses at one point, then their use."""
    measured, panels = _hypergradients(s, lab)
    more, panel = _curves(s, lab)
    return Outcome(measured | more, [*panels, panel])


def _hypergradients(s: Settings, lab: Lab) -> tuple[dict[str, Any], list[Panel]]:
    """Cosine with the true hypergradient, and error relative to it, of every inverse at the same trained weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    from metabilevel.evaluation import interval

    sizes = {"train": s.images, "valid": s.images, "test": 1}
    drawn = [mb.load_tasks("mnist")(seed=cut, **sizes) for cut in range(lab.seed, lab.seed + s.cuts)]
    learner, tasks = drawn[0].subject, [mb.Episode(d.train, d.valid) for d in drawn]
    options = {"per": "weight", "decay": exp(-4), "optimizer": "momentum", "learning_rate": 0.01}
    hpo = mb.load_method("implicit-hpo")

    def all_of(task: Any, key: Any) -> Any:
        method = hpo(learner, test_steps=s.inner_steps, **options)
        x, batch = method.init(key), jax.tree.map(lambda a: a[None], task)
        trained = jax.tree.map(lambda a: a[None], method.adapt(x, task, key)), jnp.ones(1, bool)

        def direction(**inverse: Any) -> Any:
            still = hpo(learner, steps=0, **options, **inverse)
            found, _, info = still.estimator(x, batch, trained, key)
            return ravel_pytree(found)[0], info.certificate.linear_residual[0]

        true, left = direction(**TRUE)
        return true, left, [direction(inverse=name.lower(), terms=n, **damped(name))[0] for name, n in numbered]

    numbered = [(name, n) for name, terms in TERMS.items() for n in terms]
    damped = lambda name: {"damping": options["decay"]} if name == "Nystrom" else {}
    one, rows = jax.jit(all_of), {}
    for task in tasks:
        true, left, found = jax.device_get(one(task, lab.key(2)))
        size = np.linalg.norm(true)
        for (name, n), v in zip(numbered, found, strict=True):
            rows.setdefault(f"cosine, {name}-{n}", []).append(v @ true / (np.linalg.norm(v) * size))
            rows.setdefault(f"relative error, {name}-{n}", []).append(np.linalg.norm(v - true) / size)
        rows.setdefault("log10 of the residual of the system, true inverse", []).append(np.log10(left))
    measured = {name: interval(np.array(values)) for name, values in rows.items()}
    panels = []
    for quantity in ("cosine", "relative error"):
        curves = []
        for name, terms in TERMS.items():
            found = [measured[f"{quantity}, {name}-{n}"] for n in terms]
            curves.append(Curve(name, terms, [i.mean for i in found], [i.ci95 for i in found]))
        title = f"MNIST: {quantity} of the hypergradient"
        panels.append(Panel(title, "terms, iterations or rank", quantity, curves, within=(0, 10)))
    return measured, panels


def _curves(s: Settings, lab: Lab) -> tuple[dict[str, Any], Panel]:
    """The validation loss as the decays of a linear regression are tuned by each inverse."""
    import jax
    import numpy as np
    import optax

    from metabilevel.evaluation import interval

    learner = mb.regression(mb.MLP(FEATURES, (), 1, init_weights="zeros"))
    k_draws, k_runs = jax.random.split(lab.key(3))
    drawn = jax.vmap(lambda key: regression(key, s.examples))(jax.random.split(k_draws, s.draws))
    measured, curves, last = {}, [], {}
    steps = list(range(s.every, s.outer_steps + 1, s.every))
    for name, options in TUNED.items():
        method = mb.load_method("implicit-hpo")(
            learner, per="weight", decay=0.01, optimizer="momentum", learning_rate=0.03, steps=20, **options
        )
        run = lambda task, key, m=method: tuned(m, optax.sgd(3.0), task, key, s.outer_steps)["loss"]
        losses = np.asarray(jax.jit(jax.vmap(run))(drawn, jax.random.split(k_runs, s.draws)))
        last[name] = losses[:, -1]
        measured[f"validation loss, {name}"] = interval(last[name])
        found = [interval(a) for a in losses.T[s.every - 1 :: s.every]]
        curves.append(Curve(name, steps, [i.mean for i in found]))
    for worse, better in pairwise(WORSE):
        measured[lower(worse, better)] = interval(last[worse] - last[better])
    return measured, Panel("linear regression", "outer steps", "validation loss", curves)


FEATURES = 13  # as Boston housing has


def regression(key: Any, n: int) -> mb.Episode:
    """n training and n validation points of a noisy linear function of the first 5 of 13 correlated features.

    Inputs are U diag(s) V z with orthogonal U, V, standard normal z and s from 1 down to .1 in equal ratios, each
    feature divided by its standard deviation; the signal has the variance 1, and the noise .49.
    """
    import jax
    import jax.numpy as jnp

    k_mix, k_weights, k_inputs, k_noise = jax.random.split(key, 4)
    u, v = jnp.linalg.qr(jax.random.normal(k_mix, (2, FEATURES, FEATURES)))[0]
    inputs = jax.random.normal(k_inputs, (2 * n, FEATURES)) @ (u * jnp.geomspace(1.0, 0.1, FEATURES) @ v).T
    inputs = inputs / inputs.std(0)
    signal = inputs[:, :5] @ jax.random.normal(k_weights, (5, 1))
    targets = signal / signal.std() + 0.7 * jax.random.normal(k_noise, signal.shape)
    return mb.Episode(mb.Data(inputs[:n], targets[:n]), mb.Data(inputs[n:], targets[n:]))


FULL = Settings()
SMALL = replace(FULL, cuts=5, images=500, outer_steps=200)
SMOKE = replace(SMALL, cuts=1, images=20, inner_steps=5, draws=2, outer_steps=2, every=1)
PROTOCOL = (
    "Softmax regression on MNIST, a decay of e^-4 for each of 7,850 weights: {cuts} draws of {images:,} training and "
    "as many validation images, {inner:,} steps of gradient descent with a momentum of .9; then the hypergradient by "
    "every inverse at these weights, and by 1,000 conjugate gradients, which stand for the true inverse. And linear "
    "regression with 13 features and a decay for every weight, .01 at the start: {draws} draws of {examples} training "
    "and as many validation points, 20 inner steps between two outer ones, {outer} outer steps of gradient descent at "
    "rate 3. The scale of the series is 1 / the largest eigenvalue of the inner Hessian, estimated; Nystrom's damping "
    "is e^-4."
)
DEPARTURES = (
    "The linear regression is drawn (13 correlated features), not Boston housing.",
    "Full batches, no K-FAC; and no steps before the first outer one.",
    "The paper shows its comparison as curves, not as numbers: only their order is compared.",
)


def _protocol(s: Settings) -> str:
    return PROTOCOL.format(
        cuts=s.cuts, images=s.images, inner=s.inner_steps, draws=s.draws, examples=s.examples, outer=s.outer_steps
    )


REPRODUCTION = Reproduction(
    name="lorraine-inverse",
    title="Approximate inverses",
    citation="Lorraine, Vicol & Duvenaud 2020, Optimizing millions of hyperparameters by implicit differentiation",
    arxiv="1911.02590",
    reproduces="the comparison of approximate inverses, by hypergradients and by validation loss",
    metric="cosine with, and error relative to, the true hypergradient; mean squared error of the validation points",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 20 images, 5 inner and 2 outer steps: it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL, _protocol(SMALL), ("500 + 500 images for 3,500 + 3,500, and 200 of 400 outer steps.", *DEPARTURES)
        ),
        "full": Scale(FULL, _protocol(FULL), DEPARTURES),
    },
    experiment=experiment,
)
