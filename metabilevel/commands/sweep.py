"""`metabilevel run METHOD --seeds N --sweep NAME=VALUE,...`: a population in its directory."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import click

from ..compilation import watched
from ..errors import RunError
from ..registry import load_tasks
from ..schema import Option, options
from ..storage.config import Config
from ..storage.files import write_json
from ..storage.populations import opened
from ..storage.runs import SUMMARY
from .engines import ENGINES, JOBS, LOCAL, compute, executor_of
from .interrupts import Interrupted, Interrupts
from .output import note, show
from .population import OUTER, PICTURE, TASKS, cohorts, members, sweeps
from .standings import Standing, Standings
from .types import Assignment, Count

POPULATION_OPTIONS = [
    click.Option(["--seeds"], type=Count(1, 2**32), help="Runs with as many seeds, from --seed on, as one program."),
    click.Option(
        ["--sweep"],
        type=Assignment(),
        multiple=True,
        metavar="NAME=VALUE,...",
        help="A run for each value of an option of the method, of the tasks (tasks.NAME) or outer_learning_rate; "
        "several make a grid.",
    ),
    click.Option(
        ["--engine"],
        type=click.Choice(ENGINES),
        default=LOCAL,
        show_default=True,
        help="Where --seeds and --sweep are computed: here, as SLURM jobs, or as processes of this machine.",
    ),
    click.Option(["--engine-option"], type=Assignment(), multiple=True, help="Of the jobs, as partition=gpu."),
]


def run_population(
    base: Config,
    own: Mapping[str, Option],
    given: Iterable[str],
    *,
    seeds: int,
    sweep: Sequence[tuple[str, str]],
    engine: str,
    engine_option: Sequence[tuple[str, str]],
    out: Path | None,
    resume: bool,
    as_json: bool,
    again: str,
    shared: Callable[[], AbstractContextManager],
) -> None:
    """Trains, judges and compares the runs of a population.

    **Arguments:** `own` are the options of the method by the names that they have on the command line; `given` the
    names of all that were set there; `again` is the command that goes on with it; `shared` is the mesh of devices that
    jobs enter.

    **Raises:** `InputError` and `click.UsageError` for what cannot be run; `ComputationError` at the end, where a run
    has failed; `Interrupted`.
    """
    of_tasks = options(load_tasks(f"{base.tasks.distribution}:{base.tasks.name}"))
    known = {
        **own,
        OUTER: Option(OUTER, float, base.learning_rate),
        **{f"{TASKS}{name}": option for name, option in of_tasks.items()},
    }
    swept = sweeps(sweep, known, given)
    everyone = members(base, seeds, swept)
    title = f"{base.method.name} on {base.tasks.name}"
    out = out or Path("runs", f"{base.method.name}-{base.tasks.name}-population")
    asked = {"seeds": [base.seed, seeds], "sweep": {each.name: each.values for each in swept}, "config": asdict(base)}
    begun = time.perf_counter()
    with Interrupts() as interrupts, watched() as compilation:
        try:
            programs = cohorts(everyone, swept)
            with opened(out, [each.name for each in everyone], asked, resume=resume):
                executor = executor_of(engine, dict(engine_option), out / JOBS)
                number = "one program" if len(programs) == 1 else f"{len(programs)} programs"
                note(f"{len(everyone)} runs, as {number}.")
                compute(executor, shared, programs, swept, out, interrupts, False if as_json else None)
                note(f"{compilation}.")
                standings = Standings(title, [Standing.of(each, out) for each in everyone])
                document = {**standings.as_json(), "seconds": time.perf_counter() - begun}
                write_json(out / SUMMARY, document)
                standings.draw(out / PICTURE)
        except Interrupted as stop:
            raise Interrupted(stop.signum, f"{stop} Resume with: {again}") from stop
        except RunError as error:
            raise RunError(f"{'--resume' if resume else '--out'}: {error}") from error
    document = {"population": str(out), **document}
    show(as_json, document, *standings.tables(), *standings.remarks(), f"The population is in {out}")
    standings.require_finished()
