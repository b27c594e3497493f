"""The options that say on what devices a command computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .. import devices
from .types import Axes, Count

DEVICES: dict[str, Any] = {"type": Count(1), "help": "Share out tasks among so many devices, as --mesh tasks=N does."}
MESH: dict[str, Any] = {
    "type": Axes(),
    "help": "Devices along each axis, as tasks=8, or tasks=4,runs=2 where there are several runs.",
}


@contextmanager
def meshed(number: int | None, axes: dict[str, int] | None) -> Iterator[None]:
    """The mesh that --devices or --mesh asks for, while this is entered.

    **Raises:** `InputError` for both at once, and for more devices than there are.
    """
    if number is not None and axes is not None:
        raise click.UsageError(f"--devices {number} is --mesh tasks={number}: give one of them.")
    if number is not None:
        axes = {devices.TASKS: number}
    if axes is None:
        yield
        return
    with devices.mesh(**axes):
        yield
