"""Times of candidates that take turns, the work in matrix products, and the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


@dataclass
class Times:
    """Seconds of every call of one candidate, in a list for each round."""

    clock: list[list[float]] = field(default_factory=list)
    processor: list[list[float]] = field(default_factory=list)
    first: float = 0.0

    @property
    def calls(self) -> list[float]:
        return [seconds for each in self.clock for seconds in each]

    @property
    def median(self) -> float:
        return statistics.median(self.calls)

    def over(self, other: "Times") -> float:
        """How many times as long as `other`: the median over the rounds, each of which saw one mood of the machine."""
        ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(self.clock, other.clock, strict=True)]
        return statistics.median(ratios)

    def as_json(self, steps: int = 1) -> dict[str, float | int]:
        """Of one of the `steps` of a call: median, quartiles, extremes, and the median of the processor's seconds."""
        calls = sorted(self.calls)
        quartiles = statistics.quantiles(calls, n=4, method="inclusive") if len(calls) > 1 else calls * 3
        busy = statistics.median([seconds for each in self.processor for seconds in each])
        of_one = {"median": self.median, "low": quartiles[0], "high": quartiles[2], "min": calls[0], "max": calls[-1]}
        return {**{name: seconds / steps for name, seconds in (of_one | {"processor": busy}).items()},
                "calls": len(calls)}  # fmt: skip


def alternate(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float = 0.5,
    processor: Callable[[], float] = time.process_time,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, Times]:
    """The times of every candidate.

    The candidates take turns, so that all see the same moods of the machine: in every round each is called once, and
    again until `seconds` have passed. A first call of each, which may compile, is kept apart. `processor` gives the
    seconds of the processor so far, which other processes change less; `done` is told after every turn.
    """
    times = {name: Times() for name in candidates}
    for name, call in candidates.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        times[name].first = time.perf_counter() - start
        done(name)
    for _ in range(rounds):
        for name, call in candidates.items():
            clock, busy = [], []
            while sum(clock) <= seconds:
                start, begun = time.perf_counter(), processor()
                jax.block_until_ready(call())
                clock.append(time.perf_counter() - start)
                busy.append(processor() - begun)
            times[name].clock.append(clock)
            times[name].processor.append(busy)
            done(name)
    return times


def square_product(n: int) -> tuple[Callable[[], Any], float]:
    """A call that multiplies two n x n matrices, and its operations: what the machine can do at best."""
    a, product = jnp.ones((n, n)), jax.jit(jnp.matmul)
    return lambda: product(a, a), 2.0 * n**3


def machine() -> dict[str, Any]:
    """Where and with what the timings are taken."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jaxlib", "metabilevel")},
    }
