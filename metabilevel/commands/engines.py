"""Where the runs of a population are computed: in this process, or as jobs of a cluster."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from ..errors import InputError
from ..storage.config import Environment
from .interrupts import Interrupted, Interrupts
from .output import note
from .population import Cohort, Member, Sweep, cohorts, finished, run

LOCAL = "local"
CLUSTERS = {"slurm": "slurm", "submitit-local": "local"}  # of submitit
ENGINES = (LOCAL, *CLUSTERS)
COMMON = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node")  # options of all clusters
JOBS = "jobs"


def compute(
    executor: Any,
    shared: Callable[[], AbstractContextManager],
    programs: Sequence[Cohort],
    swept: Sequence[Sweep],
    folder: Path,
    interrupts: Interrupts,
    progress: bool | None,
) -> None:
    """Trains and judges the members of all `programs` in their directories, by the `executor` of the engine.
    A job enters `shared`, the mesh of its devices.

    A job ends with its directories as far as it came, and what became of its runs is read from there. A signal to this
    process stops the jobs too.

    **Raises:** `Interrupted`.
    """
    if executor is None:
        for cohort in programs:
            run(cohort, folder, interrupts, progress=progress)
        return
    left = [cohort for cohort in programs if not all(finished(member, folder) for member in cohort.members)]
    jobs = [executor.submit(work, shared, folder, cohort.members, list(swept)) for cohort in left]
    if jobs:
        note(f"Jobs: {', '.join(job.job_id for job in jobs)}. What they say is in {folder / JOBS}.")
    try:
        for job in jobs:
            if error := job.exception():
                last = str(error).strip().rpartition("\n")[2]
                note(f"Job {job.job_id} failed: {last} See {job.paths.stderr}.")
    except Interrupted:
        for job in jobs:
            job.cancel(check=False)
        raise


def work(
    shared: Callable[[], AbstractContextManager], folder: Path, members: Sequence[Member], swept: Sequence[Sweep]
) -> None:
    """One job: the members of one program, on the devices that are there."""
    jax.config.update("jax_enable_x64", members[0].config.environment.x64)
    with Interrupts() as interrupts, shared():
        here = Environment.current()
        own = [replace(member, config=replace(member.config, environment=here)) for member in members]
        for cohort in cohorts(own, swept):
            run(cohort, folder, interrupts, progress=False)


def executor_of(engine: str, options: Mapping[str, str], folder: Path) -> Any:
    """What submits jobs to `engine`, whose files are in `folder`; None for this process.

    **Raises:** `InputError` for an engine that is not installed or not there, or options that it does not know.
    """
    if engine == LOCAL:
        if options:
            raise InputError(f"--engine-option {next(iter(options))}: the engine {LOCAL!r} has no options.")
        return None
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # or else it would write on standard output
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            f"--engine {engine}: submitit is not installed. Install the extra: pip install 'metabilevel[slurm]'."
        ) from error
    cluster, there = CLUSTERS[engine], folder.is_dir()
    try:
        executor = submitit.AutoExecutor(folder, cluster)
        for name, text in options.items():
            known = name.replace("-", "_")
            own = known if known in COMMON else f"{cluster}_{known}"
            executor.update_parameters(**{own: int(text) if text.isdecimal() else text})
    except (AssertionError, NameError, RuntimeError) as error:
        if folder.is_dir() and not there:
            folder.rmdir()
        blamed = f"--engine {engine}" if isinstance(error, RuntimeError) else "--engine-option"
        raise InputError(f"{blamed}: {str(error).partition(chr(10))[0]}") from error
    return executor
