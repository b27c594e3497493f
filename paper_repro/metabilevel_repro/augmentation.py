"""A learned data augmentation on CIFAR-10: Lorraine, Vicol & Duvenaud 2020 (arXiv:1911.02590)."""

from dataclasses import dataclass, replace
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Claim, Curve, Image, Lab, Outcome, Panel, Reproduction, Scale, percent

NONE, CROPS, LEARNED = "none", "crops and flips", "learned U-Net"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # by which the family standardises
SHOWN = 5  # images, each with what the U-Net makes of it


@dataclass(frozen=True)
class Settings:
    """`iterations` outer steps of `steps` inner ones, in the first `warm_up` of which the U-Net rests; then `runs`
    trainings of `test_steps` with each augmentation."""

    train: int = 5_000
    valid: int = 5_000
    test: int = 2_000
    width: int = 24
    depth: int = 2
    batch: int = 100
    steps: int = 5
    iterations: int = 2_000
    warm_up: int = 200
    outer_rate: float = 1e-4
    test_steps: int = 5_000
    runs: int = 5


def row(name: str, part: str) -> str:
    """The name of a row: accuracy after a training from a fresh start."""
    return f"{part} accuracy, {name}"


CLAIMS = (
    Claim("Training with the learned augmentation is better than with none, on test images.",
          "section on data augmentation", (row(NONE, "test"), row(LEARNED, "test"))),
    Claim("It is better than standard augmentation, crops and flips.", "section on data augmentation",
          (row(CROPS, "test"), row(LEARNED, "test"))),
    Claim("On the validation images by which it was learned it is better than none.", "section on data augmentation",
          (row(NONE, "validation"), row(LEARNED, "validation"))),
)  # fmt: skip


def experiment(s: Settings, lab: Lab) -> Outcome:
    """The same net, images and numbers of steps for all; none and the crops go through a U-Net that is the identity."""
    import jax
    import numpy as np
    import optax
    from metabilevel_implicit.augmentation import UNet

    cifar = mb.load_tasks("cifar10")(train=s.train, valid=s.valid, test=s.test, network="conv", seed=lab.seed)
    made = lambda **size: mb.load_method("augmentation")(
        cifar.subject, batch=s.batch, steps=s.steps, test_steps=s.test_steps, **size
    )
    learned, plain = made(width=s.width, depth=s.depth), made(width=1, depth=1)
    standard = lambda x, y, task, key: plain.problem.inner_loss(x, y, _cropped(task, key), key)
    cropped = replace(plain, problem=replace(plain.problem, inner_loss=standard))
    rate = optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(s.outer_rate)], [s.warm_up])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    path = lab.path("learning the U-Net", learned, cifar, optimizer, steps=s.iterations,
                    every=max(1, s.iterations // 20), meta_batch=1)  # fmt: skip
    history, x = lab.stages[-1].history, path[s.iterations]
    start = plain.init(lab.key(2))
    measured = {}
    for name, (method, at) in {NONE: (plain, start), CROPS: (cropped, start), LEARNED: (learned, x)}.items():
        found = lab.evaluate(name, _watched(method, cifar.valid), at, cifar, episodes=s.runs)[None]
        measured[row(name, "validation")] = percent(found["validation accuracy"])
        measured[row(name, "test")] = percent(found["accuracy"])
    measured["outer variables, of the U-Net"] = float(sum(a.size for a in jax.tree.leaves(x)))

    net = UNet(3, s.width, s.depth)
    images = cifar.train.inputs[:SHOWN]
    shown = {"image": images, "augmented": net(x, images, lab.key(3))}
    coloured = lambda a: np.clip(np.asarray(a) * DEVIATION + MEAN, 0, 1).round(3).tolist()
    pictures = [Image(name if i == 0 else "", coloured(a)) for name, each in shown.items() for i, a in enumerate(each)]
    losses = Curve("validation", [r["step"] for r in history], [r["loss"] for r in history])
    ticks = (NONE, CROPS, LEARNED)
    bars = [_points(part, [measured[row(name, part)] for name in ticks]) for part in ("validation", "test")]
    return Outcome(measured, [
        Panel("while the U-Net is learned", "outer step", "validation loss", [losses]),
        Panel("after training anew", "augmentation", "accuracy (%)", bars, ticks=ticks),
        Panel("training images, and the same augmented", "", "", (), images=pictures),
    ])  # fmt: skip


def _points(name: str, found: list[Any]) -> Curve:
    return Curve(name, range(len(found)), [i.mean for i in found], [i.ci95 for i in found], style="points")


def _watched(method: mb.Method, valid: mb.Data) -> mb.Method:
    """`method` with the accuracy on the validation images as another metric of one and the same training."""

    def outer_loss(x: Any, y: Any, task: mb.Episode, key: Any) -> Any:
        loss, metrics = method.problem.outer_loss(x, y, task, key)
        judged = method.problem.outer_loss(x, y, task._replace(query=valid), key)
        return loss, {**metrics, "validation accuracy": judged[1]["accuracy"]}

    return replace(method, problem=replace(method.problem, outer_loss=outer_loss))


def _cropped(task: mb.Episode, key: Any) -> mb.Episode:
    """The task whose training images are moved by up to 4 pixels, and mirrored with probability 1/2."""
    import jax
    import jax.numpy as jnp

    def one(image: Any, key: Any) -> Any:
        k_crop, k_flip = jax.random.split(key)
        top, left = jax.random.randint(k_crop, (2,), 0, 9)
        moved = jax.lax.dynamic_slice(jnp.pad(image, ((4, 4), (4, 4), (0, 0))), (top, left, 0), image.shape)
        return jnp.where(jax.random.bernoulli(k_flip), moved[:, ::-1], moved)

    images, labels = task.support
    keys = jax.random.split(jax.random.fold_in(key, 1), len(labels))
    return task._replace(support=mb.Data(jax.vmap(one)(images, keys), labels))


FULL = Settings()
SMALL = replace(FULL, train=1_000, valid=500, width=6, depth=4, batch=50, iterations=120, warm_up=30, outer_rate=3e-4,
                test_steps=400, runs=3)  # fmt: skip
SMOKE = replace(SMALL, train=40, valid=40, test=20, width=2, depth=1, batch=8, steps=1, iterations=2, warm_up=1,
                test_steps=2, runs=2)  # fmt: skip
PROTOCOL = (
    "CIFAR-10, {train} training and {valid} validation images, {test} of the test. Three convolutions of 32 filters "
    "without normalisation; momentum .9, rate .03, batches of {batch}, decay 5e-4. A U-Net of {size} weights with a "
    "noise channel and an identity residual augments the training images: {iterations} steps of Adam (rate {rate}, in "
    "the first {warm_up} 0; gradients clipped at a norm of 1) on the validation loss, each after 5 inner ones, the "
    "inverse Hessian as a Neumann series of 1 term beyond the first, on a minibatch. Then {runs} trainings of "
    "{test_steps} steps from fresh starts with each augmentation, the U-Net fixed."
)
DEPARTURES = (
    "A net of three convolutions in place of ResNet-18, and a part of the images: the accuracies are far lower.",
    "The U-Net is larger than the authors' (depth 1, 4 maps), and learned in fewer steps.",
    "The net is trained anew with the U-Net that was found; the paper judges the net that was trained beside it.",
    "The paper's numbers could not be read: its claims are compared.",
)
REPRODUCTION = Reproduction(
    name="lorraine-augmentation",
    title="A learned data augmentation",
    citation="Lorraine, Vicol & Duvenaud 2020, Optimizing Millions of Hyperparameters by Implicit Differentiation",
    arxiv="1911.02590",
    reproduces="the comparison of augmentations on CIFAR-10, in the section on data augmentation",
    metric="accuracy (%), mean over trainings from fresh starts",
    interval="not given",
    published=(),
    claims=CLAIMS,
    scales={
        "smoke": Scale(
            SMOKE,
            "The small protocol, cut to 40 images, 2 outer steps, 2 inner ones and a U-Net of 2 maps: it runs.",
            ("Too short to judge.", *DEPARTURES),
            conclusive=False,
            compile_quickly=True,
        ),
        "small": Scale(
            SMALL,
            PROTOCOL.format(train="1,000", valid="500", test="2,000", batch=50, size="138,357", iterations=120,
                            warm_up=30, rate=3e-4, runs=3, test_steps=400),
            ("A tenth of the packed images, and 120 outer steps.", *DEPARTURES),
        ),
        "full": Scale(
            FULL,
            PROTOCOL.format(train="5,000", valid="5,000", test="2,000", batch=100, size="131,355", iterations="2,000",
                            warm_up=200, rate=1e-4, runs=5, test_steps="5,000"),
            DEPARTURES,
        ),
    },
    experiment=experiment,
)  # fmt: skip
