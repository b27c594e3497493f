"""The arithmetic of a computation, read off its trace."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "cumsum", "cumprod")
MOVES = {
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice"),
    *("dynamic_update_slice", "gather", "concatenate", "pad", "rev", "iota", "copy", "copy_p", "convert_element_type"),
    *("bitcast_convert_type", "select_n", "stop_gradient", "device_put", "name", "split", "optimization_barrier"),
}


class Operations(NamedTuple):
    """Floating-point operations: of the matrix `products` and convolutions, and of all `others`."""

    products: float = 0.0
    others: float = 0.0

    @property
    def total(self) -> float:
        return self.products + self.others


def operations(fn: Callable[..., Any], *args: Any) -> Operations:
    """Operations of `fn(*args)`, which is traced and neither compiled nor run.

    What no result depends on is left out. A product and its addition are two operations; every other function of an
    element is one. A loop counts as many times as it is known to run, and once where the data decide; of the branches
    of a conditional the cheapest counts.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _counted(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _counted(jaxpr: Any) -> Operations:
    found = [_of(eqn) for eqn in jaxpr.eqns]
    return Operations(*(sum(column) for column in zip(*found, strict=True))) if found else Operations()


def _of(eqn: Any) -> Operations:
    inside = [_counted(each) for each in jaxprs_in_params(eqn.params)]
    name, size = eqn.primitive.name, sum(_size(v.aval) for v in eqn.outvars)
    if name == "cond":
        return min(inside, key=lambda branch: branch.total)
    if name == "dot_general":
        summed = eqn.params["dimension_numbers"][0][0]
        return Operations(2.0 * size * math.prod(eqn.invars[0].aval.shape[i] for i in summed))
    if name == "conv_general_dilated":
        kernel, axes = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
        return Operations(2.0 * size * _size(kernel) / kernel.shape[axes[0]])
    if inside:
        times = eqn.params.get("length", 1)
        return Operations(*(times * sum(column) for column in zip(*inside, strict=True)))
    if name in MOVES or not any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars):
        return Operations()
    return Operations(others=float(_size(eqn.invars[0].aval) if name in REDUCTIONS else size))


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))
