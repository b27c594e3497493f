"""The tables of a profile."""

from rich.table import Table

from ..planning import readable
from ..profiling import Profile
from .judgement import WIDTH


def tables(found: Profile, title: str) -> list[Table]:
    """Time by phase, temporaries by part of a step, and the largest arrays."""
    last = found.start + found.steps
    time = Table(
        title=f"{title}: {_milliseconds(found.seconds)} ms a step",
        caption=f"steps {found.start} to {last}; a phase has its operations' share of the trace\n"
        f"scoring one test episode takes {_milliseconds(found.scoring or 0)} ms",
        min_width=WIDTH,
    )
    for heading, side in (("phase", "left"), ("ms a step", "right"), ("share", "right"), ("largest array", "right")):
        time.add_column(heading, justify=side)  # pyright: ignore[reportArgumentType]
    for row in found.phases:
        largest = readable(row.largest) if row.largest else "-"
        time.add_row(row.phase, _milliseconds(row.seconds), f"{row.share:.1%}", largest)
    memory = Table(caption="as the compiler plans them")
    memory.add_column("part of a step")
    memory.add_column("temporary memory", justify="right")
    for part, size in found.temporaries.items():
        memory.add_row(part, readable(size))
    buffers = Table()
    for heading in ("largest arrays", "shape", "phase", "source"):
        buffers.add_column(heading, justify="right" if heading == "largest arrays" else "left")
    for buffer in found.buffers:
        source = "/".join(buffer.source.split("/")[-2:]) or "-"
        buffers.add_row(readable(buffer.bytes), buffer.shape, buffer.phase, source)
    return [time, memory, buffers]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.4g}"
