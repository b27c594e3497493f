"""Adaptation of a network by gradient descent under a policy: what every gradient-based method here is made of."""

from collections.abc import Callable

import jax
import optax

from metabilevel import (
    AbstractAdjoint,
    AbstractEstimator,
    AbstractIterativeSolver,
    BilevelProblem,
    GradientDescent,
    InputError,
    Learner,
    Method,
    Nested,
    Unroll,
    WarmStarted,
)

from .policy import Policy

PARTS = {"all": ("body", "head"), "head": ("head",), "body": ("body",)}


def adaptation(learner: Learner, policy: Policy, *, features: bool = True) -> BilevelProblem:
    """y, the parts of a network that adapt, starts at those of x, fits the support set, and is judged on the queries.

    A head that does not adapt but is the task's own (a random one) is a part of y too, without a gradient. Where only
    the head adapts, the features of the fixed body are computed once a task, if `features`.

    **Raises:** `InputError` where tasks at test have other ways than in training.
    """
    require_own_ways(learner)
    adapted = PARTS[policy.adapts]
    parts = tuple(dict.fromkeys((*adapted, "head"))) if policy.head == "random" else adapted

    def init(x, task, key):
        y = {part: x[part] for part in parts}
        return y | {"head": learner.init(key)["head"]} if policy.head == "random" else y

    if features and parts == ("head",):
        return BilevelProblem(
            init=init,
            inner_loss=lambda x, y, task, key: learner.loss(
                learner.network.head(y["head"], x["support"]), task.support.targets
            ),
            outer_loss=lambda x, y, task, key: learner.judge(learner.network.head(y["head"], x["query"]), task.query),
            prepare=lambda x, task, key: featured(learner, x, task),
        )
    fixed = lambda y: {part: y[part] if part in adapted else jax.lax.stop_gradient(y[part]) for part in parts}
    return BilevelProblem(
        init=init,
        inner_loss=lambda x, y, task, key: learner.fit({**x, **fixed(y)}, task.support),
        outer_loss=lambda x, y, task, key: learner.test({**x, **y}, task.query, task.support),
    )


def require_own_ways(learner: Learner) -> None:
    """Refuses tasks that have other ways at test than in training: a learned head has one number of outputs."""
    if learner.ways is not None and learner.ways[0] != learner.ways[1]:
        raise InputError(
            f"train_ways = {learner.ways[0]} and ways = {learner.ways[1]}: a learned head has one number of outputs. "
            "Heads in closed form take any: r2d2, lrd2, metaoptnet, protonet, nil."
        )


def featured(learner: Learner, x, task, key=None):
    """x with the features of a task, `support` [n, d] and `query` [m, d], in place of its body.

    `key` is the randomness of the network's regularisers, None for none.
    """
    rest = {name: value for name, value in x.items() if name != "body"}
    k_support, k_query = (None, None) if key is None else jax.random.split(key)
    support = learner.network.body(x["body"], task.support.inputs, k_support)
    return {
        **rest,
        "support": support,
        "query": learner.features(x["body"], task.query.inputs, task.support.inputs, k_query),
    }


def sgd(policy: Policy) -> AbstractIterativeSolver:
    """Gradient descent at the policy's rate."""
    return GradientDescent(optax.sgd(policy.learning_rate), steps=policy.steps)


def estimator(
    learner: Learner, policy: Policy, problem: BilevelProblem, solver: AbstractIterativeSolver, adjoint: AbstractAdjoint
) -> AbstractEstimator:
    """A fresh start at every visit of a task, or with the head that its last visit left.

    **Raises:** `InputError` for stored heads of tasks without numbers, or of heads that do not adapt.
    """
    if policy.head != "stored":
        return Nested(problem, solver, adjoint)
    if learner.pool is None:
        raise InputError(
            "head = 'stored': these tasks have no numbers to store heads by; give them a pool (their option)."
        )
    if policy.adapts == "body":
        raise InputError("head = 'stored': with adapts = 'body' no head ever changes; store none.")
    return WarmStarted(problem, solver, adjoint, learner.pool, lambda task: task.id, lambda y: y["head"])


def descent(
    learner: Learner,
    train: Policy,
    test: Policy,
    adjoint: AbstractAdjoint = Unroll(),  # noqa: B008 - immutable
    *,
    init: Callable | None = None,
    solver: Callable[[Policy], AbstractIterativeSolver] = sgd,
) -> Method:
    """x is where the networks of tasks start: trained under one policy, tested under another."""
    problem = adaptation(learner, train)
    return Method(
        adaptation(learner, test),
        init or learner.init,
        estimator(learner, train, problem, solver(train), adjoint),
        solver(test),
    )
