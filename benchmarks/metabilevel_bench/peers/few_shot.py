"""Adaptation by gradient descent: sinusoids, the Omniglot net, its head alone, and language models."""

from functools import partial

import torch
import torch.nn.functional as F
from descent import ADAPTED, Setting, functional
from given import batch, outer_variable, single
from gradients import TRANSFORMED, accumulated
from networks import Network, conv_body, conv_net, mlp, restored, swapped, transformer


def make(workload, peer, given):
    """A call that gives value and gradient, and the way back from the gradient's layout to that of x."""
    setting = Setting(given["rate"].item(), int(given["steps"]), bool(given.get("first_order", 0)))
    x, data, restore = [swapped(a) for a in outer_variable(given)], batch(given), restored
    features, fixed, loss = lambda fixed, inputs: inputs, 0, F.cross_entropy
    if workload.startswith("sinusoid"):
        outputs, loss = mlp, F.mse_loss
    elif workload == "transformer":
        x, restore = outer_variable(given), lambda a: a
        outputs = transformer(int(given["heads"]))
        loss = lambda outputs, targets: F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    else:
        data = tuple((images.movedim(-1, -3), targets) for images, targets in data)
        shape = {"stride": int(given["stride"]), "pool": bool(given["pool"])}
        outputs = conv_net(**shape)
        if workload.startswith("anil"):
            features, outputs, fixed = partial(conv_body, **shape), mlp, len(x) - 2

    if peer in ADAPTED:
        network, body = Network(outputs, x[fixed:]), [a.requires_grad_() for a in x[:fixed]]
        descent = ADAPTED[peer](network, loss, setting)
        adapted = lambda *task: descent(*((features(body, inputs), targets) for inputs, targets in task))
        x = [*body, *network.parameters()]
        call = accumulated(adapted, single(data), x)
    else:
        descent = functional(outputs, loss, setting)
        adapted = lambda x, *task: descent(x[fixed:], *((features(x[:fixed], inputs), t) for inputs, t in task))
        call = TRANSFORMED[peer](adapted, x, data, convolutions="stride" in given)
    return (followed_by_adam(call, x, given["outer_rate"].item()) if "outer_rate" in given else call), restore


def followed_by_adam(call, x, rate):
    """The same, and then a step of Adam."""
    adam = torch.optim.Adam(x, rate, fused=True)

    def step():
        value, gradient = call()
        for a, g in zip(x, gradient, strict=True):
            a.grad = g
        adam.step()
        return value, gradient

    return step
