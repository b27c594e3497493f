"""What the library's layers cost: a whole call of `fit` beside a scan over outer steps, written out, of the same
mathematics, on tasks that both draw anew at every step."""

from functools import partial
from typing import Any

import jax
import optax

import metabilevel as mb
from metabilevel.bench import Candidate, Case, Race

from .conv import CE, WAYS, episodes
from .sinusoid import build as sinusoids

KEY = jax.random.key(0)
RATE, CHUNK = 0.4, 1
OPTIMIZER = optax.adam(1e-3)
GOAL = 1 / 1.03


class Noise(mb.TaskDistribution):
    """5-way 1-shot tasks of noise."""

    subject: mb.Learner
    pixels: int

    def sample(self, key: Any, split: Any) -> mb.Episode:
        """Fresh images."""
        return jax.tree.map(lambda a: a[0], episodes(key, 1, self.pixels))


def sinusoid(quick: bool) -> Case:
    """k = 1; the scanned textbook is the step by hand."""
    case = sinusoids(1, quick)
    kept = {
        name: case.candidates[old]
        for name, old in {"by hand": "textbook, scanned", "metabilevel": "metabilevel"}.items()
    }
    return Case(kept, truth="by hand", gradient_tolerance=1e-2, operations=case.operations)


def conv(quick: bool) -> Case:
    """Second-order MAML, k = 1, with the library's network; small: 2 steps on 2 tasks of 16 pixels."""
    steps, tasks, pixels, filters, blocks = (2, 2, 16, 4, 2) if quick else (60, 8, 28, 64, 4)
    network = mb.ConvNet((pixels, pixels, 1), WAYS, filters, blocks)
    family = Noise(mb.classification(network), pixels)
    method = mb.load_method("maml")(family.subject, learning_rate=RATE, steps=1)
    x, batch = method.init(KEY), episodes(KEY, tasks, pixels)

    def loss(y: Any, data: mb.Data) -> Any:
        return CE(network.head(y["head"], network.body(y["body"], data.inputs)), data.targets).mean()

    def adapted(x: Any, task: mb.Episode) -> Any:
        y = jax.tree.map(lambda a, g: a - RATE * g, x, jax.grad(loss)(x, task.support))
        return loss(y, task.query)

    def gradient(x: Any, batch: mb.Episode) -> Any:
        """Task after task, as is fastest for nets of this size on a CPU."""

        def add(total: Any, task: mb.Episode) -> Any:
            return jax.tree.map(lambda a, b: a + b, total, jax.value_and_grad(adapted)(x, task)), None

        zero = jax.tree.map(lambda a: 0 * a, (0.0, x))
        return jax.tree.map(lambda a: a / tasks, jax.lax.scan(add, zero, batch)[0])

    @jax.jit
    def run(state: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            x, opt, key = state
            key, sub = jax.random.split(key)
            value, direction = gradient(x, episodes(sub, tasks, pixels))
            updates, opt = OPTIMIZER.update(direction, opt, x)
            return (optax.apply_updates(x, updates), opt, key), value

        return jax.lax.scan(step, state, length=steps)

    @jax.jit
    def direction(x: Any) -> Any:
        found, _, info = method.estimator(x, batch, None, KEY)
        return info.loss.mean(), found

    options = {"key": KEY, "steps": steps, "meta_batch": tasks, "every": steps, "progress": False}
    fit = lambda: mb.fit(method, family, OPTIMIZER, **options)[0]
    by_hand = partial(run, (x, OPTIMIZER.init(x), KEY))
    return Case(
        {
            "by hand": Candidate(by_hand, steps, partial(jax.jit(gradient), x, batch)),
            "metabilevel": Candidate(fit, steps, partial(direction, x)),
        },
        truth="by hand",
        gradient_tolerance=1e-2,
    )


_ABOUT = "`fit` beside a jitted scan over outer steps by hand:"
SINUSOID = Race("abstraction-sinusoid", f"{_ABOUT} MAML on 25 sinusoids, k = 1.", sinusoid, {"by hand": GOAL})
CONV = Race(
    "abstraction-conv", f"{_ABOUT} second-order MAML of the Omniglot net, 8 tasks, k = 1.", conv, {"by hand": GOAL}
)
