"""CIFAR-FS: few-shot classification of the classes of CIFAR-100 (Bertinetto et al. 2019, arXiv:1805.08136)."""

import numpy as np

from metabilevel import FewShot, few_shot

from . import nets
from .cifar_data import photographs

_NAMES = {
    "train": """apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud
        cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard
        lobster mountain mouse mushroom oak_tree orange orchid palm_tree pear pine_tree plate porcupine possum rabbit
        raccoon ray road seal shrew skunk skyscraper snake spider squirrel streetcar sunflower tank tiger train trout
        tulip turtle willow_tree wolf""",
    "valid": """beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark
        television tractor""",
    "test": """baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table
        telephone wardrobe whale woman worm""",
}
SPLITS = {split: names.split() for split, names in _NAMES.items()}
CLASSES = sorted(name for names in SPLITS.values() for name in names)  # the official numbers follow the alphabet


def cifar_fs(
    *,
    ways: int = 5,
    shots: int = 5,
    train_ways: int | None = None,
    train_shots: int | None = None,
    queries: int = 15,
    network: nets.Name = "conv-max-pool",
    dropout: float = 0.0,
    transductive: bool = True,
    pool: int | None = None,
) -> FewShot:
    """N-way K-shot classification of photographs, 32 x 32; cross-entropy and accuracy.

    64, 16 and 20 classes train, validate and test. The original has 600 images of each; with the packed files that
    have 240, every accuracy says so. Channels have mean 0 and standard deviation 1 over the training classes.

    **Arguments:**

    - `ways`: classes of a task.
    - `shots`: support images of a class.
    - `train_ways`: classes of a training task; as `ways` if none.
    - `train_shots`: support images of a class in training; as `shots` if none.
    - `queries`: query images of a class.
    - `network`: conv has strides and a mean over the last map, conv-max-pool has pooling and the whole last map; r2d2
      and resnet12 are the larger nets of Bertinetto et al. and of Lee et al.
    - `dropout`: what r2d2 (Bertinetto et al.: .4) and resnet12 (Lee et al.: .1) drop in training.
    - `transductive`: whether the queries of a task are normalised together, and so inform one another.
    - `pool`: training has so many tasks, visited again and again with other images; if none, ever new ones.

    **Raises:** `InputError` for counts that the data do not have, `DataError` where the data cannot be had.
    """
    net = nets.network(network, dropout)
    pictures = np.concatenate(list(photographs(100).values()), 1)
    each = pictures.shape[1]
    return few_shot(
        pictures.reshape(-1, *pictures.shape[2:]), np.repeat(CLASSES, each), ways=ways, shots=shots,
        train_ways=train_ways, train_shots=train_shots, queries=queries, splits=SPLITS, network=net, standardise=True,
        pool=pool, transductive=transductive, note=f"{each} images a class",
    )  # fmt: skip
