"""Gradient descent on a task's support loss, differentiated by every library in its users' way.

`ADAPTED[name](network, loss, setting)` is a function of a task, `(support, query)`, to the query loss after the
descent, whose derivative reaches the parameters of `network`; `functional` needs no module.
"""

import importlib.util
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Setting:
    rate: float
    steps: int
    first_order: bool = False


def loop(network, loss, setting):
    """`torch.autograd.grad` and lists of tensors."""
    parameters = list(network.parameters())

    def adapted(support, query):
        y = parameters
        for _ in range(setting.steps):
            support_loss = loss(network.function(y, support[0]), support[1])
            gradient = torch.autograd.grad(support_loss, y, create_graph=not setting.first_order)
            y = [p - setting.rate * g for p, g in zip(y, gradient, strict=True)]
        return loss(network.function(y, query[0]), query[1])

    return adapted


def by_higher(network, loss, setting):
    import higher

    optimizer = torch.optim.SGD(network.parameters(), setting.rate)
    callback = (lambda gradients: [g.detach() for g in gradients]) if setting.first_order else None

    def adapted(support, query):
        with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (fast, descent):
            for _ in range(setting.steps):
                descent.step(loss(fast(support[0]), support[1]), grad_callback=callback)
            return loss(fast(query[0]), query[1])

    return adapted


def by_learn2learn(network, loss, setting):
    # The package's own __init__ imports environments and data sets besides, which few have installed.
    specification = importlib.util.find_spec("learn2learn")
    if specification is None:
        raise ModuleNotFoundError("No module named 'learn2learn'")
    sys.modules["learn2learn"] = importlib.util.module_from_spec(specification)
    from learn2learn.algorithms import MAML

    maml = MAML(network, setting.rate, first_order=setting.first_order)

    def adapted(support, query):
        learner = maml.clone()
        for _ in range(setting.steps):
            learner.adapt(loss(learner(support[0]), support[1]))
        return loss(learner(query[0]), query[1])

    return adapted


def by_torchopt(network, loss, setting):
    import torchopt

    descent = torchopt.MetaSGD(network, setting.rate)
    start = [torchopt.extract_state_dict(each, by="reference") for each in (network, descent)]

    def adapted(support, query):
        for _ in range(setting.steps):
            descent.step(loss(network(support[0]), support[1]))
        query_loss = loss(network(query[0]), query[1])
        for each, state in zip((network, descent), start, strict=True):
            torchopt.recover_state_dict(each, state)
        return query_loss

    return adapted


ADAPTED = {"loop": loop, "higher": by_higher, "learn2learn": by_learn2learn, "torchopt": by_torchopt}


def functional(outputs, loss, setting):
    """The same as a function of parameters too, for the transformations of `torch.func`."""

    def adapted(parameters, support, query):
        y = parameters
        for _ in range(setting.steps):
            gradient = torch.func.grad(lambda y: loss(outputs(y, support[0]), support[1]))(y)
            if setting.first_order:
                gradient = [g.detach() for g in gradient]
            y = [p - setting.rate * g for p, g in zip(y, gradient, strict=True)]
        return loss(outputs(y, query[0]), query[1])

    return adapted
