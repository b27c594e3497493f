"""What a computation takes in memory, read off the compiled program before it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax


class Footprint(NamedTuple):
    """Bytes of one compiled program, as the compiler plans them.

    - `temporaries`: what it needs beside what goes in and what comes out.
    - `arguments`, `outputs`; `aliased` of the outputs lie where arguments did, which were donated.
    """

    temporaries: int
    arguments: int
    outputs: int
    aliased: int

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "Footprint | None":
        """Of a program that is compiled already; None where the compiler does not tell its plan."""
        stats = compiled.memory_analysis()
        if stats is None:
            return None
        return cls(
            stats.temp_size_in_bytes,
            stats.argument_size_in_bytes,
            stats.output_size_in_bytes,
            stats.alias_size_in_bytes,
        )

    @property
    def added(self) -> int:
        """What a call needs where its arguments are there already."""
        return self.temporaries + self.outputs - self.aliased

    @property
    def total(self) -> int:
        """What a call needs, its arguments included."""
        return self.arguments + self.added


def footprint(fn: Callable[..., Any], *args: Any) -> Footprint | None:
    """Compiles `fn(*args)`, and does not run it.

    **Arguments:** in `args`, arrays and `jax.ShapeDtypeStruct`s are arguments of the program; whatever else stands in
    them, functions among it, is part of the program. So is what `fn` closes over, arrays included: those count as
    constants, and hence not at all.

    **Returns:** its bytes; None where the compiler does not tell its plan.
    """
    arrays, rest = eqx.partition(args, lambda a: eqx.is_array(a) or isinstance(a, jax.ShapeDtypeStruct))
    called = lambda arrays: eqx.filter(fn(*eqx.combine(arrays, rest)), eqx.is_array)
    return Footprint.of(jax.jit(called).lower(arrays).compile())
