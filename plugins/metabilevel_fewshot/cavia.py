"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019, arXiv:1810.03642): only a context adapts."""

import jax
import jax.numpy as jnp

from metabilevel import BilevelProblem, InputError, Learner, Method, Nested, Unroll

from .descent import require_own_ways, sgd
from .policy import Policy, policies


@policies(learning_rate=1.0, steps=2)
def cavia(
    learner: Learner, train: Policy, test: Policy, *, context: int = 5, layer: int = 0, first_order: bool = False
) -> Method:
    """CAVIA: the network is shared; a few context parameters y, from 0 for each task, adapt by gradient descent.

    They move the biases of one layer, and its factors where it has any, along learned directions: bias + y B. In the
    first layer of an MLP that is their concatenation to the inputs; in a convolutional net it is FiLM (section 3.4).

    **Arguments:**

    - `context`: number of context parameters.
    - `layer`: of the body, from 0, that they modulate.
    - `first_order`: drops the inner Hessians.
    """
    require_own_ways(learner)
    if context < 1:
        raise InputError(f"context = {context}: at least 1 is wanted.")

    def init(key):
        k_network, k_context = jax.random.split(key)
        x = learner.init(k_network)
        if not (isinstance(x["body"], list) and 0 <= layer < len(x["body"])):
            raise InputError(f"layer = {layer}: the body of this network has {len(x['body'])} layers.")
        vectors = {name: a for name, a in x["body"][layer].items() if name in ("bias", "scale")}
        directions = {
            name: jax.random.normal(jax.random.fold_in(k_context, i), (context, len(a))) / context**0.5
            for i, (name, a) in enumerate(vectors.items())
        }
        return {**x, "context": directions}

    def modulated(x, y):
        moved = {name: x["body"][layer][name] + y @ along for name, along in x["context"].items()}
        body = [{**each, **moved} if i == layer else each for i, each in enumerate(x["body"])]
        return {"body": body, "head": x["head"]}

    problem = BilevelProblem(
        init=lambda x, task, key: jnp.zeros(context),
        inner_loss=lambda x, y, task, key: learner.fit(modulated(x, y), task.support),
        outer_loss=lambda x, y, task, key: learner.test(modulated(x, y), task.query, task.support),
    )
    return Method(problem, init, Nested(problem, sgd(train), Unroll(first_order)), sgd(test))
