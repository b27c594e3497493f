"""The learner's network inside a method: its parameters before and after adaptation, and its blocks' activations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..learner import Learner
from ..method import Method
from ..problem import Inner, Key, Outer, Task
from .diagnosis import NotApplicable


class Adaptation(NamedTuple):
    """Adaptation to one task: what stands in x's place, where y starts, where it ends."""

    z: Outer
    start: Inner
    end: Inner


def adaptation(method: Method, x: Outer, task: Task, key: Key) -> Adaptation:
    """That of `method.adapt`, with its beginning."""
    z, y0, k_inner = method.problem.begin(x, task, key)
    return Adaptation(z, y0, method.solver.solve(method.problem, z, y0, task, k_inner))


def parts(learner: Learner, *holders: Any) -> dict[str, Any]:
    """The parts `body` and `head` of the learner's network, each out of the first of `holders` that has it."""
    expected = jax.eval_shape(lambda: learner.init(jax.random.key(0)))
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    found = {}
    for holder in reversed(holders):
        if isinstance(holder, Mapping):
            found |= {p: holder[p] for p in expected if p in holder and shapes(holder[p]) == shapes(expected[p])}
    return found


def network(learner: Learner, y: Inner, *rest: Any, what: str) -> dict[str, Any]:
    """The network's parameters, of which `y` holds some and the first of `rest` that has them the others.

    **Raises:** `NotApplicable`, when traced, where y holds none of them.
    """
    whole = parts(learner, y, *rest)
    if not parts(learner, y) or whole.keys() != {"body", "head"}:
        raise NotApplicable(
            f"{what}: the adapted y of this method holds no parameters of the network; it is for methods that adapt "
            "the network's own body or head, such as maml, reptile, anil or boil."
        )
    return whole


def activations(learner: Learner, body: Inner, inputs: Array, support: Array) -> list[Float[Array, "n ..."]]:
    """Every block's output for `inputs` under the learner's protocol, as `Learner.features` has it."""
    if learner.transductive or not learner.network.batch_statistics:
        return learner.network.activations(body, inputs)
    beside = lambda one: learner.network.activations(body, jnp.concatenate([support, one[None]]))
    return jax.vmap(lambda one: [maps[-1] for maps in beside(one)])(inputs)


def block_names(number: int) -> list[str]:
    """Of the blocks of a body."""
    return [f"block {i + 1}" for i in range(number)]
