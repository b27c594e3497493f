"""The gradient of a window of the LSTM optimizer with respect to its weights."""

import numpy as np
import torch
import torch.nn.functional as F
from given import outer_variable


def make(workload, peer, given):
    x = [a.requires_grad_() for a in outer_variable(given)]
    steps, scale, p = int(given["steps"]), given["scale"].item(), given["preprocess"].item()
    state = [(given[f"hidden.{i}"], given[f"cell.{i}"]) for i in range(len(x) // 2 - 1)]
    losses, runs = (mlp if workload == "lstm-mlp" else quadratics)(given)

    def inputs(g):
        if not p:
            return g[:, None]
        large = g.abs() >= np.exp(-p)
        logarithm = torch.where(large, g.abs(), 1.0).log() / p
        return torch.stack([torch.where(large, logarithm, -1.0), torch.where(large, g.sign(), np.exp(p) * g)], 1)

    def update(cells, out, g, state):
        signal, after = inputs(g), []
        for cell, (h, c) in zip(cells, state, strict=True):
            h, c = torch.lstm_cell(signal, (h, c), *cell)
            signal = h
            after.append((h, c))
        return scale * F.linear(signal, out[1], out[0])[:, 0], after

    update = torch.compile(update) if peer == "torch.compile" else update

    def call():
        *layers, out = zip(x[::2], x[1::2], strict=True)
        cells, y, now, total = [cell(*layer) for layer in layers], given["y"].requires_grad_(), state, 0.0
        loss = losses(y)
        for _ in range(steps):
            (g,) = torch.autograd.grad(loss, y, retain_graph=True)
            change, now = update(cells, out, g, now)
            y = y + change
            loss = losses(y)
            total = total + loss
        value = total / runs
        return value, torch.autograd.grad(value, x)

    return call, lambda a: a


def cell(bias, weights):
    """Weights of inputs and of states, and two biases, with PyTorch's order of gates: i, f, candidate, o."""
    bias, weights = (torch.cat([a.chunk(4)[gate] for gate in (0, 1, 3, 2)]) for a in (bias, weights))
    units = len(bias) // 4
    return weights[:, :-units], weights[:, -units:], bias, torch.zeros_like(bias)


def mlp(given):
    """A loss, whose derivative is the optimizer's input, and how many runs it is the sum of."""
    images, targets, units = given["support.inputs"], given["support.targets"], int(given["units"])
    pixels, classes = images.shape[1], 10
    sizes = [units, pixels * units, classes, units * classes]

    def loss(y):
        bias, weights, out_bias, out_weights = y.split(sizes)
        hidden = torch.sigmoid(torch.addmm(bias, images, weights.view(pixels, units)))
        return F.cross_entropy(torch.addmm(out_bias, hidden, out_weights.view(units, classes)), targets)

    return loss, 1


def quadratics(given):
    matrix, vector = given["matrix"], given["vector"]
    return lambda y: (torch.bmm(matrix, y.view(*vector.shape, 1))[..., 0] - vector).square().sum(), len(matrix)
