"""What a benchmark is made of."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

OURS = "metabilevel"


@dataclass(frozen=True)
class Candidate:
    """One way of computing.

    - `call()`: what is timed; `steps` of it are made in a call, and times are of one.
    - `answer() -> (value, gradient)`: what is compared with the others' before anything is timed; None where a call
      gives that itself.
    - `compile_seconds`: where it was compiled beforehand; else it is the first call's excess over the later ones.
    - `temporaries`: bytes that the compiler plans for them.
    - `compared`: whether it computes the same; not a lower bound of the work, say.
    """

    call: Callable[[], Any]
    steps: int = 1
    answer: Callable[[], Any] | None = None
    compile_seconds: float | None = None
    temporaries: int | None = None
    compared: bool = True


def compiled(fn: Callable[..., Any], *arguments: Any, read: Callable[[Any], Any] = lambda out: out) -> Candidate:
    """`fn(*arguments)`, compiled; `read` finds (value, gradient) in what it gives."""
    lowered = jax.jit(fn).lower(*arguments)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    call = lambda: program(*arguments)
    memory = program.memory_analysis()
    return Candidate(call, 1, lambda: read(call()), seconds, memory and memory.temp_size_in_bytes)


@dataclass(frozen=True)
class Case:
    """A workload at one size.

    - `candidates`: by name.
    - `reference`: the name of that to which ratios are, and `truth` the right (value, gradient), or the name of the
      candidate that gives it: that of the reference must agree with it, the others' distance from it is reported. None
      where the answers are no gradients, and `check(candidates)` says what must hold instead.
    - `x`, `arrays`: what the peers' file holds.
    - `value_tolerance`, `gradient_tolerance`: relative, the latter of the norm. Float32 rounds the input of one ReLU or
      another across zero, and a task's gradient then jumps: 1e-2 suits such nets.
    - `operations`: floating-point operations of a step that are counted, those of its matrix products.
    """

    candidates: Mapping[str, Candidate]
    reference: str = OURS
    truth: str | tuple[Any, Any] | None = "textbook"
    check: Callable[[Mapping[str, Candidate]], None] = lambda candidates: None
    x: Any = ()
    arrays: Mapping[str, Any] = field(default_factory=dict)
    value_tolerance: float = 1e-4
    gradient_tolerance: float = 1e-3
    operations: float | None = None


@dataclass(frozen=True)
class Race:
    """Candidates in turns.

    - `build(quick) -> Case`: `quick` sizes take seconds.
    - `goals`: by candidate, how many times as long as the reference it is to take at least; `"peers"` is for the best
      of them.
    - `peers`: the script that serves other frameworks' candidates (benchmarks/metabilevel_bench/peers/README.md).
    - `rounds`: of the turns, where not said otherwise.
    """

    name: str
    about: str
    build: Callable[[bool], Case]
    goals: Mapping[str, float] = field(default_factory=dict)
    peers: Path | None = None
    rounds: int = 7


@dataclass(frozen=True)
class Study:
    """Measurements of another kind: `measure(rounds, quick)` gives rows, of texts and numbers by column."""

    name: str
    about: str
    measure: Callable[[int, bool], Sequence[Mapping[str, Any]]]
    rounds: int = 7
