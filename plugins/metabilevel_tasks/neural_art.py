"""Neural art: a photograph in the manner of a painting, a loss of pixels (Gatys et al. 2015, arXiv:1508.06576)."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import metabilevel as mb
from metabilevel import data, errors

from .feature_nets import FeatureNet, random_net, read_net
from .photos_data import PAINTINGS, PHOTOS

SIDE = 256  # pixels of a side of a painting
BRIGHTNESS, NOISE = 0.5, 0.1  # mean and standard deviation of the pixels with which an optimizer starts


class Canvas(NamedTuple):
    """A photograph [size, size, 3] with channels in [0, 1], and the map of the layer that says what is on it."""

    content: Array
    map: Array


class NeuralArt(mb.AbstractOptimizee):
    """f(y) = a content(y) + b style(y) + c variation(y) of the pixels y [size, size, 3] of a picture, with

        content = mean (F_m(y) - F_m(photograph))^2 / (mean F_m(photograph)^2 + mean F_m(painting)^2)
        style = mean over l of   mean (G_l(y) - G_l(painting))^2 / mean G_l(painting)^2,   G_l = F_l' F_l / pixels
        variation = mean of the squared differences of neighbours

    F_l [pixels, channels] is the first map of block l of `net`, and m the last block but one. All are means, and
    relative ones: they are comparable between resolutions and nets.
    """

    net: FeatureNet
    painting: Float[Array, "size size 3"]
    grams: list[Float[Array, "_ _"]]
    energy: Float[Array, ""]  # of the painting's map in the layer of the content
    factors: tuple[float, float, float] = eqx.field(static=True)
    style: str = eqx.field(static=True)
    weights: str = eqx.field(static=True)  # which, in words

    @property
    def protocol(self) -> str:
        size, factors = (
            len(self.painting),
            " + ".join(
                f"{factor:g} {term}"
                for factor, term in zip(self.factors, ("content", "style", "variation"), strict=True)
            ),
        )
        return f"{size} x {size} pixels in the style of {self.style}; {factors}, by a net with {self.weights}"

    @property
    def shapes(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.painting.shape, self.painting.dtype)

    def init(self, task: Canvas, key: Any) -> Any:
        return BRIGHTNESS + NOISE * jax.random.normal(key, self.painting.shape, self.painting.dtype)

    def terms(self, y: Any, task: Canvas) -> mb.problem.Metrics:
        """Content, style and variation, without their factors."""
        maps = self.net.maps(y)
        content = jnp.mean((shown(maps) - task.map) ** 2) / (jnp.mean(task.map**2) + self.energy)
        styles = [jnp.mean((gram(f) - g) ** 2) / jnp.mean(g**2) for f, g in zip(maps, self.grams, strict=True)]
        variation = (jnp.mean(jnp.diff(y, axis=0) ** 2) + jnp.mean(jnp.diff(y, axis=1) ** 2)) / 2
        return {"content": content, "style": jnp.stack(styles).mean(), "variation": variation}

    def loss(self, y: Any, task: Canvas, key: Any) -> Any:
        return self.judge(y, task, key)[0]

    def judge(self, y: Any, task: Canvas, key: Any) -> Any:
        terms = self.terms(y, task)
        return sum(a * term for a, term in zip(self.factors, terms.values(), strict=True)), terms


class Photographs(mb.TaskDistribution):
    """Crops, uint8 [n, size, size, 3], of photographs that are others in every split; each is drawn equally often."""

    subject: NeuralArt
    train: Array
    valid: Array
    test: Array

    def sample(self, key: Any, split: Any) -> Canvas:
        crops = {"train": self.train, "valid": self.valid, "test": self.test}[split]
        return self.subject_of(crops[jax.random.randint(key, (), 0, len(crops))])

    def subject_of(self, crop: Any) -> Canvas:
        """The task of one crop."""
        content = crop.astype(self.subject.painting.dtype) / 255
        return Canvas(content, shown(self.subject.net.maps(content)))


def gram(f: Float[Array, "h w c"]) -> Float[Array, "c c"]:
    """The products of channels, mean over the pixels."""
    f = f.reshape(-1, f.shape[-1])
    return f.T @ f / len(f)


def shown(maps: list[Any]) -> Any:
    """The map of the last block but one, which keeps what is where and lets the colours go."""
    return maps[max(0, len(maps) - 2)]


def neural_art(
    *,
    style: Literal["starry_night", "the_scream", "shipwreck_of_the_minotaur", "great_wave"] = "starry_night",
    size: Literal[64, 128] = 64,
    content_factor: float = 0.5,
    style_factor: float = 1.0,
    variation_factor: float = 3.0,
    weights: str | None = None,
    seed: int = 0,
) -> Photographs:
    """Crops of the Kodak photographs, to be painted in the style of one painting, from noise (Gatys et al. 2015,
    arXiv:1508.06576; as a task of learned optimizers: Andrychowicz et al. 2016, arXiv:1606.04474, section 3.4).

    The loss is the sum of a content term, a style term by Gram matrices, and the variation of neighbouring pixels, of
    the maps of a convolutional net; all are relative means. The crops do not overlap:
    of 64 pixels there are 24 in a photograph, of 128 six. Photographs of odd numbers train, numbers 2, 6, 10, ... are
    for validation, and 4, 8, 12, ... for the test.

    **Arguments:**

    - `style`: the painting, averaged over squares to the size of a crop.
    - `size`: pixels of a side of a crop. An optimizer that was learned at one size runs at the other.
    - `content_factor`, `style_factor`, `variation_factor`: of the three terms in the loss.
    - `weights`: an .npz file with the weights of the net, conv1_1_weights [out, in, 3, 3] and conv1_1_bias [out] for
      the first convolution of the first block, as VGG's are named; if none, a random net of four blocks.
    - `seed`: of the random net.

    **Raises:** `InputError` for a negative factor or seed or a file of other weights, `DataError` where there are no
    photographs.
    """
    factors = (content_factor, style_factor, variation_factor)
    for name, factor in zip(("content_factor", "style_factor", "variation_factor"), factors, strict=True):
        errors.number(name, factor, 0)
    errors.count("seed", seed, 0)
    net = random_net(seed) if weights is None else read_net(Path(weights).expanduser())
    pictures = data.load(PHOTOS)
    squares = pictures["paintings"][PAINTINGS.index(style)].reshape(size, SIDE // size, size, SIDE // size, 3)
    painting = jnp.asarray(squares.mean((1, 3)) / 255, float)
    maps = net.maps(painting)
    said = f"random He-normal weights, seed {seed}" if weights is None else f"weights out of {Path(weights).name}"
    art = NeuralArt(net, painting, [gram(f) for f in maps], jnp.mean(shown(maps) ** 2), factors, style, said)
    ways = ("landscape", "portrait")
    crops = np.concatenate([_crops(pictures[way], size) for way in ways])
    numbers = np.concatenate([pictures[f"{way}_number"] for way in ways])
    chosen = {"train": numbers % 2 == 1, "valid": numbers % 4 == 2, "test": numbers % 4 == 0}
    return Photographs(art, **{part: jnp.asarray(np.concatenate(crops[which])) for part, which in chosen.items()})


def _crops(images: np.ndarray, size: int) -> np.ndarray:
    """All squares [n, m, size, size, 3] of the images [n, h, w, 3], m to an image."""
    n, h, w, c = images.shape
    squares = images.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(n, -1, size, size, c)
