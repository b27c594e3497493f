"""Implicit differentiation: of implicit MAML on the Omniglot net, and of logistic regression with its penalties."""

from functools import partial

import torch
import torch.nn.functional as F
from given import batch, outer_variable, single
from networks import conv_net


def make(workload, peer, given):
    if workload == "imaml":
        return imaml(peer, given), lambda a: a
    return LOGISTIC[peer](given, workload.removeprefix("logistic-")), lambda a: a


def conjugate_gradients(product, b, iterations):
    """From zero."""
    v, residual = torch.zeros_like(b), b
    direction, square = residual, residual @ residual
    for _ in range(iterations):
        image = product(direction)
        step = square / (direction @ image)
        v, residual = v + step * direction, residual - step * image
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return v


def neumann(product, b, terms, scale):
    total = b
    for _ in range(terms):
        b = b - scale * product(b)
        total = total + b
    return scale * total


def hessian_by_autograd(loss, y):
    """Products with the Hessian, from one graph of the gradient."""
    (gradient,) = torch.autograd.grad(loss(y), y, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, y, v, retain_graph=True)[0]


def hessian_by_transform(loss, y):
    """The same by `torch.func`; a Hessian is symmetric."""
    product = torch.func.vjp(torch.func.grad(loss), y)[1]
    return lambda v: product(v)[0]


def imaml(peer, given):
    """The parameters are one vector in the order and layout of x, whose pieces are looked at as PyTorch has them."""
    leaves = outer_variable(given)
    x, sizes = torch.cat([a.flatten() for a in leaves]), [a.numel() for a in leaves]
    rate, steps, strength = given["rate"].item(), int(given["steps"]), given["strength"].item()
    iterations, net = int(given["iterations"]), conv_net(int(given["stride"]), bool(given["pool"]))
    data = tuple((images.movedim(-1, -3), targets) for images, targets in batch(given))

    def loss(y, task):
        pieces = (piece.view(a.shape) for piece, a in zip(y.split(sizes), leaves, strict=True))
        layouts = {4: lambda a: a.permute(0, 3, 1, 2), 2: torch.t, 1: lambda a: a}
        return F.cross_entropy(net([layouts[a.ndim](a) for a in pieces], task[0]), task[1])

    def descent(gradient, x, support):
        y = x
        for _ in range(steps):
            y = y - rate * (gradient(y, support) + strength * (y - x))
        return y

    def by_hand(support, query):
        def gradient(y, task):
            y = y.detach().requires_grad_()
            return torch.autograd.grad(loss(y, task), y)[0]

        y = descent(gradient, x, support).requires_grad_()
        value = loss(y, query)
        product = hessian_by_autograd(partial(loss, task=support), y)
        (b,) = torch.autograd.grad(value, y)
        return value, conjugate_gradients(lambda v: v + product(v) / strength, b, iterations)

    def by_transforms(support, query):
        y = descent(torch.func.grad(loss), x, support)
        b, value = torch.func.grad_and_value(loss)(y, query)
        product = hessian_by_transform(partial(loss, task=support), y)
        return value, conjugate_gradients(lambda v: v + product(v) / strength, b, iterations)

    def by_torchopt(support, query):
        start = x.clone().requires_grad_()
        value = loss(solve(None, start, support), query)
        return value, torch.autograd.grad(value, start)[0]

    if peer == "torchopt":
        import torchopt

        residual = lambda y, x, support: torch.func.grad(loss)(y, support) + strength * (y - x)
        solver = torchopt.linear_solve.solve_cg(maxiter=iterations, rtol=0.0)
        rooted = torchopt.diff.implicit.custom_root(residual, argnums=1, solve=solver)
        solve = rooted(lambda _, x, support: descent(torch.func.grad(loss), x, support))
    one = {"loop": by_hand, "torch.func": by_transforms, "torchopt": by_torchopt}[peer]

    def one_by_one():
        found = [one(*task) for task in single(data)]
        return tuple(torch.stack(part).mean(0) for part in zip(*found, strict=True))

    call = (lambda: [a.mean(0) for a in torch.vmap(one)(*data)]) if peer == "torch.func" else one_by_one

    def in_pieces():
        value, gradient = call()
        return value, [g.view(a.shape) for g, a in zip(gradient.split(sizes), leaves, strict=True)]

    return in_pieces


def logistic_loss(y, data):
    return F.softplus(-data[1] * (data[0] @ y)).mean()


def penalised(x, y, data):
    return logistic_loss(y, data) + (x.exp() * y.square()).sum() / 2


def inverse(given, kind):
    """`(product, b)` to the solution of a linear system."""
    iterations = int(given["iterations"])
    if kind == "cg":
        return lambda product, b: conjugate_gradients(product, b, iterations)
    return lambda product, b: neumann(product, b, iterations, given["scale"].item())


def by_autograd(given, kind):
    (x,), (train, valid), invert = outer_variable(given), batch(given), inverse(given, kind)
    x, y = x.requires_grad_(), given["y"].requires_grad_()

    def call():
        value = logistic_loss(y, valid)
        (b,) = torch.autograd.grad(value, y)
        (gradient,) = torch.autograd.grad(penalised(x, y, train), y, create_graph=True)
        v = invert(lambda v: torch.autograd.grad(gradient, y, v, retain_graph=True)[0], b)
        return value, torch.autograd.grad(gradient, x, -v)

    return call


def by_transforms(given, kind):
    (x,), (train, valid), invert = outer_variable(given), batch(given), inverse(given, kind)
    y = given["y"]

    def call():
        b, value = torch.func.grad_and_value(logistic_loss)(y, valid)
        gradient = lambda x, y: torch.func.grad(penalised, argnums=1)(x, y, train)
        _, transposed = torch.func.vjp(gradient, x, y)
        v = invert(lambda v: transposed(v)[1], b)
        return value, [-transposed(v)[0]]

    return call


def by_torchopt(given, kind):
    import torchopt

    (x,), (train, valid) = outer_variable(given), batch(given)
    x, iterations = x.requires_grad_(), int(given["iterations"])
    solvers = {
        "cg": torchopt.linear_solve.solve_cg(maxiter=iterations, rtol=0.0),
        "neumann": torchopt.linear_solve.solve_inv(ns=True, maxiter=iterations, alpha=given["scale"].item()),
    }
    residual = lambda y, x: torch.func.grad(penalised, argnums=1)(x, y, train)
    solve = torchopt.diff.implicit.custom_root(residual, argnums=1, solve=solvers[kind])(lambda start, x: start)

    def call():
        value = logistic_loss(solve(given["y"], x), valid)
        return value, torch.autograd.grad(value, x)

    return call


def by_betty(given, kind):
    """The gradient that Betty's engine asks for on behalf of the upper of two problems."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.hypergradient import get_grads
    from betty.problems import ImplicitProblem

    (x,), (train, valid), iterations = outer_variable(given), batch(given), int(given["iterations"])

    class Vector(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.values = torch.nn.Parameter(values)

        def forward(self):
            return self.values

    class Upper(ImplicitProblem):
        def training_step(self, data):
            return logistic_loss(self.lower(), data)

    class Lower(ImplicitProblem):
        def training_step(self, data):
            return penalised(self.upper(), self.module(), data)

    config = Config(type=kind, neumann_iterations=iterations, neumann_alpha=given["scale"].item())
    problems = [
        problem(name, config, module, torch.optim.SGD(module.parameters(), 1.0), train_data_loader=[data])
        for problem, name, config, module, data in (
            (Upper, "upper", Config(), Vector(x), valid),
            (Lower, "lower", config, Vector(given["y"]), train),
        )
    ]
    upper, lower = problems
    Engine(problems, EngineConfig(train_iters=1), {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}})
    lower.cur_batch = train

    def call():
        value = upper.training_step(valid)
        return value, get_grads(value, [upper, lower, upper], retain_graph=False)

    return call


LOGISTIC = {"loop": by_autograd, "torch.func": by_transforms, "torchopt": by_torchopt, "betty": by_betty}
