"""Double precision for a while, in a process that computes in single precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


@contextmanager
def double_precision(fn: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Everything within is computed in double precision; `fn(*args)` is what will be.

    jax keeps an array of NumPy that a function closes over in the precision in which it met it first. Where `fn` closes
    over one, what is compiled is therefore forgotten on the way in and on the way out.
    """
    forget = not jax.config.read("jax_enable_x64") and any(map(_from_numpy, _traced(fn, *args).consts))
    if forget:
        jax.clear_caches()
    try:
        with jax.enable_x64(True):
            yield
    finally:
        if forget:
            jax.clear_caches()


def doubled(tree: PyTree) -> PyTree:
    """The floating arrays of `tree` in double precision, where that is switched on, and all else as it is."""
    if not jax.config.read("jax_enable_x64"):
        return tree
    floating = lambda a: isinstance(a, jax.Array | np.ndarray) and jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: jnp.asarray(a, np.float64) if floating(a) else a, tree)


def draws(fn: Callable[..., Any], *args: Any) -> bool:
    """Whether `fn(*args)` draws random numbers, which are others in another precision; by tracing."""
    return "random_bits" in str(_traced(fn, *args))


def _traced(fn: Callable[..., Any], *args: Any) -> Any:
    arrays, static = eqx.partition(args, eqx.is_array)
    return jax.make_jaxpr(lambda arrays: eqx.filter(fn(*eqx.combine(arrays, static)), eqx.is_array))(arrays)


def _from_numpy(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and np.issubdtype(value.dtype, np.floating)
