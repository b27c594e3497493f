"""What the benchmarks share: alternating timings, the work in matrix products, the machine, and files of results."""

import datetime
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

RESULTS = Path(__file__).parent / "results"


def alternate(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    seconds: float = 0.5,
    processor: Callable[[], float] = time.process_time,
) -> dict[str, dict[str, Any]]:
    """Seconds of one call of every candidate: median, min, max, the median of the seconds of the processor, which
    other processes change less, and the number of calls.

    The candidates take turns, so that all see the same moods of the machine: in every round each is called once, and
    again until `seconds` have passed. A first call of each, which compiles, does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    busy: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in candidates.items():
            spent = 0.0
            while spent <= seconds:
                start, begun = time.perf_counter(), processor()
                jax.block_until_ready(call())
                times[name].append(time.perf_counter() - start)
                busy[name].append(processor() - begun)
                spent += times[name][-1]
    summary = lambda t: {"median": statistics.median(t), "min": min(t), "max": max(t), "calls": len(t)}
    return {name: {**summary(t), "processor": statistics.median(busy[name])} for name, t in times.items()}


def square_product(n: int = 1536) -> tuple[Callable[[], Any], float]:
    """A call that multiplies two n x n matrices, and its operations: what the machine can do at best."""
    a, product = jnp.ones((n, n)), jax.jit(jnp.matmul)
    return lambda: product(a, a), 2.0 * n**3


def product_operations(fn: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of the matrix products in `fn(*arguments)`."""

    def count(jaxpr: Any) -> float:
        total = 0.0
        for eqn in jaxpr.eqns:
            if eqn.primitive is jax.lax.dot_general_p:
                summed = eqn.params["dimension_numbers"][0][0]
                total += 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in summed)
            total += sum(map(count, jaxprs_in_params(eqn.params))) * eqn.params.get("length", 1)
        return total

    return count(jax.make_jaxpr(fn)(*arguments).jaxpr)


def machine() -> dict[str, Any]:
    """Where and with what the timings were taken."""
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


def write(name: str, **results: Any) -> Path:
    """Writes `results` with the date and the machine to `benchmarks/results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path.write_text(json.dumps({"date": date, "machine": machine(), **results}, indent=2) + "\n")
    return path
