"""Update rules with weights: a learned optimizer is an inner solver whose step reads its weights from x."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .errors import InputError
from .problem import Inner, Key, Outer, canonical
from .solvers import AbstractIterativeSolver, inner_gradient


class AbstractRule(eqx.Module):
    """y <- y + updates, where (updates, state) <- update(x, gradients, state, y), as in an optax transformation.

    x are the rule's weights, nested dictionaries and lists of arrays. The fields of a rule are its options: numbers,
    texts and booleans, all static.
    """

    @abc.abstractmethod
    def init(self, y: Inner, key: Key) -> Outer:
        """Fresh weights; of y only the structure and the shapes may matter."""

    @abc.abstractmethod
    def start(self, x: Outer, y: Inner) -> PyTree:
        """The state before the first step."""

    @abc.abstractmethod
    def update(self, x: Outer, gradients: Inner, state: PyTree, y: Inner) -> tuple[Inner, PyTree]:
        """What is added to y, and the next state."""


class RuleDescent(AbstractIterativeSolver):
    """`steps` updates of y by a rule, whose weights are the outer variable x."""

    rule: AbstractRule

    @property
    def symmetric(self) -> bool:
        return True

    def init(self, x, y):
        return transformation(self.rule, x).init(y)

    def step(self, x, gradient_fn, y, state):
        updates, state = transformation(self.rule, x).update(gradient_fn(y), state, y)
        return optax.apply_updates(y, updates), state

    def residual(self, problem, x, y, task, key):
        return inner_gradient(problem, x, y, task, key)


def transformation(rule: AbstractRule, x: Outer) -> optax.GradientTransformation:
    """`rule` with the weights x. It computes in the widest type among x and y; updates have the types of y.

    **Raises:** `InputError`, at `init` as `require_fit`, and at `update` where the parameters y are missing;
    `TypeError` that names a parameter which is not floating.
    """

    def widest(params: PyTree, *trees: PyTree) -> tuple[PyTree, ...]:
        dtype = jnp.result_type(float, *jax.tree.leaves((x, params)))
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), trees)

    def init(params: PyTree) -> PyTree:
        params = canonical(params, "params")
        require_fit(rule, x, params)
        return rule.start(*widest(params, x, params))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise InputError("A learned optimizer needs the parameters: update(gradients, state, params).")
        if not jax.tree.leaves(params):
            return updates, state
        params = canonical(params, "params")
        weights, gradients, y = widest(params, x, updates, params)
        updates, state = rule.update(weights, gradients, state, y)
        return jax.tree.map(lambda u, a: u.astype(a.dtype), updates, params), state

    return optax.GradientTransformation(init, update)


def require_fit(rule: AbstractRule, x: Outer, y: PyTree) -> None:
    """Looks at structure and shapes; nothing is computed.

    **Raises:** `InputError` that names the first leaf of the weights x which is not what `rule` has for such a y.
    """
    shapes = lambda tree: {jax.tree_util.keystr(p): jnp.shape(a) for p, a in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = shapes(jax.eval_shape(lambda: rule.init(y, jax.random.key(0))))
    given = shapes(x)
    for leaf in [*wanted, *given]:
        if wanted.get(leaf) != given.get(leaf):
            said = [f"of shape {each[leaf]}" if leaf in each else "none" for each in (given, wanted)]
            raise InputError(
                f"The weights do not fit the rule {type(rule).__name__}: x{leaf} is {said[0]}, and {said[1]} is wanted."
            )
