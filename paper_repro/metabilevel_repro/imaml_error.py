"""Errors of meta-gradients: Figure 2a of Rajeswaran, Finn, Kakade & Levine 2019 (arXiv:1909.04630)."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Published, Reproduction, Scale


@dataclass(frozen=True)
class Settings:
    """`tasks` linear regressions of `inputs` weights to `shots` points, each with the pull `strength` to x."""

    tasks: int = 1_000
    inputs: int = 20
    shots: int = 5
    queries: int = 5
    strength: float = 1.0
    learning_rate: float = 0.012
    exact_steps: int = 3_000


STEPS = (20, 40, 60, 80, 100)
FIGURE = {  # None: above the axis
    "MAML": (None, 1.27, 0.52, 0.25, 0.135),
    "iMAML, CG 2": (1.23, 0.48, 0.22, 0.155, 0.15),
    "iMAML, CG 5": (1.27, 0.50, 0.23, 0.12, 0.065),
    "iMAML, CG 10": (1.27, 0.50, 0.23, 0.12, 0.065),
}
CG = {"first order (CG 0)": 0, "iMAML, CG 2": 2, "iMAML, CG 5": 5, "iMAML, CG 10": 10}


def row(method: str, steps: int) -> str:
    """The name of the row of `method` after so many inner steps."""
    return f"{steps} inner steps, {method}"


PUBLISHED = tuple(
    Published(row(method, steps), value, None, "Figure 2a", "figure")
    for method, values in FIGURE.items()
    for steps, value in zip(STEPS, values, strict=True)
    if value is not None
)
CLAIMS = (
    *[
        Claim(f"After {steps} inner steps the implicit gradient is nearer to the exact one than MAML's.", "Figure 2a",
              (row("iMAML, CG 5", steps), row("MAML", steps)))
        for steps in STEPS
    ],
    Claim("With 2 conjugate gradients the error has a floor, however long the inner solve.", "Figure 2a",
          (row("iMAML, CG 2", 80), row("iMAML, CG 2", 100)), "near", margin=0.03),
    Claim("5 conjugate gradients end below that floor, and so does MAML.", "Figure 2a",
          (row("iMAML, CG 5", 100), row("MAML", 100), row("iMAML, CG 2", 100))),
    Claim("10 conjugate gradients gain nothing over 5.", "Figure 2a",
          (row("iMAML, CG 5", 100), row("iMAML, CG 10", 100)), "near", margin=0.01),
    Claim("Without the inner Hessian, which is first-order MAML, the floor is highest.", "ours",
          (row("iMAML, CG 2", 100), row("first order (CG 0)", 100))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """|found - exact| / |exact| of every task, at one x, by two ways through one inner problem."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    from metabilevel.evaluation import interval

    family = mb.load_tasks("mixture")(
        inputs=s.inputs, train_shots=s.shots, train_queries=s.queries, noise=0.0, spread=1.0
    )
    imaml, key = mb.load_method("imaml"), lab.key(2)
    tasks = mb.sample_batch(family, key, "train", s.tasks)

    def gradients(steps: int, cg_steps: int = 0, adjoint: mb.AbstractAdjoint | None = None) -> Any:
        method = imaml(
            family.subject, strength=s.strength, learning_rate=s.learning_rate, steps=steps, cg_steps=cg_steps
        )
        nested, x = method.estimator, method.init(key)
        chosen = adjoint or nested.adjoint
        one = lambda task: ravel_pytree(chosen.hypergradient(nested.problem, nested.solver, x, task, key)[1])[0]
        return jax.jit(jax.vmap(one))(tasks)

    exact = gradients(s.exact_steps, adjoint=mb.Implicit(mb.Dense()))
    size = lambda g: jnp.linalg.norm(g, axis=1)
    measured, curves = {}, []
    for method in ("MAML", *CG):
        way: dict[str, Any] = {"cg_steps": CG[method]} if method in CG else {"adjoint": mb.Unroll()}
        errors = {steps: size(gradients(steps, **way) - exact) / size(exact) for steps in STEPS}
        found = {steps: interval(np.asarray(error)) for steps, error in errors.items()}
        measured |= {row(method, steps): value for steps, value in found.items()}
        curves.append(Curve(method, STEPS, [i.mean for i in found.values()], [i.ci95 for i in found.values()]))
    read = {name: [(k, v) for k, v in zip(STEPS, values, strict=True) if v] for name, values in FIGURE.items()}
    paper = [Curve(name, *zip(*points, strict=True), style="paper") for name, points in read.items()]
    panel = lambda title, curves: Panel(title, "inner steps", "error of the meta-gradient", curves, log="y")
    return Outcome(measured, [panel("ours", curves), panel("Figure 2a, read by eye", paper)])


FULL = Settings()
PROTOCOL = (
    "Linear regressions without noise, 20 weights N(0, 1/20), inputs N(0, I), 5 support and 5 query points, so that "
    "the Hessian has rank 5; half the mean squared error; the pull to x = 0 has strength 1. k inner steps of gradient "
    "descent at .012. MAML differentiates the steps, iMAML solves the linear system at the same y. Exact: 3,000 steps "
    "and a dense solve. {} tasks."
)
DEPARTURES = (
    "The paper's problem is not described where we could read it; this one has, as its figure shows, few directions "
    "that are slow to learn: heights differ from the figure's, and only their order is compared.",
)
REPRODUCTION = Reproduction(
    name="imaml-error",
    title="Errors of meta-gradients",
    citation="Rajeswaran, Finn, Kakade & Levine 2019, Meta-Learning with Implicit Gradients",
    arxiv="1909.04630",
    reproduces="Figure 2a",
    metric="|meta-gradient - exact| / |exact|, mean over tasks",
    interval="not given",
    published=PUBLISHED,
    claims=CLAIMS,
    scales={
        "smoke": Scale(replace(FULL, tasks=200), PROTOCOL.format(200), DEPARTURES, compile_quickly=True),
        "small": Scale(FULL, PROTOCOL.format("1,000"), DEPARTURES),
        "full": Scale(replace(FULL, tasks=10_000), PROTOCOL.format("10,000"), DEPARTURES),
    },
    experiment=experiment,
)
