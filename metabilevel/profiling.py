"""Where a step's time and memory go, by its phases, as the compiled program itself tells.

The core names its phases (`jax.named_scope`), and every operation of the compiled loop carries the name of the phase
that it was traced in. A trace of some steps gives the time of every operation.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .errors import ComputationError
from .method import Method
from .planning import Footprint, footprint, lowered
from .problem import Key
from .tasks import TaskDistribution, sample_batch
from .training import TrainState, _keys, _loop

PHASES = {  # what the core calls them, and what a reader does
    "drawing": "drawing tasks",
    "beginning": "start of the inner solve",
    "inner_solve": "inner solve",
    "outer_loss": "outer loss",
    "linear_solve": "linear solve",
    "single_loop": "step of the single-loop method",
    "certificate": "certificate",
    "outer_update": "outer update",
}
BACKWARD, OTHER = "backward: ", "means, copies, other"
SECONDS = 1.0  # that the traced steps take, about
MOST, FEWEST = 200, 3  # traced steps
LARGEST = 8  # buffers that are named


@dataclass(frozen=True)
class Phase:
    """`seconds` of one step, and their `share` of it; bytes of the `largest` array that the phase writes."""

    phase: str
    seconds: float
    share: float
    largest: int


@dataclass(frozen=True)
class Buffer:
    """An array that the compiled step writes: `shape` as the compiler prints it, and the line of the source."""

    bytes: int
    shape: str
    phase: str
    source: str


class Operation(NamedTuple):
    """An operation of the compiled program."""

    phase: str | None
    bytes: int
    shape: str
    source: str


@dataclass(frozen=True)
class Profile:
    """Of `steps` outer steps after the step `start`.

    - `seconds`: of one step, on the clock, without the trace.
    - `phases`: the time of each operation is its own, without what runs inside it, as its share of all operations'
      in the trace. A fused operation counts to the phase of its result.
    - `scoring`: seconds to judge one episode, where that was looked at.
    - `temporaries`: bytes, as compiled, of the forward pass of a batch alone, of its direction, and of the whole step.
    - `buffers`: the largest arrays.
    """

    start: int
    steps: int
    seconds: float
    phases: list[Phase]
    temporaries: dict[str, int]
    buffers: list[Buffer]
    scoring: float | None = None


def profile(
    method: Method,
    tasks: TaskDistribution,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    folder: Path,
    *,
    key: Key,
    meta_batch: int,
) -> Profile:
    """Takes some steps from `state` on, as `fit` would, traces them into `folder`, and lets go of what they give.

    **Raises:** `ComputationError` where the trace holds no operation of the loop.
    """
    program = lowered(_loop, method, tasks, optimizer, meta_batch, state, key, state.step).compile()
    first = int(state.step)

    def walk(steps: int) -> float:
        begun = time.perf_counter()
        stop = jnp.asarray(first + steps, state.step.dtype)
        jax.block_until_ready(_loop(method, tasks, optimizer, meta_batch, state, key, stop))
        return time.perf_counter() - begun

    walk(1)
    steps = min(MOST, max(FEWEST, int(SECONDS / walk(1))))
    seconds = walk(steps) / steps
    with jax.profiler.trace(str(folder)):
        walk(steps)
    operations = read_program(program.as_text() or "")
    spent = defaultdict(float)
    for name, parents, own in _own_times(folder):
        spent[_phase(operations, name, parents)] += own
    whole = sum(spent.values())
    if not whole:
        raise ComputationError(f"The trace in {folder} holds no operation of the loop: none can be told of it.")
    largest = {phase: max((o.bytes for o in operations.values() if o.phase == phase), default=0) for phase in spent}
    phases = [Phase(phase, seconds * t / whole, t / whole, largest[phase]) for phase, t in spent.items()]
    return Profile(
        first,
        steps,
        seconds,
        sorted(phases, key=lambda row: -row.seconds),
        _temporaries(method, tasks, state, key, meta_batch, program),
        _buffers(operations),
    )


def read_program(text: str) -> dict[str, Operation]:
    """name -> operation of a compiled program's text."""
    tables = {
        table: dict(re.findall(r"^(\d+) (.*)$", found[1], re.MULTILINE))
        for table in ("FileNames", "FileLocations", "StackFrames")
        if (found := re.search(rf"^{table}\n((?:\d+ .*\n)*)", text, re.MULTILINE))
    }
    found = {}
    for name, shape, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.-]+) = (\S+?)(?:\{[\d,]*\})? (.*)$", text, re.MULTILINE):
        of = re.search(r'op_name="([^"]*)"', rest)
        frame = re.search(r"stack_frame_id=(\d+)", rest)
        made = re.match(r"([\w-]+)\(", rest)
        writes = made is not None and made[1] not in ("parameter", "constant", "bitcast", "get-tuple-element", "while")
        found[name] = Operation(
            phase_of(of[1]) if of else None, _bytes(shape) if writes else 0, shape, _source(tables, frame and frame[1])
        )
    return found


def phase_of(path: str) -> str | None:
    """The phase of an operation that was traced under `path`, such as vmap(transpose(jvp(inner_solve)))/while/body."""
    named = [part for part in path.split("/") if any(re.search(rf"\b{name}\b", part) for name in PHASES)]
    if not named:
        return None
    phase = next(phase for name, phase in PHASES.items() if re.search(rf"\b{name}\b", named[-1]))
    return BACKWARD + phase if any("transpose(" in part for part in named) else phase


def _own_times(folder: Path) -> Iterator[tuple[str, list[str], float]]:
    """Every operation of the loop in the trace with those that it runs in, the outermost first, and its own time."""
    path = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                said = dict(event.stats)
                if said.get("hlo_module") == "jit__loop" and "hlo_op" in said:
                    events.append((event.start_ns, -event.duration_ns, str(said["hlo_op"])))
            open_: list[list[Any]] = []  # name, end, own time
            for start, minus, name in [*sorted(events), (float("inf"), 0.0, "")]:
                while open_ and open_[-1][1] <= start:
                    done, _, own = open_.pop()
                    yield done, [each[0] for each in open_], own
                if open_:
                    open_[-1][2] += minus
                open_.append([name, start - minus, -minus])


def _phase(operations: dict[str, Operation], name: str, parents: list[str]) -> str:
    """Of an operation, or where it has none of the innermost one that it runs in and that has one."""
    for each in (name, *reversed(parents)):
        if each in operations and (phase := operations[each].phase):
            return phase
    return OTHER


def _temporaries(
    method: Method, tasks: TaskDistribution, state: TrainState, key: Key, meta_batch: int, program: jax.stages.Compiled
) -> dict[str, int]:
    k_tasks, k_estimate = _keys(key, state.step)
    batch = sample_batch(tasks, k_tasks, "train", meta_batch)
    given = state.x, batch, state.carry, k_estimate
    planned = {
        "forward pass of a batch": footprint(lambda *given: method.estimator(*given)[2].loss, *given),
        "forward and backward: the direction": footprint(lambda *given: method.estimator(*given)[0], *given),
        "whole step": Footprint.of(program),
    }
    return {part: size.temporaries for part, size in planned.items() if size is not None}


def _buffers(operations: dict[str, Operation]) -> list[Buffer]:
    """The largest arrays, one for each line of the source and shape."""
    lines = {(o.source, o.shape): Buffer(o.bytes, o.shape, o.phase or OTHER, o.source) for o in operations.values()}
    return sorted((b for b in lines.values() if b.bytes), key=lambda b: -b.bytes)[:LARGEST]


def _bytes(shape: str) -> int:
    """Of f32[25,40], say; 0 of a tuple, whose parts are written by others."""
    found = re.fullmatch(r"([a-z]+)(\d*)\w*\[([\d,]*)\]", shape)
    if not found:
        return 0
    size = max(1, int(found[2] or 8) // 8)
    for axis in filter(None, found[3].split(",")):
        size *= int(axis)
    return size


def _source(tables: dict[str, dict[str, str]], frame: str | None) -> str:
    """The file and the line of a stack frame of a program's tables."""
    location = re.search(r"file_location_id=(\d+)", tables.get("StackFrames", {}).get(frame or "", ""))
    line = re.search(r"file_name_id=(\d+).* line=(\d+)", tables["FileLocations"][location[1]]) if location else None
    if line is None:
        return ""
    path = tables["FileNames"][line[1]].strip('"').rpartition("site-packages/")[2]
    return f"{path.removeprefix(f'{Path.cwd()}/')}:{line[2]}"
