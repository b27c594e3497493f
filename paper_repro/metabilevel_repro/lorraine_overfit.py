"""Overfitting a validation set: the experiment of that name in Lorraine, Vicol & Duvenaud 2020 (arXiv:1911.02590)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Lab, Outcome, Panel, Reproduction, Scale, percent

INVERSES: dict[str, dict[str, Any]] = {
    "none": {},  # of no effect: the decays stay where they are
    "Identity": {"inverse": "neumann", "terms": 0},
    "Neumann-3": {"inverse": "neumann", "terms": 3},
    "Neumann-20": {"inverse": "neumann", "terms": 20},
    "CG-20": {"inverse": "cg", "terms": 20},
    "Identity with scale 1": {"inverse": "identity"},
    "Neumann-20 with scale .01": {"inverse": "neumann", "terms": 20, "scale": 0.01},
}
BETTER = ("none", "Identity", "Neumann-3", "Neumann-20", "CG-20")  # each than the one before it


@dataclass(frozen=True)
class Settings:
    """`cuts` are the draws of the 50 + 50 images, a run each; curves have a point after each `every` outer steps, and
    the first of these is early."""

    inverses: tuple[str, ...] = tuple(INVERSES)
    cuts: int = 5
    images: int = 50
    test_images: int = 10_000
    inner_rate: float = 1e-4
    inner_steps: int = 5
    outer_rate: float = 0.01
    outer_steps: int = 1_000
    epsilon_in_root: bool = False
    every: int = 20


def rise(worse: str, better: str) -> str:
    """The name of the row with how much higher the early validation accuracy is by `better`, cut by cut."""
    return f"rise of the early validation accuracy, {worse} to {better}"


PLACE = "overfitting a small validation set"
CLAIMS = (
    *[
        Claim(f"By {name} the validation set is fitted.", PLACE, (99.0, f"validation accuracy, {name}"))
        for name in ("Neumann-20", "CG-20")
    ],
    *[
        Claim(f"By {name} the accuracy on the test set does not follow.", PLACE,
              (10.0, f"validation less test accuracy, {name}"))
        for name in ("Neumann-20", "CG-20")
    ],
    *[
        Claim(f"{better} fits the validation set faster than {worse}.", PLACE, (0.0, rise(worse, better)))
        for worse, better in pairwise(BETTER)
    ],
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Every inverse has the same cuts; the weights that are judged are those which the outer step has reached."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from metabilevel.evaluation import interval

    sizes = {"train": s.images, "valid": s.images, "test": s.test_images}
    drawn = [mb.load_tasks("mnist")(seed=cut, **sizes) for cut in range(lab.seed, lab.seed + s.cuts)]
    learner = drawn[0].subject
    cuts = jax.tree.map(lambda *a: jnp.stack(a), *[mb.Episode(d.train, d.valid, d.test) for d in drawn])

    def run(name: str, cut: Any, key: Any) -> Any:
        """The validation and the test accuracy [2] after every outer step."""
        method = _watched(mb.load_method("weight-decay")(
            learner, decay=exp(-4), learning_rate=s.inner_rate, steps=s.inner_steps, **INVERSES[name]
        ))  # fmt: skip
        rate = 0.0 if name == "none" else s.outer_rate
        optimizer = optax.rmsprop(rate, decay=0.99, eps=1e-8, eps_in_sqrt=s.epsilon_in_root)
        metrics = tuned(method, optimizer, cut, key, s.outer_steps)
        return metrics["accuracy"], metrics["test accuracy"]

    measured, curves, early = {}, {"validation": [], "test": []}, {}
    for name in s.inverses:
        valid, test = map(np.asarray, jax.jit(jax.vmap(lambda *one, name=name: run(name, *one)))(
            cuts, jax.random.split(lab.key(2), s.cuts)
        ))  # fmt: skip
        early[name] = valid[:, s.every - 1]
        measured[f"validation accuracy, {name}"] = percent(interval(valid[:, -1]))
        measured[f"test accuracy, {name}"] = percent(interval(test[:, -1]))
        measured[f"validation less test accuracy, {name}"] = percent(interval(valid[:, -1] - test[:, -1]))
        if (valid == 1).any(1).all():
            measured[f"outer steps to 100%, {name}"] = interval(1.0 + (valid == 1).argmax(1))
        for part, found in {"validation": valid, "test": test}.items():
            steps = list(range(s.every, s.outer_steps + 1, s.every))
            curves[part].append(Curve(name, steps, [100 * float(a.mean()) for a in found.T[s.every - 1 :: s.every]]))
    for pair in pairwise(BETTER):
        if set(pair) <= set(early):
            measured[rise(*pair)] = percent(interval(early[pair[1]] - early[pair[0]]))
    panel = lambda part: Panel(f"{part} accuracy", "outer steps", "accuracy (%)", curves[part], log="x")
    return Outcome(measured, [panel(part) for part in curves])


def tuned(method: mb.Method, optimizer: Any, task: Any, key: Any, steps: int) -> dict[str, Any]:
    """The loss and the metrics of one task, [steps] each, of the weights that every outer step reaches."""
    import jax
    import optax

    batch = jax.tree.map(lambda a: a[None], task)

    def step(state: Any, key: Any) -> Any:
        x, opt, carry = state
        direction, carry, info = method.estimator(x, batch, carry, key)
        updates, opt = optimizer.update(direction, opt, x)
        return (optax.apply_updates(x, updates), opt, carry), info.mean()

    x = method.init(key)
    state = x, optimizer.init(x), method.estimator.init(x, batch, key)
    return jax.lax.scan(step, state, jax.random.split(key, steps))[1]


def _watched(method: mb.Method) -> mb.Method:
    """`method` with the accuracy on the test part, `Episode.truth`, as another metric."""

    def outer_loss(x: Any, y: Any, task: mb.Episode, key: Any) -> Any:
        loss, metrics = method.problem.outer_loss(x, y, task, key)
        judged = method.problem.outer_loss(x, y, task._replace(query=task.truth), key)
        return loss, {**metrics, "test accuracy": judged[1]["accuracy"]}

    problem = replace(method.problem, outer_loss=outer_loss)
    return replace(method, problem=problem, estimator=replace(method.estimator, problem=problem))


FULL = Settings()
SMALL = replace(
    FULL, test_images=2_000, inner_rate=1e-3, inner_steps=25, outer_rate=0.1, outer_steps=250, epsilon_in_root=True,
    every=5,
)  # fmt: skip
SMOKE = replace(SMALL, inverses=("none", "CG-20"), cuts=2, test_images=100, outer_steps=2, every=1)
PROTOCOL = (
    "MNIST, softmax regression from zero, with a decay exp(x) of its own for each of 7,850 weights, x = -4 at the "
    "start. {cuts} draws of 50 training and 50 validation images, a run each, and {test:,} test images. Between two "
    "outer steps the weights go on by {inner} steps of Adam, rate {inner_rate:g}, on all 50 images; x follows RMSprop, "
    "rate {rate:g}, for {outer:,} outer steps. The scale of the series is 1 / the largest eigenvalue of the inner "
    "Hessian, estimated at every outer step, if not given; Identity is its first term. Early is after {every} outer "
    "steps."
)
DEPARTURES = (
    "Pixels are standardised by the mean and standard deviation of all training images.",
    "Adam's moments start afresh after each outer step.",
    "The paper shows curves, of nets that are larger too, not numbers: only their shape is compared.",
)


def _protocol(s: Settings) -> str:
    return PROTOCOL.format(
        cuts=s.cuts, test=s.test_images, inner=s.inner_steps, inner_rate=s.inner_rate, rate=s.outer_rate,
        outer=s.outer_steps, every=s.every,
    )  # fmt: skip


REPRODUCTION = Reproduction(
    name="lorraine-overfit",
    title="Overfitting a validation set",
    citation="Lorraine, Vicol & Duvenaud 2020, Optimizing millions of hyperparameters by implicit differentiation",
    arxiv="1911.02590",
    reproduces="the experiment on overfitting a small validation set, its linear model on MNIST",
    metric="accuracy (%) of the weights after the last outer step, mean over draws of the images",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 2 outer steps, two draws and one inverse: it runs.",
            ("Far too short to compare numbers.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            _protocol(SMALL),
            (
                "250 outer steps at rate .1 for 1,000 at .01, and 25 inner steps at 1e-3 for 5 at 1e-4.",
                "RMSprop adds its epsilon of 1e-8 inside the root, hence a direction below 1e-4 counts by its size, "
                "which grows with the terms and the scale; with one outside, all inverses would have fast decays.",
                "The scale of the series is estimated: a fixed one of .01 diverges once a decay is above 200, as by "
                "the end of some runs it is.",
                *DEPARTURES,
            ),
        ),
        "full": Scale(
            FULL,
            _protocol(FULL),
            (
                "The settings are those of the authors' code, which has the identity alone for an inverse.",
                *DEPARTURES,
            ),
        ),
    },
    experiment=experiment,
)
