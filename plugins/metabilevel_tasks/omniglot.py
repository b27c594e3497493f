"""Few-shot classification of Omniglot characters (Vinyals et al. 2016; Finn et al. 2017; Nichol et al. 2018)."""

import math
import random
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from metabilevel import (
    MLP,
    ConvNet,
    Episode,
    InputError,
    Learner,
    R2D2Net,
    ResNet12,
    TaskDistribution,
    classification,
    data,
    episodes,
    pooled,
)

from .omniglot_data import CHARACTERS, DRAWINGS, OMNIGLOT, SIDE, quarter_turns


class Omniglot(TaskDistribution):
    """Every class is another character, all its drawings turned by one angle; labels 0 to ways - 1 in random order.

    Images are [n, 28, 28, 1], ink 1.0 and paper 0.0, in order of their class. All drawings are kept in packed form,
    3.2 MB for each of the four turns, and those of a task are unpacked.
    """

    subject: Learner
    bits: UInt8[Array, "turns characters drawings bytes"]
    characters: dict[str, Int[Array, "..."]]
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    train_ways: int = eqx.field(static=True)
    train_shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    rotated: tuple[str, ...] = eqx.field(static=True)

    def sample(self, key, split):
        number, k_task, k_examples = pooled(key, self.subject.pool, split)
        k_character, _, k_turn = jax.random.split(k_task, 3)
        k_drawing = jax.random.split(k_examples, 3)[1]
        members = self.characters[split]
        ways, shots = (self.train_ways, self.train_shots) if split == "train" else (self.ways, self.shots)
        character = members[episodes.distinct(k_character, (), len(members), ways)]
        drawing = episodes.distinct(k_drawing, (ways,), DRAWINGS, shots + self.queries)
        turns = len(self.bits) if split in self.rotated else 1
        turn = jax.random.randint(k_turn, (ways,), 0, turns)
        bits = self.bits[turn[:, None], character[:, None], drawing]
        images = jnp.unpackbits(bits, axis=-1, count=math.prod(_SHAPE)).astype(float).reshape(*drawing.shape, *_SHAPE)
        return Episode(episodes.labelled(images[:, :shots]), episodes.labelled(images[:, shots:]), id=number)


def finn() -> dict[str, np.ndarray]:
    """Characters (from 0) of train, valid and test: 1,100, 100 and 423 of one shuffle of all, as in Finn et al.'s code.

    The shuffle is that of Python 2 with seed 1, as theirs; but they shuffled a directory listing, whose order only
    their disk knew, and this shuffles 0, 1, ..., 1622. So it is another draw of the same law.
    """
    order, rng = list(range(CHARACTERS)), random.Random(1)
    for i in reversed(range(1, CHARACTERS)):
        j = int(rng.random() * (i + 1))
        order[i], order[j] = order[j], order[i]
    return dict(zip(("train", "valid", "test"), np.split(np.array(order), [1100, 1200]), strict=True))


def vinyals() -> dict[str, np.ndarray]:
    """Characters (from 0) of train, valid and test, 1,028, 172 and 423, split by alphabet as in Vinyals et al. 2016.

    Test has the last 423 characters, valid the alphabets Armenian, Bengali, Early Aramaic, Hebrew and Mkhedruli
    (Georgian): the lists of Ren et al. 2018 (github.com/renmengye/few-shot-ssl-public, MIT) as ranges.
    """
    valid = np.r_[26:67, 131:177, 250:272, 465:487, 728:769]
    return {"train": np.setdiff1d(np.arange(1200), valid), "valid": valid, "test": np.arange(1200, CHARACTERS)}


_SHAPE = (SIDE, SIDE, 1)
_SPLITS = {"finn": finn, "vinyals": vinyals}
_ROTATED = {"always": ("train", "valid", "test"), "train": ("train",), "never": ()}
_NETWORKS = {
    "conv": lambda ways, filters: ConvNet(_SHAPE, ways, filters),
    "conv-flatten": lambda ways, filters: ConvNet(_SHAPE, ways, filters, readout="flatten", scale=True),
    "conv-max-pool": lambda ways, filters: ConvNet(_SHAPE, ways, filters, down="max-pool", readout="flatten"),
    "mlp": lambda ways, filters: MLP(math.prod(_SHAPE), (256, 128, 64, 64), ways, batch_norm=True),
    "r2d2": lambda ways, filters: R2D2Net(_SHAPE, ways),
    "resnet12": lambda ways, filters: ResNet12(_SHAPE, ways),
}


def omniglot(
    *,
    ways: int = 5,
    shots: int = 1,
    train_ways: int | None = None,
    train_shots: int | None = None,
    queries: int | None = None,
    split: Literal["finn", "vinyals"] = "finn",
    rotate: Literal["always", "train", "never"] = "always",
    network: Literal["conv", "conv-flatten", "conv-max-pool", "mlp", "r2d2", "resnet12"] = "conv",
    filters: int = 64,
    transductive: bool = True,
    pool: int | None = None,
) -> Omniglot:
    """N-way K-shot classification of drawings, 28 x 28; cross-entropy and accuracy. The default is Finn et al.'s.

    **Arguments:**

    - `ways`: classes of a task.
    - `shots`: support drawings of a class.
    - `train_ways`: characters of a training task; as `ways` if none.
    - `train_shots`: support drawings of a class in training; as `shots` if none.
    - `queries`: query drawings of a class; as `shots` if none.
    - `split`: of the characters: finn, random, 1,100 / 100 / 423; vinyals, by alphabet, 1,028 / 172 / 423.
    - `rotate`: where a class is turned by 0, 90, 180 or 270 degrees: always (Finn et al.), in training only (Nichol
      et al.), or never.
    - `network`: conv is that of Finn et al. (stride 2, mean of the last map), conv-flatten that of Nichol et al.
      (stride 2, the whole last map, normalisation with a learned factor), conv-max-pool has pooling in place of
      strides (Vinyals et al.), mlp is Finn et al.'s net without convolutions; r2d2 and resnet12 are the larger nets
      of Bertinetto et al. and of Lee et al., whose sizes are fixed.
    - `filters`: of every convolution of the first three.
    - `transductive`: whether the queries of a task are normalised together, and so inform one another.
    - `pool`: training has so many tasks, each of fixed characters, turns and labels, visited again and again with
      other drawings; if none, ever new ones.

    **Raises:** `InputError` for counts that the data do not have, `DataError` where the data cannot be had.
    """
    chosen = {"split": (split, _SPLITS), "rotate": (rotate, _ROTATED), "network": (network, _NETWORKS)}
    for name, (value, allowed) in chosen.items():
        if value not in allowed:
            raise InputError(f"{name} = {value!r}: one of {', '.join(allowed)} is wanted.")
    train_ways = ways if train_ways is None else train_ways
    train_shots, queries = shots if train_shots is None else train_shots, shots if queries is None else queries
    counts = {"ways": ways, "shots": shots, "queries": queries, "filters": filters}
    counts |= {"train_ways": train_ways, "train_shots": train_shots}
    counts |= {} if pool is None else {"pool": pool}
    for name, count in counts.items():
        least = 2 if name in ("ways", "train_ways") else 1  # a single class is no classification
        if count < least:
            raise InputError(f"{name} = {count}: at least {least} is wanted.")
    if max(shots, train_shots) + queries > DRAWINGS:
        name, count = max(("shots", shots), ("train_shots", train_shots), key=lambda pair: pair[1])
        raise InputError(f"{name} = {count} and queries = {queries}: a character has {DRAWINGS} drawings in all.")
    characters = _SPLITS[split]()
    sizes = {name: len(members) for name, members in characters.items()}
    most = {"ways": min(sizes["valid"], sizes["test"]), "train_ways": sizes["train"]}
    for name, value in {"ways": ways, "train_ways": train_ways}.items():
        if value > most[name]:
            named = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise InputError(
                f"{name} = {value}: at most {most[name]} with split = {split}, which has {named} characters."
            )
    net = _NETWORKS[network](max(ways, train_ways), filters)
    learner = classification(net, transductive=transductive, pool=pool, ways=(train_ways, ways))
    members = {name: jnp.asarray(numbers, jnp.int32) for name, numbers in characters.items()}
    rotated = _ROTATED[rotate]
    bits = quarter_turns(data.load(OMNIGLOT)["bits"], 4 if rotated else 1)
    return Omniglot(learner, jnp.asarray(bits), members, ways, shots, train_ways, train_shots, queries, rotated)
