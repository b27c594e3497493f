"""What meta-learning must beat, and what it cannot."""

from dataclasses import replace
from typing import Literal

import jax

from metabilevel import BilevelProblem, ClosedForm, InputError, Learner, Method, Nested

from .descent import adaptation, sgd
from .policy import Policy
from .reptile import everything


def union(
    learner: Learner,
    *,
    heads: Literal["shared", "per-task"] = "shared",
    learning_rate: float = 0.01,
    steps: int = 10,
    adapts: Literal["all", "head", "body"] = "all",
    head: Literal["meta", "random"] = "meta",
) -> Method:
    """One network on the union of all tasks, then fine-tuned: MAML trained with k = 0 inner steps.

    The `pretrained` baseline of Finn et al. 2017 (section 5.1). With a head per task, for tasks with a pool, it is
    multi-task learning: x holds a table of heads beside the shared body, and each task is fitted whole, support and
    query set, by its own head (Wang, Zhao & Li 2021); a new task's head then starts at the untrained one of x.

    **Arguments:**

    - `heads`: one head shared by the training tasks, or one for each.
    - `learning_rate`: step size of the fine-tuning on a new task's support set; any sign.
    - `steps`: number of fine-tuning steps on a new task.
    - `adapts`: what is fine-tuned.
    - `head`: where a new task's head starts: at that of x, or at a random one.
    """
    test = Policy(learning_rate, steps, adapts, head)
    untouched = Policy(learning_rate, 0)
    problem, init = adaptation(learner, untouched), learner.init
    if heads == "per-task":
        problem, init = _by_own_head(learner), lambda key: _with_heads(learner, key)
    return Method(adaptation(learner, test), init, Nested(problem, sgd(untouched)), sgd(test))


def _with_heads(learner: Learner, key):
    if learner.pool is None:
        raise InputError(
            "heads = 'per-task': these tasks have no numbers to keep heads by; give them a pool (their option)."
        )
    keys = jax.random.split(key, learner.pool)
    return {**learner.init(key), "heads": jax.vmap(lambda k: learner.init(k)["head"])(keys)}


def _by_own_head(learner: Learner) -> BilevelProblem:
    def outer_loss(x, y, task, key):
        head = jax.tree.map(lambda a: a[task.id], x["heads"])
        data = everything(task)
        return learner.judge(learner.predict({"body": x["body"], "head": head}, data.inputs), data)

    return BilevelProblem(lambda x, task, key: {}, lambda x, y, task, key: outer_loss(x, y, task, key)[0], outer_loss)


def scratch(
    learner: Learner, *, learning_rate: float = 0.01, steps: int = 10, adapts: Literal["all", "head", "body"] = "all"
) -> Method:
    """No meta-learning: every task is fitted from a fresh random initialisation; there is nothing to train.

    **Arguments:**

    - `learning_rate`: step size on the support set; any sign.
    - `steps`: number of steps.
    - `adapts`: what is fitted; the head on random features, for instance.
    """
    policy = Policy(learning_rate, steps, adapts)
    judged, solver = adaptation(learner, policy), sgd(policy)
    problem = replace(judged, prepare=lambda x, task, key: judged.prepare(learner.init(key), task, key))
    return Method(problem, lambda key: {}, Nested(problem, solver), solver)


def oracle(learner: Learner) -> Method:
    """The prediction of one who knows the truth behind each task; there is nothing to train or to adapt."""
    truth = learner.oracle
    if truth is None:
        raise InputError("These tasks do not say what generated them, so nobody knows the best prediction.")
    problem = BilevelProblem(
        init=lambda x, task, key: {},
        inner_loss=lambda x, y, task, key: learner.judge(truth(task, task.support.inputs), task.support)[0],
        outer_loss=lambda x, y, task, key: learner.judge(truth(task, task.query.inputs), task.query),
    )
    solver = ClosedForm(lambda x, task: {})
    return Method(problem, lambda key: {}, Nested(problem, solver), solver)
