"""Heads that are solved for: a ridge regression on the Omniglot net's features, and a support vector machine."""

from functools import partial

import torch
import torch.nn.functional as F
from given import batch, outer_variable, single
from gradients import TRANSFORMED, accumulated
from networks import conv_body, restored, swapped


def make(workload, peer, given):
    return (ridge if workload == "ridge-head" else support_vectors)(peer, given)


def ridge(peer, given):
    x, ways = [swapped(a) for a in outer_variable(given)], int(given["ways"])
    data = tuple((images.movedim(-1, -3), targets) for images, targets in batch(given))
    features = partial(conv_body, stride=int(given["stride"]), pool=bool(given["pool"]))

    def adapted(x, support, query):
        bias, *body, log_ridge, scale = x
        s, q = (F.pad(features(body, images), (0, 1), value=1.0) for images, _ in (support, query))
        kernel = s @ s.T + len(s) * log_ridge.exp() * torch.eye(len(s))
        dual = torch.linalg.solve(kernel, F.one_hot(support[1], ways).to(s.dtype))
        return F.cross_entropy(scale * q @ (s.T @ dual) + bias, query[1])

    if peer == "loop":
        leaves = [a.requires_grad_() for a in x]
        return accumulated(partial(adapted, leaves), single(data), leaves), restored
    return TRANSFORMED[peer](adapted, x, data, convolutions=True), restored


def support_vectors(peer, given):
    """All tasks in one call of qpth, which solves quadratic programs in batches."""
    from qpth.qp import QPFunction

    x, c, ways = [a.requires_grad_() for a in outer_variable(given)], given["c"].item(), int(given["ways"])
    (tasks, n, _), one_hot = x[0].shape, F.one_hot(given["support.targets"], ways).to(x[0].dtype)
    identity, none = torch.eye(n * ways), torch.zeros(tasks, n * ways)
    sums, totals = torch.kron(torch.eye(n), torch.ones(1, ways)).expand(tasks, -1, -1), torch.full((tasks, n), c)
    program = QPFunction(verbose=-1)

    def call():
        support, query, scale = x
        kernel = support @ support.mT
        blocks = torch.einsum("tij,kl->tikjl", kernel, torch.eye(ways)).reshape(tasks, n * ways, n * ways)
        linear = (one_hot - c * kernel @ one_hot).flatten(1)
        dual = program(blocks, linear, -identity.expand(tasks, -1, -1), none, sums, totals).view(tasks, n, ways)
        outputs = scale * query @ support.mT @ (c * one_hot - dual)
        value = F.cross_entropy(outputs.flatten(0, 1), given["query.targets"].flatten())
        return value, torch.autograd.grad(value, x)

    return call, lambda a: a
