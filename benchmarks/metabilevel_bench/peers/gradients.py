"""Calls that give the mean of `adapted` over all tasks, and its gradient, in three ways."""

import torch
from given import single


def accumulated(adapted, tasks, parameters):
    """One task after the other; `adapted(support, query)` has the parameters at hand."""

    def call():
        value = 0.0
        for parameter in parameters:
            parameter.grad = None
        for support, query in tasks:
            loss = adapted(support, query) / len(tasks)
            loss.backward()
            value += loss.item()
        return value, [parameter.grad for parameter in parameters]

    return call


def vmapped(adapted, x, data, convolutions, transform=lambda fn: fn):
    """All tasks at once."""
    mean = lambda x, *data: torch.vmap(adapted, in_dims=(None, 0, 0))(x, *data).mean()
    gradient = transform(torch.func.grad_and_value(mean))
    return lambda: gradient(x, *data)[::-1]


def compiled(adapted, x, data, convolutions):
    """All tasks at once, or, where there are convolutions, which are slow with every task's own weights, one by one."""
    if not convolutions:
        return vmapped(adapted, x, data, convolutions, torch.compile)
    gradient, tasks = torch.compile(torch.func.grad_and_value(adapted)), single(data)

    def call():
        value, total = 0.0, [torch.zeros_like(a) for a in x]
        for task in tasks:
            found, loss = gradient(x, *task)
            value += loss.item() / len(tasks)
            torch._foreach_add_(total, found, alpha=1 / len(tasks))
        return value, total

    return call


TRANSFORMED = {"torch.func": vmapped, "torch.func + compile": compiled}
