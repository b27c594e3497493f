"""The options that say on what devices a command computes, and among what processes."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NoReturn

import click
import jax
from click.core import ParameterSource
from rich.console import Console

from .. import __version__, devices, hosts
from ..errors import InputError
from ..storage.files import dumps, plain
from .document import DOCUMENT
from .types import Address, Axes, Count

DEVICES: dict[str, Any] = {"type": Count(1), "help": "Share out tasks among so many devices, as --mesh tasks=N does."}
MESH: dict[str, Any] = {
    "type": Axes(),
    "help": "Devices along each axis, as tasks=8, or tasks=4,runs=2 where there are several runs.",
}
HOSTS = [
    click.Option(
        ["--distributed"],
        is_flag=True,
        help="Be one of several processes that share out the tasks of this run, each started by the same command.",
    ),
    click.Option(
        ["--coordinator"],
        type=Address(),
        envvar=["METABILEVEL_COORDINATOR", "JAX_COORDINATOR_ADDRESS"],
        help="HOST:PORT where process 0 runs. [default: as SLURM or Open MPI says]",
    ),
    click.Option(["--processes"], type=Count(1), envvar="METABILEVEL_PROCESSES", help="How many. [default: likewise]"),
    click.Option(
        ["--process-id"],
        type=Count(0),
        envvar="METABILEVEL_PROCESS_ID",
        help="The number of this process, from 0 on. [default: likewise]",
    ),
    click.Option(
        ["--coordinator-timeout"],
        type=Count(1),
        default=60,
        show_default=True,
        help="Seconds until all processes must have come together.",
    ),
]


@contextmanager
def meshed(number: int | None, axes: dict[str, int] | None) -> Iterator[None]:
    """The mesh that --devices or --mesh asks for, while this is entered; all devices where there are many processes.

    **Raises:** `InputError` for both at once, and for more devices than there are.
    """
    if number is not None and axes is not None:
        raise click.UsageError(f"--devices {number} is --mesh tasks={number}: give one of them.")
    if axes is None and number is None and jax.process_count() > 1:
        number = jax.device_count()
    if number is not None:
        axes = {devices.TASKS: number}
    if axes is None:
        yield
        return
    if jax.process_count() > 1 and devices.TASKS not in axes:
        raise click.UsageError("--distributed shares out tasks: give --mesh an axis 'tasks', or leave it out.")
    with devices.mesh(**axes):
        if jax.process_count() > 1:
            devices.meet()
        yield


@contextmanager
def grouped(given: dict[str, Any], asked: Mapping[str, Any], *, as_json: bool) -> Iterator[None]:
    """The group of processes that the options `HOSTS` among `given` ask for, which are taken out of it.

    All processes must have been `asked` for the same. All but process 0 are silent, but for errors.

    **Raises:** as `hosts.joined`, and `InputError` for options that are missing or make no group.
    """
    wanted, address, processes, number, timeout = (given.pop(str(option.name)) for option in HOSTS)
    if not wanted:
        source = click.get_current_context().get_parameter_source
        for option in HOSTS:
            if source(str(option.name)) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{option.opts[0]} is for one of several processes: add --distributed.")
        yield
        return
    place = place_of(address, processes, number, timeout)
    same = plain({**asked, "metabilevel": __version__, "jax": jax.__version__, **given})
    with ExitStack() as stack:
        _mute_compiled_code()
        if place.number:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        document = as_json and place.number == 0
        stack.enter_context(hosts.joined(place, same, timeout=timeout, end=lambda message: _end(message, document)))
        yield


def place_of(address: tuple[str, int] | None, processes: int | None, number: int | None, timeout: int) -> hosts.Place:
    """What the options say, and for the rest what the environment says in which jax finds itself."""
    from jax._src.clusters import ClusterEnv

    where = f"{address[0]}:{address[1]}" if address else None
    found = ClusterEnv.auto_detect_unset_distributed_params(where, processes, number, None, None, timeout)
    where, processes, number, local = found
    if where is None or processes is None or number is None:
        missing = "--coordinator" if where is None else "--processes" if processes is None else "--process-id"
        raise InputError(
            f"--distributed: {missing} is missing, and neither SLURM nor Open MPI says it. "
            "Give --coordinator HOST:PORT, --processes and --process-id."
        )
    if number >= processes:
        raise InputError(f"--process-id {number}: of {processes} processes, one from 0 to {processes - 1} is wanted.")
    host, port = Address().convert(where, None, None)
    return hosts.Place(host, port, processes, number, None if local is None else list(local))


def _mute_compiled_code() -> None:
    """What is written to the file descriptor of standard output, as gloo does, goes nowhere; what Python prints, on."""
    sys.stdout.flush()
    if sys.stdout is sys.__stdout__:
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)


def _end(message: str, document: bool) -> NoReturn:
    """Ends the process, whatever its main thread waits for, with one line."""
    Console(file=sys.__stderr__).show_cursor()
    click.echo(f"Error: {message}", file=sys.__stderr__)
    if document and not DOCUMENT.printed:
        DOCUMENT.print(dumps({"error": message, "status": 1}))
    for stream in (sys.stdout, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(1)
