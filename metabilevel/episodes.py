"""Few-shot classification of images that are given as arrays: a data set of one's own, in a few lines."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .errors import InputError, count
from .learner import Learner, classification
from .networks import AbstractNetwork, ConvNet
from .problem import Key
from .tasks import Data, Episode, TaskDistribution, pooled

_SPLITS = ("train", "valid", "test")


class FewShot(TaskDistribution):
    """N-way K-shot tasks: every class is another one of the split, labels are 0 to ways - 1 in random order.

    All images lie on the device, class after class, as they were given: `first` and `size` say where a class lies.
    Those of a task are distinct, in order of their class, and standardised: (stored - mean) / std.
    """

    subject: Learner
    images: Shaped[Array, "n h w c"]
    first: Int[Array, " classes"]
    size: Int[Array, " classes"]
    classes: dict[str, Int[Array, "..."]]
    mean: Float[Array, " c"]
    std: Float[Array, " c"]
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    train_ways: int = eqx.field(static=True)
    train_shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    largest: int = eqx.field(static=True)

    def sample(self, key, split):
        members = self.classes[split]
        ways, shots = (self.train_ways, self.train_shots) if split == "train" else (self.ways, self.shots)
        if not len(members):
            raise InputError(f"split = {split!r}: it has no classes.")
        number, k_task, k_examples = pooled(key, self.subject.pool, split)
        k_class, k_example = jax.random.split(k_task)[0], jax.random.split(k_examples)[1]
        chosen = members[distinct(k_class, (), len(members), ways)]
        example = distinct(k_example, (ways,), self.largest, shots + self.queries, self.size[chosen])
        images = self.images[self.first[chosen][:, None] + example].astype(float)
        images = (images - self.mean) / self.std
        return Episode(labelled(images[:, :shots]), labelled(images[:, shots:]), id=number)


def distinct(
    key: Key, shape: tuple[int, ...], size: int, draws: int, limits: Int[Array, "..."] | None = None
) -> Int[Array, "... draws"]:
    """`draws` different numbers below `size` in random order, for every index of `shape`: the largest of random keys.

    With `limits`, of that shape, the numbers of each index lie below its limit; it is `draws` or more.

    Keys are float32 even in double precision: XLA has a fast top-k on CPU for these alone. Two of them tie about once
    in 10^7 pairs, which is in favour of the lower number.
    """
    keys = jax.random.uniform(key, (*shape, size), jnp.float32)
    if limits is not None:
        keys = jnp.where(jnp.arange(size) < limits[..., None], keys, -1.0)
    return jax.lax.top_k(keys, draws)[1]


def labelled(images: Float[Array, "ways examples *shape"]) -> Data:
    """The images of each class in turn, with the class's number for a target."""
    ways, examples = images.shape[:2]
    return Data(images.reshape(-1, *images.shape[2:]), jnp.repeat(jnp.arange(ways), examples))


def few_shot(
    images: Any,
    labels: Any,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    train_ways: int | None = None,
    train_shots: int | None = None,
    splits: Mapping[str, Any] | Sequence[float] = (0.64, 0.16, 0.2),
    seed: int = 0,
    network: Callable[[tuple[int, int, int], int], AbstractNetwork] = ConvNet,
    standardise: bool = False,
    pool: int | None = None,
    transductive: bool = True,
    note: str = "",
) -> FewShot:
    """N-way K-shot classification of images of one's own; cross-entropy and accuracy.

        tasks = mb.few_shot(images, labels, ways=5, shots=1)
        method = mb.load_method("maml")(tasks.subject)
        x, history = mb.fit(method, tasks, optax.adam(1e-3), key=jax.random.key(0), steps=1000, meta_batch=8)

    **Arguments:**

    - `images`: [n, h, w] or [n, h, w, c], or n arrays [h, w] or [h, w, c]. uint8 are scaled to [0, 1]; booleans and
      floats are taken as they are.
    - `labels`: n names of classes, of any kind that can be a key of a dictionary. Classes may differ in size.
    - `ways`, `shots`, `queries`: classes of a task, support images of a class, query images of a class.
    - `train_ways`, `train_shots`: classes, and support images of a class, in training; as at test if None.
    - `splits`: the classes of each split, `{"train": [...], "valid": [...], "test": [...]}`; or the fractions of all
      classes for the three, drawn at random by `seed`. A split may be empty, and is not sampled then.
    - `network(shape of an image, ways)`: such as `ConvNet`, `R2D2Net`, `partial(ConvNet, filters=32)`.
    - `standardise`: whether every channel has mean 0 and standard deviation 1 over the training classes.
    - `pool`, `transductive`: see `Learner`. A task of a pool has fixed classes and labels. `note`: see `Learner`.

    **Raises:** `InputError`: for counts below 1, or a single way; images that differ in shape or are not finite;
    lengths that differ; a class with too few images, a split with too few classes.
    """
    train_ways, train_shots = (
        train_ways if train_ways is not None else ways,
        shots if train_shots is None else train_shots,
    )
    sizes = {"ways": ways, "shots": shots, "queries": queries, "train_ways": train_ways, "train_shots": train_shots}
    for name, size in (sizes | ({} if pool is None else {"pool": pool})).items():
        count(name, size, 2 if name in ("ways", "train_ways") else 1)  # a single class is no classification
    pixels = _stacked(images)
    rows = _rows(labels, len(pixels))
    chosen = _split(splits, seed, list(rows))
    for split, classes in chosen.items():
        name, wanted = ("train_ways", train_ways) if split == "train" and train_ways != ways else ("ways", ways)
        if 0 < len(classes) < wanted:
            raise InputError(f"{name} = {wanted}: {split} has {len(classes)} of all {len(rows)} classes. See `splits`.")
        _require_images(split, {c: len(rows[c]) for c in classes}, train_shots if split == "train" else shots, queries)
    used = [c for classes in chosen.values() for c in classes]
    if not used:
        raise InputError(f"splits = {splits!r}: there are classes in none of them.")
    size = np.array([len(rows[c]) for c in used])
    place = {c: i for i, c in enumerate(used)}
    members = {split: jnp.array([place[c] for c in classes], jnp.int32) for split, classes in chosen.items()}
    mean, std = np.zeros(pixels.shape[-1]), np.full(pixels.shape[-1], 255.0 if pixels.dtype == np.uint8 else 1.0)
    if standardise:
        mean, std = _statistics([pixels[rows[c]] for c in chosen["train"]])
    net = network(pixels.shape[1:], max(ways, train_ways))
    learner = classification(net, transductive=transductive, pool=pool, ways=(train_ways, ways), note=note)
    return FewShot(
        subject=learner,
        images=jnp.asarray(pixels[np.concatenate([rows[c] for c in used])]),
        first=jnp.asarray(np.cumsum(size) - size, jnp.int32),
        size=jnp.asarray(size, jnp.int32),
        classes=members,
        mean=jnp.asarray(mean, float),
        std=jnp.asarray(std, float),
        **sizes,
        largest=int(size.max()),
    )


def _stacked(images: Any) -> np.ndarray:
    """[n, h, w, c], uint8 or floating."""
    if not hasattr(images, "shape"):
        images = [np.asarray(image) for image in images]
        for i, image in enumerate(images):
            if (image.shape, image.dtype) != (images[0].shape, images[0].dtype):
                kinds = [f"{a.dtype} of shape {a.shape}" for a in (images[0], image)]
                raise InputError(f"images[0] is {kinds[0]}, and images[{i}] is {kinds[1]}: they must be alike.")
    pixels = np.asarray(images)
    if pixels.ndim not in (3, 4) or 0 in pixels.shape:
        raise InputError(f"images has the shape {pixels.shape}: [n, h, w] or [n, h, w, c] is wanted.")
    if pixels.dtype == bool:
        pixels = pixels.astype(np.float32)
    if pixels.dtype != np.uint8 and not np.issubdtype(pixels.dtype, np.floating):
        raise InputError(f"images holds {pixels.dtype}: uint8, which is scaled to [0, 1], or floats are wanted.")
    if pixels.dtype != np.uint8 and not (finite := np.isfinite(pixels).all(tuple(range(1, pixels.ndim)))).all():
        raise InputError(
            f"images[{finite.argmin()}] holds NaN or infinity; {(~finite).sum()} of {len(pixels)} images do."
        )
    return pixels if pixels.ndim == 4 else pixels[..., None]


def _rows(labels: Any, n: int) -> dict[Hashable, np.ndarray]:
    """The numbers of the images of each class, in the order in which the classes come."""
    labels = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(labels) != n:
        raise InputError(f"There are {n} images and {len(labels)} labels: one label for each image is wanted.")
    rows: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        if not isinstance(label, Hashable):
            raise InputError(f"labels[{i}] = {label!r}: the name of a class is wanted, such as a number or a text.")
        rows.setdefault(label, []).append(i)
    return {label: np.array(members) for label, members in rows.items()}


def _split(
    splits: Mapping[str, Any] | Sequence[float], seed: int, classes: list[Hashable]
) -> dict[str, list[Hashable]]:
    if not isinstance(splits, Mapping):
        if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
            raise InputError(f"splits = {splits!r}: three fractions that sum to 1 are wanted, or classes by split.")
        order = np.random.default_rng(seed).permutation(len(classes))
        bounds = np.rint(np.cumsum(splits)[:2] * len(classes)).astype(int)
        parts = np.split(order, bounds)
        return {name: [classes[i] for i in part] for name, part in zip(_SPLITS, parts, strict=True)}
    if unknown := [name for name in splits if name not in _SPLITS]:
        raise InputError(f"splits names {unknown[0]!r}: one of {', '.join(_SPLITS)} is wanted.")
    chosen = {name: list(splits.get(name, ())) for name in _SPLITS}
    seen: dict[Hashable, str] = {}
    for name, members in chosen.items():
        for label in members:
            if label not in classes:
                raise InputError(f"splits names the class {label!r} in {name}, and no image has that label.")
            if label in seen:
                raise InputError(f"splits names the class {label!r} twice, in {seen[label]} and in {name}.")
            seen[label] = name
    return chosen


def _require_images(split: str, sizes: Mapping[Hashable, int], shots: int, queries: int) -> None:
    for label, size in sizes.items():
        if size < shots + queries:
            wanted = f"{shots} shots and {queries} queries"
            raise InputError(f"The class {label!r} of {split} has {size} images: too few for {wanted}.")


def _statistics(classes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every channel, class by class: no floating copy of all images is made."""
    if not classes:
        raise InputError("standardise: the statistics are those of the training classes, and there are none.")
    pixels = sum(images[..., 0].size for images in classes)
    mean = np.sum([images.sum((0, 1, 2), dtype=float) for images in classes], 0) / pixels
    variance = np.sum([((images - mean) ** 2).sum((0, 1, 2)) for images in classes], 0) / pixels
    return mean, np.where(variance > 0, np.sqrt(variance), 1.0)
