"""The file of arrays that a peer is given."""

import numpy as np
import torch


def load(file):
    """Tensors by name."""
    with np.load(file) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def outer_variable(given):
    """The leaves of x, of which there is at least one."""
    return [given[f"x.{i}"] for i in range(max(1, sum(name.startswith("x.") for name in given)))]


def batch(given):
    """((support inputs, support targets), (query inputs, query targets)), of all tasks."""
    return tuple((given[f"{part}.inputs"], given[f"{part}.targets"]) for part in ("support", "query"))


def single(batch):
    """A list of such pairs, one for each task."""
    (a, b), (c, d) = batch
    return [((a[t], b[t]), (c[t], d[t])) for t in range(len(a))]
