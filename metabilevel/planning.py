"""What a computation takes in memory, read off the compiled program before it runs; and which way to run it fits."""

import dataclasses
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax

from .adjoints import Unroll
from .errors import InputError
from .method import Method, in_chunks

Checkpoint: TypeAlias = Literal["step", "sqrt"] | int | None

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SPARED = 0.5  # of the memory of the method's own way: below it, the leaner way of the first two is the faster one
FEW = 4  # tasks at once, where as many as the machine likes are too many


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


def lowered(jitted: Any, *args: Any) -> jax.stages.Lowered:
    """The program that a call of an `eqx.filter_jit`ted function runs: where it is compiled, the call finds it so."""
    return jitted.lower(*args).lowered


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is computed, and what it is predicted to hold at its peak.

    - `task_chunk`: tasks computed at once, as `fit` takes it.
    - `checkpoint`, `mixed_mode`, `offload`: of every `Unroll` in the method's estimator; `mixed_mode` is None where it
      has none.
    - `peak`: predicted bytes of the process, or in the memory of an accelerator, at the moment of the run when they
      are most: what is held when all is compiled, and what the largest program adds; None where the compiler does not
      tell.
    - `budget`: what it was to fit into, in bytes, if anything.
    - `compiled`: how many outer loops were compiled to find it, that of the run among them, in `seconds`.
    - `programs`: what each program of the run takes, where the compiler tells.
    """

    task_chunk: int | None
    checkpoint: Checkpoint = None
    mixed_mode: bool | None = None
    offload: bool = False
    peak: int | None = None
    budget: int | None = None
    compiled: int = 0
    seconds: float = 0.0
    programs: Mapping[str, Footprint] = dataclasses.field(default_factory=dict, compare=False)

    def applied(self, method: Method) -> Method:
        """`method`, computed in this way: in the same directions, but for rounding."""
        method = in_chunks(method, self.task_chunk)
        if self.mixed_mode is None:
            return method
        changed = {"checkpoint": self.checkpoint, "mixed_mode": self.mixed_mode, "offload": self.offload}
        leaner = lambda a: dataclasses.replace(a, **changed) if _is_unroll(a) else a
        return dataclasses.replace(method, estimator=jax.tree.map(leaner, method.estimator, is_leaf=_is_unroll))

    @property
    def way(self) -> str:
        """What was picked, in words."""
        chunk = "as many tasks at once as the machine likes" if self.task_chunk is None else _tasks(self.task_chunk)
        if self.mixed_mode is None:
            return chunk
        kept = "no checkpoints" if self.checkpoint is None else f"checkpoint {self.checkpoint!r}"
        where = " in the host's memory" if self.offload else ""
        return f"{chunk}, {kept}{where}, mixed mode {'on' if self.mixed_mode else 'off'}"


class Programs(NamedTuple):
    """What a run compiles: its outer loop, and whatever else it calls, by name."""

    loop: jax.stages.Lowered
    others: Callable[[], Iterable[tuple[str, jax.stages.Compiled]]]


def choose(
    method: Method, programs: Callable[[Plan], Programs], *, task_chunk: int | None = None, budget: int | None = None
) -> Plan:
    """Where there is a budget, the fastest of the `ways` whose `programs` fit into `budget` bytes; else the first.

    **Raises:** `InputError` where none fits, and where there is a budget and the compiler tells nothing.
    """
    begun, before, seen, refused = time.perf_counter(), held(), set(), {}
    if budget is not None and before >= budget:
        raise InputError(
            f"The process holds {readable(before)} before anything is compiled, and the memory budget is "
            f"{readable(budget)}. Give a larger budget."
        )

    def measured(group: list[Plan]) -> list[tuple[Footprint | None, Plan, Programs]]:
        """What each loop adds, the fastest first; nothing of a program that was seen already."""
        found = []
        for way in group:
            compiles = programs(way)
            if (text := hash(compiles.loop.as_text())) not in seen:
                seen.add(text)
                found.append((Footprint.of(compiles.loop.compile()), way, compiles))
        match found:
            case [(Footprint() as own, *_), (Footprint() as leaner, *_)] if leaner.added < SPARED * own.added:
                return found[::-1]
        return found

    def finished(way: Plan, peak: int | None, programs: dict[str, Footprint]) -> Plan:
        seconds = time.perf_counter() - begun
        return dataclasses.replace(
            way, peak=peak, budget=budget, compiled=len(seen), seconds=seconds, programs=programs
        )

    first, *leaner = ways(method, task_chunk)
    for group in [first, *leaner] if budget is not None else [first[:1]]:
        for loop, way, compiles in measured(group):
            known = {} if loop is None else {"outer loop": loop}
            if budget is None or (loop is not None and held() + loop.added <= budget):
                others = {name: Footprint.of(each) for name, each in compiles.others()}
                known |= {name: each for name, each in others.items() if each}
            peak = held() + max(each.added for each in known.values()) if known else None
            if budget is None or (peak is not None and peak <= budget):
                return finished(way, peak, known)
            if peak is None:
                raise InputError(f"The compiler for {jax.default_backend()} does not tell what memory it plans.")
            refused[peak] = way
    least = min(refused)
    raise InputError(
        f"The run is predicted to take {readable(least)} at the least ({refused[least].way}), {readable(before)} of "
        f"which the process held before anything was compiled and {readable(held())} afterwards, and the memory budget "
        f"is {readable(budget or 0)}. "
        "Lower the inner steps, the examples of a task, the tasks of a batch or the size of the network, or give a "
        "larger budget."
    )


def ways(method: Method, task_chunk: int | None) -> list[list[Plan]]:
    """Ways to compute `method`, which give the same directions but for rounding, in the order of their speed.

    As measured (benchmarks/README.md): first the method's own, and a checkpoint after every inner step with products
    in mixed mode, which was the faster one wherever it spared much memory, and the slower one elsewhere; then
    checkpoints after about sqrt(K) steps; on an accelerator, checkpoints in the host's memory; then fewer tasks at
    once. What the method has of this already is kept, and so is `task_chunk` if given.
    """
    chunks = (None, FEW, 1) if task_chunk is None else (task_chunk,)
    unrolls = [a for a in jax.tree.leaves(method.estimator, is_leaf=_is_unroll) if _is_unroll(a)]
    if not unrolls:
        return [[Plan(chunk)] for chunk in chunks]
    own, mixed = unrolls[0], unrolls[0].mixed_mode or not unrolls[0].first_order
    step = "step" if own.checkpoint is None else own.checkpoint
    sqrt = "sqrt" if step == "step" else step
    offloads = not own.offload and jax.default_backend() != "cpu"
    return [
        [Plan(chunks[0], own.checkpoint, own.mixed_mode, own.offload), Plan(chunks[0], step, mixed, own.offload)],
        [Plan(chunks[0], sqrt, mixed, own.offload)],
        *([Plan(chunks[0], step, mixed, True)] for _ in range(offloads)),
        *([Plan(chunk, step, mixed, own.offload or offloads)] for chunk in chunks[1:]),
        [Plan(chunks[-1], sqrt, mixed, own.offload or offloads)],
    ]


def require_room(plan: Plan) -> None:
    """Compares a plan with the machine.

    **Raises:** `InputError` where the machine could not hold it if it did nothing else.

    **Warns:** where it can not hold it beside what else it holds now.
    """
    if plan.peak is None:
        return
    most, free = room()
    taken = f"The run is predicted to take {readable(plan.peak)}"
    if most is not None and plan.peak > most:
        raise InputError(
            f"{taken} ({plan.way}), and there are {readable(most)} of memory. A memory budget below that has a way "
            "picked that fits, if there is one."
        )
    if free is not None and plan.peak - held() > free:
        warnings.warn(f"{taken}, and {readable(held() + free)} are free now.", stacklevel=2)


def held() -> int:
    """Bytes that this process holds: in the memory of the accelerator, if there is one, or else resident."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["bytes_in_use"]
    if found := _fields("/proc/self/status", "VmRSS"):
        return found[0]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, where there is no /proc
    return most if sys.platform == "darwin" else most * 1024


def room() -> tuple[int | None, int | None]:
    """Bytes of memory that this process could have at most, and how many more it could have now; None if unknown."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["bytes_limit"], stats["bytes_limit"] - stats["bytes_in_use"]
    whole, free = (
        _fields("/proc/meminfo", *names) for names in (("MemTotal", "SwapTotal"), ("MemAvailable", "SwapFree"))
    )
    limits = [sum(whole)] if whole else []
    control = Path("/sys/fs/cgroup/memory.max")
    if control.is_file() and (text := control.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits, default=None), sum(free) if free else None


def readable(size: int) -> str:
    """Bytes as people write them: 1.5 GiB."""
    power = max(p for p in range(len(UNITS)) if p == 0 or size >= 1024**p)
    return f"{size / 1024**power:.{min(2, power)}f} {UNITS[power]}"


def _fields(path: str, *names: str) -> list[int]:
    """Bytes that a file of the kernel, if there is one, gives under `names`."""
    text = Path(path).read_text() if Path(path).is_file() else ""
    return [1024 * int(n) for name in names for n in re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)]


def _is_unroll(a: Any) -> bool:
    return isinstance(a, Unroll)


def _tasks(n: int) -> str:
    return f"{n} task{'s' if n > 1 else ''} at once"
