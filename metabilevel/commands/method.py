"""The command of one method, `metabilevel run METHOD`."""

import inspect
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from click.core import ParameterSource

from ..compilation import watched
from ..devices import RUNS, leads, of_leader
from ..errors import OptionError, RunError
from ..plots import curves
from ..registry import TASKS, Entry, load_method, load_tasks
from ..schema import Option, configure, options
from ..storage.config import Config, Environment, Plugin
from ..storage.files import write_json
from ..storage.runs import CONFIG, Run, require_unused
from .devices import DEVICES, HOSTS, MESH, grouped, meshed
from .dry_run import dry_run as looked_at
from .engines import LOCAL
from .experiment import FULL, META_BATCH, OPTIMIZERS, PRECISIONS, TRAIN_OPTIONS, Experiment
from .interrupts import Interrupted, Interrupts
from .judgement import Judgement
from .output import json_option, note, show
from .population import TASKS as OF_TASKS
from .profiled import tables
from .sweep import POPULATION_OPTIONS, run_population
from .types import Assignment, Count, Folder, PluginName, PluginValue, Positive, Size

OWN = "method_"  # begins the names of the parameters that are the method's
PICTURE, PROFILE = "curves.png", "profile.json"
COMMON = [
    click.Option(["--tasks"], type=PluginName(TASKS), required=True, is_eager=True, help="The task family."),
    click.Option(["--task-option"], type=Assignment(), multiple=True, help="An option of the tasks; repeatable."),
    click.Option(["--steps"], type=Count(1), default=1000, show_default=True, help="Outer steps."),
    click.Option(
        ["--meta-batch"],
        type=Count(1),
        help=f"Tasks of an outer step. [default: {META_BATCH}, or 1 where there is but one]",
    ),
    click.Option(["--outer-optimizer"], type=click.Choice(list(OPTIMIZERS)), default="adam", show_default=True),
    click.Option(["--outer-learning-rate"], type=Positive(), default=0.001, show_default=True),
    click.Option(["--seed"], type=Count(0, 2**32 - 1), default=0, show_default=True, help="Of all randomness."),
    click.Option(["--every"], type=Count(1), help="Outer steps to a report. [default: a twentieth of all]"),
    click.Option(
        ["--on-nonfinite"],
        type=click.Choice(["raise", "mask"]),
        default="raise",
        show_default=True,
        help="Where the loss or the gradient of a task is not finite: stop, or leave the task out and count it.",
    ),
    click.Option(
        ["--validation"],
        type=Count(1),
        help="Episodes of the validation split that judge every report; the best x is kept.",
    ),
    click.Option(["--patience"], type=Count(1), help="Stop after that many reports without a better validation loss."),
    click.Option(["--task-chunk"], type=Count(1), help="Tasks computed at once. [default: as the machine likes it]"),
    click.Option(
        ["--precision"],
        type=click.Choice(PRECISIONS),
        default=FULL,
        show_default=True,
        help="What an accelerator rounds the factors of matrix products to; what that does to the direction of a "
        "batch is measured first. A CPU rounds nothing.",
    ),
    click.Option(["--devices"], **DEVICES),
    click.Option(["--mesh"], **MESH),
    *HOSTS,
    click.Option(
        ["--memory-budget"],
        type=Size(),
        help="What the process may hold, as 8GiB: task chunk, checkpoints and mixed mode are picked to fit. "
        "--resume wants the same.",
    ),
    click.Option(
        ["--profile"],
        is_flag=True,
        help=f"Trace some more steps at the end into DIR/profile; {PROFILE} says where time and memory go.",
    ),
    click.Option(
        ["--dry-run"],
        is_flag=True,
        help="Compile the run, say what it takes in memory and arithmetic, and start nothing.",
    ),
    click.Option(
        ["--out"],
        type=Folder(),
        metavar="DIR",
        help="The run directory. [default: runs/METHOD-TASKS-SEED]",
    ),
    click.Option(
        ["--resume"], is_flag=True, help="Go on with the run in the directory; same options, or more --steps."
    ),
    *POPULATION_OPTIONS,
]


class MethodCommand(click.Command):
    """Shows the options of the method, of the run, and of the tasks where these are given before `--help`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [param for param in self.params if str(param.name).startswith(OWN)]
        rest = [param for param in self.get_params(ctx) if param not in own]
        for title, params in [(f"Options of {self.name}", own), ("Options of the run", rest)]:
            if records := [record for param in params if (record := param.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(records)
        if isinstance(entry := ctx.params.get("tasks"), Entry):
            with formatter.section(f"Options of {entry.name}, each as --task-option NAME=VALUE"):
                known = options(load_tasks(entry.qualified))
                formatter.write_dl([(name, f"{_help(option)} ({option.allowed})") for name, option in known.items()])


def command_of(entry: Entry) -> click.Command:
    """The command of an installed method, which is imported."""
    factory = load_method(entry.qualified)
    reserved = {flag for param in COMMON for flag in param.opts} | {"--json", "--help"}
    own = [_own(option, reserved) for option in options(factory).values()]
    about = _about(inspect.getdoc(factory) or "")
    return json_option(MethodCommand(entry.name, params=[*own, *COMMON], callback=partial(_run, entry), help=about))


def _own(option: Option, reserved: Iterable[str]) -> click.Option:
    """A method's option. One that the run has too is called `--inner-...`."""
    flag = f"--inner-{option.flag[2:]}" if option.flag in reserved else option.flag
    bare = {"is_flag": False, "flag_value": "true"} if option.type is bool else {}
    return click.Option(
        [flag, f"{OWN}{option.name}"],
        type=PluginValue(option, flag),
        default=option.default,
        help=_help(option),
        **bare,
    )


def _help(option: Option) -> str:
    default = str(option.default).lower() if option.default is None or option.type is bool else option.default
    return f"{option.help} [default: {default}]".strip()


def _about(doc: str) -> str:
    """A docstring without its sections; formulas, which are indented, are not wrapped."""
    paragraphs = re.split(r"\n\s*\n", doc.partition("\n**")[0].strip())
    return "\n\n".join(f"\b\n{each}" if each.startswith(" ") else each for each in paragraphs)


def _run(
    entry: Entry,
    as_json: bool,
    tasks: Entry,
    task_option: tuple[tuple[str, str], ...],
    out: Path | None,
    resume: bool,
    profile: bool,
    dry_run: bool,
    seeds: int | None,
    sweep: tuple[tuple[str, str], ...],
    engine: str,
    engine_option: tuple[tuple[str, str], ...],
    devices: int | None,
    mesh: dict[str, int] | None,
    **given: Any,
) -> None:
    if dry_run and (resume or profile):
        raise click.UsageError(f"--dry-run starts nothing: there is nothing to {'resume' if resume else 'profile'}.")
    if given["distributed"] and (profile or seeds is not None or sweep):
        raise click.UsageError("--distributed shares out a single run: leave out --seeds, --sweep and --profile.")
    if seeds is not None or sweep:
        if profile or dry_run:
            raise click.UsageError(
                f"{'--profile' if profile else '--dry-run'} looks at a single run: leave out --seeds and --sweep."
            )
        shared = partial(meshed, devices, mesh)
        with shared() if engine == LOCAL else nullcontext():
            run_population(
                *(_config(entry, tasks, dict(task_option), given), *_sweepable(task_option)),
                seeds=seeds or 1,
                sweep=sweep,
                engine=engine,
                engine_option=engine_option,
                out=out,
                resume=resume,
                as_json=as_json,
                again=_again(),
                shared=shared,
            )
        return
    if mesh and RUNS in mesh:
        raise click.UsageError(f"--mesh {RUNS}={mesh[RUNS]} shares out several runs: add --seeds or --sweep.")
    if engine_option or engine != LOCAL:
        raise click.UsageError("--engine and --engine-option are for --seeds and --sweep, of which there is neither.")
    out = out or Path("runs", f"{entry.name}-{tasks.name}-{given['seed']}")
    asked = {"METHOD": entry.qualified, "--tasks": tasks.qualified, "--task-option": task_option, "--resume": resume}
    with (
        Interrupts() as interrupts,
        watched() as compilation,
        grouped(given, asked, as_json=as_json),
        meshed(devices, mesh),
        _written(out) as folder,
    ):
        begun, plan = of_leader(lambda: _begun(out, resume))
        config = _config(entry, tasks, dict(task_option), given)
        if plan:
            config = replace(config, options={**config.options, "plan": plan})
        experiment = Experiment.build(config)
        if not begun:
            found = experiment.plan()
            experiment = experiment.by(found)
            if dry_run:
                document, parts = looked_at(experiment, found, compilation)
                show(as_json, document, *parts)
                return
            if given["precision"] != FULL:
                off = experiment.deviation()
                note(f"Products in {given['precision']}: a direction is off by {off:.1e} of its norm in {FULL}.")
        config = experiment.config
        with _blaming("--resume" if resume else "--out"):
            opened = Run.resume(folder, config) if resume else Run.create(folder, config)
        with opened as run:
            try:
                summary = of_leader(run.summary)
                if summary is None:
                    summary = _finish(run, experiment, interrupts, False if as_json else None)
                else:
                    note(f"The run in {out} is finished. Give more --steps to go on with it.")
                document, parts = {"run": str(out), **summary, "compilation": asdict(compilation)}, []
                if profile:
                    found = experiment.profile(run)
                    document["profile"] = asdict(found)
                    write_json(out / PROFILE, document["profile"])
                    trace = f"The trace is in {out / 'profile'}, for Perfetto or TensorBoard"
                    parts = [*tables(found, _title(config)), trace]
            except Interrupted as stop:
                raise Interrupted(stop.signum, f"{stop} Resume with: {_again()}") from stop
        speaks = leads()
    judged = Judgement(**summary["evaluation"])
    if speaks:
        show(as_json, document, judged.table(_title(config)), *parts, f"{compilation}. The run is in {out}")
    judged.require_finite()


def _sweepable(task_option: Iterable[tuple[str, str]]) -> tuple[dict[str, Option], list[str]]:
    """The options of the method by their names on the command line, and the names of all options that are given."""
    ctx = click.get_current_context()
    named = {str(param.name): param.opts[0][2:].replace("-", "_") for param in ctx.command.params}
    own = {
        named[name]: replace(param.type.option, name=name.removeprefix(OWN))
        for param in ctx.command.params
        if (name := str(param.name)).startswith(OWN) and isinstance(param.type, PluginValue)
    }
    given = [shown for name, shown in named.items() if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return own, [*given, *(f"{OF_TASKS}{name.replace('-', '_')}" for name, _ in task_option)]


def _begun(out: Path, resume: bool) -> tuple[bool, dict[str, Any] | None]:
    """Whether there is a run in `out` to go on with, and the way of computing that was picked for it."""
    if resume and (out / CONFIG).is_file():
        return True, Run.open(out).config.options.get("plan")
    with _blaming("--resume" if resume else "--out"):
        if resume and not out.is_dir():
            raise RunError(f"There is no run in {out}: it is no directory.")
        require_unused(out)
    return False, None


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """The run directory of this process: `out`, or where another process writes that, one that is forgotten."""
    if leads():
        yield out
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def _blaming(option: str) -> Iterator[None]:
    """Names the option that a run directory was refused for."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{option}: {error}") from error


def _config(entry: Entry, tasks: Entry, task_options: Mapping[str, str], given: Mapping[str, Any]) -> Config:
    try:
        of_tasks = configure(load_tasks(tasks.qualified), task_options)
    except OptionError as error:
        raise click.BadParameter(str(error), param_hint="'--task-option'") from error
    of_method = {name.removeprefix(OWN): value for name, value in given.items() if name.startswith(OWN)}
    return Config(
        command="run",
        method=Plugin(entry.name, entry.distribution, entry.version, of_method),
        tasks=Plugin(tasks.name, tasks.distribution, tasks.version, of_tasks),
        seed=given["seed"],
        steps=given["steps"],
        meta_batch=given["meta_batch"],
        optimizer=given["outer_optimizer"],
        learning_rate=given["outer_learning_rate"],
        options={name: given[name] for name in (*TRAIN_OPTIONS, "memory_budget", "precision")},
        environment=Environment.current(),
    )


def _finish(run: Run, experiment: Experiment, interrupts: Interrupts, progress: bool | None) -> dict[str, Any]:
    """Trains to the end, judges, and leaves the summary and the picture in the run directory."""
    begun = time.perf_counter()
    state = experiment.train(run, interrupts, progress=progress)
    seconds = time.perf_counter() - begun
    step, rows = int(state.step), run.metrics()
    judgement = experiment.judge(state.chosen, state.chosen_step, seed=run.config.seed, progress=progress)
    if not leads():
        return {"evaluation": asdict(judgement)}
    curves(run.path / PICTURE, _title(run.config), rows)
    summary = {"step": step, "seconds": seconds, "metrics": rows[-1], "evaluation": asdict(judgement)}
    if plan := run.config.options.get("plan"):
        summary["plan"] = plan
    run.finish(summary)
    return summary


def _title(config: Config) -> str:
    return f"{config.method.name} on {config.tasks.name}"


def _again() -> str:
    """This command with --resume."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join(["metabilevel", *arguments, "--resume"])
