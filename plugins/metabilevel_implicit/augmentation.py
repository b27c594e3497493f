"""Data augmentation as an outer variable: a U-Net with noise, which the training images go through."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import metabilevel as mb
from metabilevel import errors

from .tuning import Optimizer, descent


class UNet(eqx.Module):
    """images + net(images, noise), with a channel of normal noise beside theirs; the identity at the start.

    Level i = 0 ... `depth` has width 2^i maps of 3 x 3 convolutions, half as large as those before; on the way back
    they are doubled, and joined with those of their size. Between layers stands a -> a sigmoid(a), which is smooth.
    """

    channels: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def init(self, key: Any) -> Any:
        maps = [self.width * 2**i for i in range(self.depth + 1)]
        down = zip([self.channels + 1, *maps], maps, strict=False)
        up = [(few + many, few) for few, many in itertools.pairwise(maps)][::-1]
        layers = [*down, *up, (self.width, self.channels)]
        keys, he = jax.random.split(key, len(layers)), jax.nn.initializers.he_normal()
        made = [{"weights": he(k, (3, 3, a, b)), "bias": jnp.zeros(b)} for k, (a, b) in zip(keys, layers, strict=True)]
        *rest, out = made
        return {"down": rest[: self.depth + 1], "up": rest[self.depth + 1 :], "out": jax.tree.map(jnp.zeros_like, out)}

    def __call__(self, x: Any, images: Any, key: Any) -> Any:
        """Augmented images [n, h, w, channels]; the same for the same key."""
        noise = jax.random.normal(key, (*images.shape[:-1], 1), images.dtype)
        maps, passed = jnp.concatenate([images, noise], -1), []
        for level, layer in enumerate(x["down"]):
            maps = jax.nn.silu(_convolution(layer, maps, stride=2 if level else 1))
            passed.append(maps)
        maps = passed.pop()
        for layer in x["up"]:
            beside = passed.pop()
            doubled = maps.repeat(2, 1).repeat(2, 2)[:, : beside.shape[1], : beside.shape[2]]
            maps = jax.nn.silu(_convolution(layer, jnp.concatenate([doubled, beside], -1)))
        return images + _convolution(x["out"], maps)


def _convolution(layer: Any, maps: Any, stride: int = 1) -> Any:
    # the weights are one for all tasks, so that this is never the grouped convolution that is slow on a CPU
    axes = ("NHWC", "HWIO", "NHWC")
    maps = jax.lax.conv_general_dilated(maps, layer["weights"], (stride, stride), "SAME", dimension_numbers=axes)
    return maps + layer["bias"]


def augmentation(
    learner: mb.Learner,
    *,
    channels: int = 3,
    width: int = 24,
    depth: int = 2,
    batch: int = 100,
    decay: float = 5e-4,
    optimizer: Optimizer = "momentum",
    learning_rate: float = 0.03,
    steps: int = 5,
    terms: int = 1,
    test_steps: int = 1000,
    warm_start: bool = True,
) -> mb.Method:
    """A learned data augmentation (Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590):

        minimise over x   loss of y(x) on the query set,
        y(x) = argmin_y   E_noise loss on U-Net(x, support images, noise) + decay |y|^2 / 2

    with x the weights of the U-Net, 131,355 by default. It augments the training images; those of the query are taken
    as they are. Every inner step draws images and noise anew, and so does the hypergradient, whose Hessian and cross
    derivative belong to one minibatch with one noise.

    **Arguments:**

    - `channels`: of an image.
    - `width`: maps of the U-Net at full size.
    - `depth`: how often it halves them.
    - `batch`: images of an inner step.
    - `decay`: of the weights.
    - `optimizer`: of the inner problem.
    - `learning_rate`: of that optimizer, and the scale of the Neumann series.
    - `steps`: of that optimizer between two outer steps.
    - `terms`: of the Neumann series.
    - `test_steps`: from a fresh start, to judge x.
    - `warm_start`: whether the weights are kept from one outer step to the next.

    **Raises:** `InputError` for sizes and numbers out of range, or images of other channels.
    """
    for name, size, least in (("channels", channels, 1), ("width", width, 1), ("depth", depth, 0), ("batch", batch, 1)):
        errors.count(name, size, least)
    errors.number("decay", decay, 0)
    net = UNet(channels, width, depth)

    def inner_loss(x: Any, y: Any, task: mb.Episode, key: Any) -> Any:
        k_rows, k_noise = jax.random.split(key)
        images, labels = task.support
        if images.ndim != 4 or images.shape[-1] != channels:
            raise mb.InputError(f"channels = {channels}: the inputs are of shape {images.shape}, [n, h, w, channels].")
        rows = jax.random.choice(k_rows, len(labels), (min(batch, len(labels)),), replace=False)
        fit = learner.fit(y, mb.Data(net(x, images[rows], k_noise), labels[rows]))
        return fit + decay * sum(jnp.sum(a**2) for a in jax.tree.leaves(y)) / 2

    problem = mb.BilevelProblem(
        init=lambda x, task, key: learner.init(key),
        inner_loss=inner_loss,
        outer_loss=lambda x, y, task, key: learner.test(y, task.query, task.support),
    )
    adjoint = mb.Implicit(mb.Neumann(terms, learning_rate))
    estimator = (mb.WarmStarted if warm_start else mb.Nested)(
        problem, descent(optimizer, learning_rate, steps), adjoint
    )
    return mb.Method(problem, net.init, estimator, descent(optimizer, learning_rate, test_steps))
