"""The training of small networks on images (Andrychowicz et al. 2016, arXiv:1606.04474, sections 3.2 and 3.3)."""

from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, UInt8
from metabilevel_tasks.cifar_data import photographs
from metabilevel_tasks.mnist_data import MNIST

import metabilevel as mb
from metabilevel import data, errors

Activation: TypeAlias = Literal["sigmoid", "relu", "tanh"]
Pictures: TypeAlias = tuple[np.ndarray, np.ndarray]  # images uint8 [n, h, w, c] and labels [n]
JUDGED = 1000  # images that a network is judged on


class Part(NamedTuple):
    """The task: `size` images, from number `first` on, of those that the optimizee holds."""

    first: Int[Array, ""]
    size: Int[Array, ""]


class Training(mb.AbstractOptimizee):
    """f(y) = cross-entropy of a network of the weights y on images of a part, pixels in [0, 1].

    Minibatches are drawn with replacement. A network is judged on others of the same part: it is the training that is
    learned here.
    """

    learner: mb.Learner
    images: UInt8[Array, "n h w c"]
    labels: UInt8[Array, " n"]
    batch: int = eqx.field(static=True)
    deviation: float | None = eqx.field(static=True)

    @property
    def protocol(self) -> str:
        return self.learner.note

    @property
    def shapes(self) -> Any:
        return jax.eval_shape(self.learner.init, jax.random.key(0))

    def init(self, task, key):
        y = self.learner.init(key)
        if self.deviation is None:
            return y
        flat, unravel = ravel_pytree(y)
        return unravel(self.deviation * jax.random.normal(key, flat.shape))

    def loss(self, y, task, key):
        return self.learner.fit(y, self._draw(task, key, self.batch))

    def judge(self, y, task, key):
        drawn = self._draw(task, key, JUDGED)
        return self.learner.judge(self.learner.predict(y, drawn.inputs), drawn)

    def _draw(self, part: Part, key: Any, size: int) -> mb.Data:
        rows = part.first + jax.random.randint(key, (size,), 0, part.size)
        return mb.Data(self.images[rows] / 255, self.labels[rows])


class Trainings(mb.TaskDistribution):
    """A network trained on the part of a split; the start and the minibatches alone differ from draw to draw."""

    episodes: ClassVar[int] = 20
    subject: Training
    sizes: tuple[int, int, int] = eqx.field(static=True)

    def sample(self, key, split):
        i = ("train", "valid", "test").index(split)
        return Part(jnp.int32(sum(self.sizes[:i])), jnp.int32(self.sizes[i]))


def mnist_training(
    *,
    hidden: int = 20,
    layers: int = 1,
    activation: Activation = "sigmoid",
    side: Literal[28, 14] = 28,
    batch: int = 128,
    images: int | None = None,
    deviation: float | None = 0.01,
) -> Trainings:
    """An MLP on digits: 15,910 weights, which the optimizer trains; cross-entropy, and accuracy.

    Of the 60,000 training images the last sixth in a fixed random order is the split valid, and the others are train;
    test are the 10,000 test images. A network is trained and judged on images of one split.

    **Arguments:**

    - `hidden`: units of a hidden layer.
    - `layers`: hidden ones.
    - `activation`: of the hidden layers (with relu the optimizer of Andrychowicz et al. that was trained with
      sigmoid fails).
    - `side`: of an image; 14 takes the means of squares of 2 x 2 pixels, for about a quarter of the weights.
    - `batch`: images of a step.
    - `images`: of the split train; all of them if none.
    - `deviation`: of the weights and biases at the start, all normal; if none, 1/sqrt(inputs) and biases of zero.

    **Raises:** `InputError` for sizes below 1 or images that there are not, `DataError` where there are no data.
    """
    for name, size in {"hidden": hidden, "layers": layers}.items():
        errors.count(name, size, 1)
    if side not in (28, 14):
        raise mb.InputError(f"side = {side}: 28 or 14 pixels are wanted.")
    network = mb.MLP(side * side, (hidden,) * layers, 10, activation)
    return _trainings("MNIST", network, lambda: _digits(side), batch, images, deviation)


def cifar_training(
    *,
    filters: int = 16,
    blocks: int = 3,
    classes: int = 10,
    batch: int = 128,
    images: int | None = None,
    deviation: float | None = None,
) -> Trainings:
    """A convolutional net on photographs: batch normalisation, 2 x 2 max-pooling, linear head; cross-entropy, accuracy.

    Smaller than the net of Andrychowicz et al., whose convolutions are 5 x 5 before a layer of 32 units. Splits as of
    mnist-training: train, its last sixth for valid, test; the packed files have 10,000 and 2,000 photographs.

    **Arguments:**

    - `filters`: of a 3 x 3 convolution.
    - `blocks`: convolutions.
    - `classes`: the first so many of the 10; 2 are the aeroplanes and cars of CIFAR-2.
    - `batch`: images of a step, which are normalised together.
    - `images`: of the split train; all of them if none.
    - `deviation`: of all weights at the start; if none, they are Glorot's.

    **Raises:** `InputError` for sizes below 1 or images that there are not, `DataError` where there are no data.
    """
    if errors.count("classes", classes, 2) > 10:
        raise mb.InputError(f"classes = {classes}: CIFAR-10 has 10.")
    network = mb.ConvNet((32, 32, 3), classes, filters, blocks, down="max-pool", readout="flatten")
    return _trainings(f"CIFAR-{classes}", network, lambda: _photographs(classes), batch, images, deviation)


def _trainings(
    name: str, network: mb.AbstractNetwork, load: Any, batch: int, images: int | None, deviation: float | None
) -> Trainings:
    errors.count("batch", batch, 1)
    if images is not None:
        errors.count("images", images, 1)
    if deviation is not None:
        errors.number("deviation", deviation, 0)
    (training, labels), (testing, test_labels) = load()
    order = np.random.default_rng(0).permutation(len(labels))
    valid = len(labels) // 6
    available = len(labels) - valid
    if images is not None and images > available:
        raise mb.InputError(f"images = {images}: there are {available:,} for training.")
    train = available if images is None else images
    order = np.concatenate([order[:train], order[available:]])
    sizes = (train, valid, len(test_labels))
    note = f"{name}; training, on 1,000 images of one split of {' / '.join(f'{size:,}' for size in sizes)}"
    subject = Training(
        mb.classification(network, note=note),
        jnp.asarray(np.concatenate([training[order], testing])),
        jnp.asarray(np.concatenate([labels[order], test_labels]).astype(np.uint8)),
        batch,
        deviation,
    )
    return Trainings(subject, sizes)


def _digits(side: int) -> list[Pictures]:
    arrays, fold = data.load(MNIST), 28 // side
    shrink = lambda a: a.reshape(-1, side, fold, side, fold).mean((2, 4)).round().astype(np.uint8)[..., None]
    return [(shrink(arrays[f"{part}_images"]), arrays[f"{part}_labels"]) for part in ("train", "test")]


def _photographs(classes: int) -> list[Pictures]:
    flat = lambda part: (part.reshape(-1, 32, 32, 3), np.repeat(np.arange(classes), part.shape[1]))
    return [flat(part[:classes]) for part in photographs(10).values()]
