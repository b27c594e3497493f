"""A PyTorch candidate of `learned_optimizer.py`, in a Python of its own: arguments, a file of arrays and `loop` or
`compile`.

For every line on standard input, one gradient of a window; then a line with the processor's seconds so far. The
gradient of the first call is saved beside the file.
"""

import os
import sys
import time

import numpy as np
import torch

torch.set_num_threads(len(os.sched_getaffinity(0)))
GIVEN = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1]).items()}
STEPS, SCALE, P = (GIVEN[name].item() for name in ("steps", "scale", "preprocess"))
LAYERS = range(sum(name.startswith("hidden") for name in GIVEN))


def mlp_loss(y):
    bias, weights, more = y.split([20, 784 * 20, 210])
    outputs = torch.sigmoid(GIVEN["inputs"] @ weights.view(784, 20) + bias) @ more[10:].view(20, 10) + more[:10]
    return torch.nn.functional.cross_entropy(outputs, GIVEN["targets"])


def quadratic_loss(y):
    runs, n = GIVEN["matrix"].shape[:2]
    return ((GIVEN["matrix"] @ y.view(runs, n, 1))[..., 0] - GIVEN["vector"]).square().sum() / runs


def features(g):
    if not P:
        return g[:, None]
    large = g.abs() >= np.exp(-P)
    logarithm = torch.where(large, g.abs(), 1.0).log() / P
    return torch.stack([torch.where(large, logarithm, -1.0), torch.where(large, g.sign(), np.exp(P) * g)], 1)


def step(weights, y, state):
    """A step of all coordinates, in the rows of one matrix, and the loss there."""
    loss = mlp_loss if "inputs" in GIVEN else quadratic_loss
    gradient = torch.func.grad(loss)(y.detach())
    if loss is quadratic_loss:
        gradient = gradient * len(GIVEN["matrix"])
    signal, after = features(gradient.detach()), []
    for layer, (h, c) in zip(weights[:-1], state, strict=True):
        signal, c = torch.lstm_cell(signal, (h, c), *layer)
        after.append((signal, c))
    y = y + SCALE * (signal @ weights[-1][0].T + weights[-1][1])[:, 0]
    return loss(y), y, after


def gradient(step):
    leaves = {name: a.clone().requires_grad_() for name, a in GIVEN.items() if name.startswith(("weights", "bias"))}
    layers = []
    for i in LAYERS:  # PyTorch's quarters are i, f, g, o and have two biases
        order = lambda a: torch.cat([a.chunk(4)[k] for k in (0, 1, 3, 2)])
        w, b = order(leaves[f"weights{i}"]), order(leaves[f"bias{i}"])
        inputs = w.shape[1] - w.shape[0] // 4
        layers.append((w[:, :inputs], w[:, inputs:], b, torch.zeros_like(b)))
    layers.append((leaves["weights_out"], leaves["bias_out"]))
    y, state = GIVEN["y"], [(GIVEN[f"hidden{i}"], GIVEN[f"cell{i}"]) for i in LAYERS]
    total = torch.zeros(())
    for _ in range(STEPS):
        loss, y, state = step(layers, y, state)
        total = total + loss
    total.backward()
    return {name: a.grad.numpy() for name, a in leaves.items()}


name = sys.argv[2]
chosen = torch.compile(step) if name == "compile" else step
for calls, _ in enumerate(sys.stdin):
    found = gradient(chosen)
    if calls == 0:
        np.savez(f"{sys.argv[1]}.{name}.npz", **found)
    sys.stdout.write(f"{time.process_time()}\n")
    sys.stdout.flush()
