"""The bilevel problem, which every method shares.

    minimise over x   E_t [ F(x, y_t, t) ]    where   y_t   comes from an inner solver that lowers   G(x, ., t)

`x` (outer) and `y` (inner) are pytrees of floating arrays; the task `t` is any pytree. Everything here is about
one task: `jax.vmap` adds the others.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .errors import InputError

Outer: TypeAlias = PyTree[Float[Array, "..."]]
Inner: TypeAlias = PyTree[Float[Array, "..."]]
Task: TypeAlias = PyTree
Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
Metrics: TypeAlias = dict[str, Array]


# what a report says beside the metrics
RESERVED = (
    "step",
    "loss",
    "failed",
    "inner_residual",
    "linear_residual",
    "doubtful",
    "valid_loss",
    "seconds",
)


class BilevelProblem(eqx.Module):
    """Three functions of one task, and a fourth that spares work.

    **Arguments:**

    - `init(x, task, key) -> y0`: where the inner solve starts.
    - `inner_loss(x, y, task, key) -> scalar`: G, which the inner solver lowers. It may draw a minibatch by `key`.
    - `outer_loss(x, y, task, key) -> scalar`, or `(scalar, metrics)` with a dictionary of arrays: F.
    - `prepare(x, task, key) -> z`: what depends on x and the task but not on y (the features of a body that does not
      adapt, say), computed once a task. z takes the place of x in the other three and in the inner solver; every
      adjoint differentiates in z, and the chain rule does the rest. z = x if it is not given.
    """

    init: Callable[[Outer, Task, Key], Inner]
    inner_loss: Callable[[Outer, Inner, Task, Key], Scalar]
    outer_loss: Callable[[Outer, Inner, Task, Key], Scalar | tuple[Scalar, Metrics]]
    prepare: Callable[[Outer, Task, Key], Outer] = lambda x, task, key: x

    @jax.named_scope("beginning")
    def begin(self, x: Outer, task: Task, key: Key) -> tuple[Outer, Any, Key]:
        """z, y0, and a key for what follows."""
        k_init, k_solve, k_prepare = jax.random.split(key, 3)
        z = self.prepare(x, task, k_prepare)
        return z, self.init(z, task, k_init), k_solve

    @jax.named_scope("outer_loss")
    def objective(self, x: Outer, y: Inner, task: Task, key: Key) -> tuple[Any, Any]:
        """F with its metrics as arrays; an outer loss that gives none has an empty dictionary of them.

        **Raises:** `TypeError` for another shape of result, or a metric that is no array or has a reserved name.
        """
        match self.outer_loss(x, y, task, key):
            case (value, dict() as metrics):
                pass
            case tuple():
                raise TypeError("outer_loss must give a scalar, or (scalar, {name: array of a metric}).")
            case value:
                metrics = {}
        for name, metric in metrics.items():
            if name in RESERVED:
                raise TypeError(
                    f"outer_loss gives a metric {name!r}: {', '.join(RESERVED)} are names of the library's own."
                )
            if isinstance(metric, dict | list | tuple | str):
                raise TypeError(
                    f"outer_loss gives a metric {name!r} of type {type(metric).__name__}: an array is wanted."
                )
        return jnp.asarray(value), {name: jnp.asarray(metric) for name, metric in metrics.items()}


def canonical(tree: PyTree, name: str) -> PyTree:
    """`tree` as strongly typed floating arrays, so that what an update returns has the type of what it took.

    **Raises:** `TypeError` that names the first leaf which has no gradient (integers, booleans, keys, strings).
    """

    def leaf(path: Any, a: Any) -> Array:
        where = f"{name}{jax.tree_util.keystr(path)}"
        try:
            a = jnp.asarray(a)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{where} is {type(a).__name__}, not an array.") from error
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"{where} holds {a.dtype}, which has no gradient: {name} must hold real floating arrays only. "
                "Convert it to float, or close over it if it is not to be optimised."
            )
        return jax.lax.convert_element_type(a, a.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def check_problem(problem: BilevelProblem, x: Outer, task: Task, key: Key) -> None:
    """Evaluates the functions in the abstract and says which of them gives what it must not.

    **Raises:** `TypeError`; `InputError` for an outer loss whose derivative is zero everywhere. Nothing is compiled.
    """
    x, y, _ = eqx.filter_eval_shape(problem.begin, x, task, key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise TypeError(f"init gives y{where} of type {leaf.dtype}: inner variables must be floating arrays.")
    _require_scalar("inner_loss", eqx.filter_eval_shape(problem.inner_loss, x, y, task, key))
    _require_scalar("outer_loss", eqx.filter_eval_shape(problem.objective, x, y, task, key)[0])
    _require_slope(problem, x, y, task, key)


def _require_scalar(name: str, out: Any) -> None:
    if not (isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating)):
        raise TypeError(f"{name} must give one floating scalar, not {out}. Take a mean or a sum of a vector of losses.")


def _require_slope(problem: BilevelProblem, x: PyTree, y: PyTree, task: Task, key: Key) -> None:
    """Follows a cotangent of the outer loss back: if it reaches neither x nor y, there is nothing to descend."""
    if not jax.tree.leaves((x, y)):
        return
    loss = lambda x, y: problem.objective(x, y, task, key)[0]
    pull = jax.make_jaxpr(lambda x, y, cotangent: jax.vjp(loss, x, y)[1](cotangent))
    jaxpr = pull(x, y, jax.eval_shape(loss, x, y)).jaxpr
    reached = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if any(isinstance(v, Var) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
    if not any(isinstance(v, Var) and v in reached for v in jaxpr.outvars):
        raise InputError(
            "outer_loss has the derivative zero everywhere, as an error rate and other 0/1 losses have: nothing could "
            "be learned from it. Descend a smooth loss (a cross-entropy, say) and give the rate as a metric."
        )
