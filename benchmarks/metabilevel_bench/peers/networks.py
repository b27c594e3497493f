"""Networks as functions of a list of parameters, which alternates biases and weights, and as modules."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(parameters, inputs):
    *hidden, (bias, weights) = layers(parameters)
    for b, w in hidden:
        inputs = F.relu(F.linear(inputs, w, b))
    return F.linear(inputs, weights, bias)


def conv_body(parameters, images, stride, pool):
    for bias, weights in layers(parameters):
        before, after = padding(images.shape[-1], stride)
        if before != after:
            images = F.pad(images, (before, after, before, after))
        images = F.conv2d(images, weights, stride=stride, padding=before if before == after else 0)
        # A scale of ones: without one, PyTorch has no second derivative here.
        images = F.batch_norm(images, None, None, torch.ones_like(bias), bias, training=True, eps=1e-3)
        images = F.relu(F.max_pool2d(images, 2) if pool else images)
    return images.permute(0, 2, 3, 1).flatten(1) if pool else images.mean((2, 3))


def padding(pixels, stride):
    """Zeros before and after."""
    total = max(stride * (-(-pixels // stride) - 1) + 3 - pixels, 0)
    return total // 2, total - total // 2


def conv_net(stride, pool):
    def outputs(parameters, images):
        *body, bias, weights = parameters
        return F.linear(conv_body(body, images, stride, pool), weights, bias)

    return outputs


def transformer(heads):
    def normed(h, scale_and_shift):
        # The affine part apart: with it, PyTorch's second derivative is wrong under vmap.
        return F.layer_norm(h, h.shape[-1:]) * scale_and_shift[0] + scale_and_shift[1]

    def attention(h, qkv):
        q, k, v = ((h @ m).unflatten(-1, (heads, -1)).transpose(-2, -3) for m in qkv.chunk(3, -1))
        # By hand: PyTorch's fused attention has no second derivative.
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return (scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(-2, -3).flatten(-2)

    def outputs(parameters, inputs):
        *blocks, norm, positions, tokens = parameters
        h = F.embedding(inputs, tokens) + positions
        for down, norm_a, norm_b, out, qkv, up in zip(*[iter(blocks)] * 6, strict=True):
            h = h + attention(normed(h, norm_a), qkv) @ out
            h = h + F.gelu(normed(h, norm_b) @ up, approximate="tanh") @ down
        return normed(h, norm) @ tokens.T

    return outputs


def layers(parameters):
    """Pairs of bias and weights."""
    return list(zip(parameters[::2], parameters[1::2], strict=True))


def swapped(a):
    """An array of weights as PyTorch has it, or back again: [outputs, inputs], or [outputs, inputs, height, width] in
    the memory of channels last."""
    return a.permute(0, 3, 1, 2) if a.ndim == 4 else a.mT.contiguous() if a.ndim == 2 else a


def restored(a):
    """The reverse of `swapped`."""
    return a.permute(0, 2, 3, 1) if a.ndim == 4 else a.mT if a.ndim == 2 else a


class Network(nn.Module):
    """`function(parameters, inputs)` as a module."""

    def __init__(self, function, parameters):
        super().__init__()
        self.function = function
        self.names = [f"parameter_{i}" for i in range(len(parameters))]
        for name, parameter in zip(self.names, parameters, strict=True):
            self.register_parameter(name, nn.Parameter(parameter))

    def forward(self, inputs):
        return self.function([getattr(self, name) for name in self.names], inputs)
