"""Where the runs of a population are computed: in this process, or as jobs of a cluster."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ..errors import InputError
from .interrupts import Interrupted, Interrupts
from .output import note
from .population import Cohort, Member, Sweep, cohorts, run

LOCAL = "local"
EXECUTORS = {"slurm": "SlurmExecutor", "submitit-local": "LocalExecutor"}
ENGINES = (LOCAL, *EXECUTORS)
JOBS = "jobs"


def compute(
    executor: Any,
    programs: Sequence[Cohort],
    swept: Sequence[Sweep],
    folder: Path,
    interrupts: Interrupts,
    progress: bool | None,
) -> None:
    """Trains and judges the members of all `programs` in their directories, by the `executor` of the engine.

    A job ends with its directories as far as it came, and what became of its runs is read from there. A signal to this
    process stops the jobs too.

    **Raises:** `Interrupted`.
    """
    if executor is None:
        for cohort in programs:
            run(cohort, folder, interrupts, progress=progress)
        return
    jobs = [executor.submit(work, folder, cohort.members, list(swept)) for cohort in programs]
    note(f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs)}. What they say is in {folder / JOBS}.")
    try:
        for job in jobs:
            if error := job.exception():
                last = str(error).strip().rpartition("\n")[2]
                note(f"Job {job.job_id} failed: {last} See {job.paths.stderr}.")
    except Interrupted:
        for job in jobs:
            job.cancel(check=False)
        raise


def work(folder: Path, members: Sequence[Member], swept: Sequence[Sweep]) -> None:
    """One job: the members of one program."""
    jax.config.update("jax_enable_x64", members[0].config.environment.x64)
    with Interrupts() as interrupts:
        for cohort in cohorts(members, swept):
            run(cohort, folder, interrupts, progress=False)


def executor_of(engine: str, options: Mapping[str, str], folder: Path) -> Any:
    """What submits jobs to `engine`, whose files are in `folder`; None for this process.

    **Raises:** `InputError` for an engine that is not installed or not there, or options that it does not know.
    """
    if engine == LOCAL:
        if options:
            raise InputError(f"--engine-option {next(iter(options))}: the engine {LOCAL!r} has no options.")
        return None
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            f"--engine {engine}: submitit is not installed. Install the extra: pip install 'metabilevel[slurm]'."
        ) from error
    make: Callable[..., Any] = getattr(submitit, EXECUTORS[engine])
    try:
        executor = make(folder)
        executor.update_parameters(**{name.replace("-", "_"): _number(text) for name, text in options.items()})
    except (NameError, TypeError, ValueError) as error:
        raise InputError(f"--engine-option: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        raise InputError(f"--engine {engine}: {' '.join(str(error).split())}") from error
    return executor


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
