"""Many runs of one method: what they are, and how those that one program computes are trained in their directories."""

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import click
import jax
import jax.numpy as jnp

from ..errors import InputError, OptionError, did_you_mean
from ..evaluation import as_rows, usual_episodes
from ..planning import Plan, require_room
from ..plots import curves
from ..population import Fixed, Population, begin, by, evaluate, part, plan, takes
from ..population_training import tracked, train
from ..registry import load_method
from ..schema import Option, Value
from ..storage.config import Config
from ..storage.files import write_json
from ..storage.runs import CONFIG, SUMMARY, Run
from ..tasks import TaskDistribution
from ..training import TrainState
from .experiment import JUDGED, OPTIMIZERS, SAVING, TRAIN_OPTIONS, Experiment, memory_errors
from .interrupts import Interrupted, Interrupts
from .judgement import Judgement, numbers

FAILURE, PICTURE = "failure.json", "curves.png"
OUTER, TASKS = "outer_learning_rate", "tasks."
SEEDS = 2**32  # there are
MOST = 100_000  # runs of one population
OPEN_FILES = 200  # beside one a run
LONGEST = 255  # bytes of the name of a directory


@dataclass(frozen=True)
class Sweep:
    """The values of one option. `name` is what it is called here, `option` what its factory calls it."""

    name: str
    option: Option
    values: tuple[Value, ...]

    @property
    def of(self) -> Literal["method", "tasks", "outer"]:
        """Whose option it is."""
        return "outer" if self.name == OUTER else "tasks" if self.name.startswith(TASKS) else "method"

    def into(self, config: Config, value: Value) -> Config:
        """`config` with this option at `value`."""
        if self.of == "outer":
            return replace(config, learning_rate=value)
        plugin = getattr(config, self.of)
        plugin = replace(plugin, options={**plugin.options, self.option.name: value})
        return replace(config, **{self.of: plugin})


def sweeps(texts: Sequence[tuple[str, str]], known: Mapping[str, Option], given: Iterable[str]) -> list[Sweep]:
    """What `--sweep NAME=VALUE,VALUE,...` asks for, of the options `known` by name; those in `given` are set already.

    **Raises:** `click.BadParameter` that names the option and the value.
    """
    found: dict[str, Sweep] = {}
    for text, listed in texts:
        name = text.removeprefix("--").replace("-", "_")
        if name not in known:
            inner = f"inner_{name}"
            hint = f" Did you mean {inner!r}?" if inner in known else did_you_mean(name, known)
            _refuse(f"There is no option {text!r} to sweep.{hint} Options: {', '.join(known)}.")
        if name in found:
            _refuse(f"{name!r} stands there twice: give all its values at once, with commas between them.")
        if name in given:
            _refuse(f"{name!r} is swept, and given a value of its own: leave one of the two.")
        words = [word.strip() for word in listed.split(",")]
        if not all(words):
            _refuse(f"{name}={listed}: values are wanted, with commas between them.")
        values: list[Value] = []
        for word in words:
            try:
                value = replace(known[name], name=name).convert(word)
            except OptionError as error:
                raise click.BadParameter(str(error), param_hint="'--sweep'") from error
            if name == OUTER and not float(str(value)) > 0:
                _refuse(f"{name}={word}: a number above 0 is wanted.")
            if value in values:
                _refuse(f"{name}={listed}: {word} stands there twice.")
            values.append(value)
        found[name] = Sweep(name, known[name], tuple(values))
    return list(found.values())


def _refuse(message: str) -> None:
    raise click.BadParameter(message, param_hint="'--sweep'")


@dataclass(frozen=True)
class Member:
    """One run of a population: its seed, its values of the swept options by name, and its configuration."""

    seed: int
    values: dict[str, Value]
    config: Config

    @property
    def name(self) -> str:
        """Of its directory."""
        said = {"seed": self.seed, **self.values}
        return ",".join(f"{name}={quote(_word(value), safe='+')}" for name, value in said.items())


def _word(value: Value) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def said(values: Mapping[str, Value]) -> str:
    """The values of a member, for people."""
    return ", ".join(f"{name} = {_word(value)}" for name, value in values.items())


def members(base: Config, seeds: int, swept: Sequence[Sweep]) -> list[Member]:
    """Every seed from that of `base` on with every combination of values.

    **Raises:** `click.BadParameter` for a seed that is too large.
    """
    if base.seed + seeds > SEEDS:
        raise click.BadParameter(
            f"{seeds} seeds from {base.seed} on end at {base.seed + seeds - 1}, and {SEEDS - 1} is the largest.",
            param_hint="'--seeds'",
        )
    number = seeds * math.prod(len(sweep.values) for sweep in swept)
    if number > MOST:
        raise click.BadParameter(f"{number:,} runs are more than the {MOST:,} of a population.", param_hint="'--seeds'")
    found = []
    for values in itertools.product(*(sweep.values for sweep in swept)):
        config = base
        for sweep, value in zip(swept, values, strict=True):
            config = sweep.into(config, value)
        named = {sweep.name: value for sweep, value in zip(swept, values, strict=True)}
        found += [Member(s, named, replace(config, seed=s)) for s in range(base.seed, base.seed + seeds)]
    longest = max((member.name for member in found), key=len)
    if len(longest.encode()) > LONGEST:
        _refuse(
            f"The directory of a run would be called {longest[:60]}..., {len(longest)} letters: sweep fewer options."
        )
    return found


@dataclass(frozen=True)
class Cohort:
    """Members whose runs one program computes. They differ in the seed and in the numbers of the sweeps in `traced`;
    `experiment` is that of the first."""

    members: list[Member]
    traced: list[Sweep]
    experiment: Experiment

    def population(self) -> Population:
        """What is computed."""
        plugin, subject = self.experiment.config.method, self.experiment.tasks.subject
        factory = load_method(f"{plugin.distribution}:{plugin.name}")
        own = {sweep.name: sweep.option.name for sweep in self.traced if sweep.of == "method"}
        rate = OPTIMIZERS[self.experiment.config.optimizer]
        swept = any(sweep.of == "outer" for sweep in self.traced)
        numbers = {s.name: jnp.asarray([m.values[s.name] for m in self.members], float) for s in self.traced}
        return Population(
            (lambda **v: factory(subject, **{**plugin.options, **{own[name]: v[name] for name in own}}))
            if own
            else Fixed(self.experiment.method),
            (lambda **v: rate(v[OUTER])) if swept else Fixed(self.experiment.optimizer),
            jax.vmap(jax.random.key)(jnp.asarray([m.seed for m in self.members], jnp.uint32)),
            numbers,
            Plan(self.experiment.config.options["task_chunk"]),
        )


def cohorts(everyone: Sequence[Member], swept: Sequence[Sweep]) -> list[Cohort]:
    """The programs that compute `everyone`: one for each combination of values that no traced number can stand for.

    Each combination is built once with its values as they are, so that what is wrong with one is said of it.

    **Raises:** as `Experiment.build`.
    """
    tasks: dict[str, TaskDistribution] = {}
    experiments: dict[str, Experiment] = {}
    for member in everyone:
        if said(member.values) not in experiments:
            of = str(member.config.tasks.options)
            experiment = Experiment.build(member.config, tasks.get(of))
            tasks[of] = experiment.tasks
            experiments[said(member.values)] = experiment
    traced = []
    for sweep in swept:
        first = everyone[0]
        numbers = sweep.of != "tasks" and all(isinstance(value, float) for value in sweep.values)
        if len(sweep.values) > 1 and numbers:
            experiment = experiments[said(first.values)]
            if takes(Cohort([first], [sweep], experiment).population(), experiment.tasks, experiment.meta_batch):
                traced.append(sweep)
    parted: dict[str, list[Member]] = {}
    for member in everyone:
        fixed = {name: value for name, value in member.values.items() if name not in [sweep.name for sweep in traced]}
        parted.setdefault(said(fixed), []).append(member)
    return [Cohort(those, traced, experiments[said(those[0].values)]) for those in parted.values()]


def finished(member: Member, folder: Path) -> bool:
    """Whether the run in its directory below `folder` has come to its last step."""
    path = folder / member.name
    return (path / SUMMARY).is_file() and Run.open(path).config.steps >= member.config.steps


@memory_errors()
def run(cohort: Cohort, folder: Path, interrupts: Interrupts, *, progress: bool | None = None) -> None:
    """Trains and judges the members of `cohort` in their directories below `folder`, those that are finished left out.

    **Raises:** `Interrupted` after saving; `InputError` where they do not fit into the memory, and `RunError` where a
    directory is of another run.
    """
    paths = [folder / member.name for member in cohort.members]
    begun = [Run.open(path).config for path in paths if (path / CONFIG).is_file()]
    picked = next((config.options["plan"] for config in begun if config.options.get("plan")), None)
    population, config = cohort.population(), cohort.experiment.config
    if picked:
        population = by(population, Plan(**picked))
    elif not begun:
        found = _planned(cohort, population)
        population, picked = by(population, found), cohort.experiment.by(found).config.options.get("plan")
    options = {**config.options, **({"plan": picked} if picked else {})}
    _require_open_files(len(paths))
    with ExitStack() as held:
        runs: list[Run] = []
        for path, member in zip(paths, cohort.members, strict=True):
            own = replace(member.config, meta_batch=config.meta_batch, options=options)
            runs.append(held.enter_context((Run.resume if (path / CONFIG).is_file() else Run.create)(path, own)))
        places = [j for j, run in enumerate(runs) if run.summary() is None]
        if not places:
            return
        for j in places:
            (runs[j].path / FAILURE).unlink(missing_ok=True)
        _finish(cohort.experiment, population.at(places), [runs[j] for j in places], interrupts, progress)


def _require_open_files(runs: int) -> None:
    """Has the system let this process open a file for each of the runs, and some more, as far as it lets itself be
    told.

    **Raises:** `InputError` where it does not.
    """
    try:
        import resource
    except ImportError:  # on a system without such limits
        return
    wanted, (soft, hard) = runs + OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY in (soft, hard) or wanted <= soft:
        return
    if wanted > hard:
        raise InputError(f"{runs} runs at once want {wanted} open files, and {hard} are allowed here (ulimit -n).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _planned(cohort: Cohort, population: Population) -> Plan:
    """How the program is computed. It is compiled, and compared with the machine.

    **Raises:** `InputError` where it does not fit.
    """
    experiment = cohort.experiment
    try:
        found = plan(
            population,
            experiment.tasks,
            meta_batch=experiment.meta_batch,
            memory_budget=experiment.config.options["memory_budget"],
            validation=experiment.config.options["validation"],
            evaluations=[{"steps": experiment.inner_steps}],
        )
        require_room(found)
    except InputError as error:
        raise InputError(f"{len(cohort.members)} runs at once: {error} Or take fewer --seeds or values.") from error
    return found


def _finish(
    experiment: Experiment,
    population: Population,
    runs: Sequence[Run],
    interrupts: Interrupts,
    progress: bool | None,
) -> None:
    """Trains each member to its end or failure, judges those that came to their end, and leaves their summaries."""
    tick = time.perf_counter()
    ended = _train(experiment, population, runs, interrupts, progress)
    seconds = time.perf_counter() - tick
    if not ended:
        return
    some = next(iter(ended))
    places = [j if j in ended else some for j in range(len(runs))]  # as many as before, so that nothing is compiled
    scores = evaluate(
        population.at(places),
        [ended[j].chosen for j in places],
        experiment.tasks,
        keys=jax.vmap(lambda key: jax.random.fold_in(key, JUDGED))(population.at(places).keys),
        steps=experiment.inner_steps,
        progress=progress,
    )
    episodes = usual_episodes(experiment.tasks)
    for j, state in ended.items():
        run, x = runs[j], state.chosen
        judgement = Judgement(
            *(state.chosen_step, "test", episodes, run.config.seed, experiment.protocol),
            *(as_rows(scores[j]), numbers(x)),
        )
        rows = run.metrics()
        curves(run.path / PICTURE, experiment.title, rows)
        summary = {"step": int(state.step), "seconds": seconds, "metrics": rows[-1], "evaluation": asdict(judgement)}
        run.finish(summary | {name: run.config.options[name] for name in ("plan",) if name in run.config.options})


def _train(
    experiment: Experiment,
    population: Population,
    runs: Sequence[Run],
    interrupts: Interrupts,
    progress: bool | None,
) -> dict[int, TrainState]:
    """The last states of those that came to their end. The first states are saved, the last ones, and in between as
    often as `SAVING` allows."""
    config = runs[0].config
    first = begin(population, experiment.tasks, experiment.meta_batch, config.options["validation"] is not None)
    found = [run.restore(part(first, j)) for j, run in enumerate(runs)]
    states = [part(first, j) if there is None else there.tree for j, there in enumerate(found)]
    options = {name: config.options[name] for name in TRAIN_OPTIONS if name != "task_chunk"}
    stages = train(
        population,
        experiment.tasks,
        steps=config.steps,
        meta_batch=experiment.meta_batch,
        states=states if any(found) else None,
        **{**options, "every": options["every"] or max(1, config.steps // 20)},
    )
    ended: dict[int, TrainState] = {}
    kept = {j: there.step for j, there in enumerate(found) if there is not None}

    def save(j: int, state: TrainState) -> Path | None:
        step = int(state.step)
        if kept.get(j) == step:
            return None
        kept[j] = step
        return runs[j].save(step, state)

    pause, saved = 0.0, time.perf_counter()
    with interrupts.held():
        for stage in tracked(stages, config.steps, show=progress):
            for j, row in stage.rows.items():
                runs[j].append({name: value for name, value in row.items() if name != "seconds"})
            for j, error in stage.failed.items():
                assert isinstance(error.state, TrainState)
                save(j, error.state)
                message = str(error).replace("on_nonfinite='mask'", "--on-nonfinite mask, in another directory")
                write_json(runs[j].path / FAILURE, {"step": int(error.state.step), "error": message})
            ended |= {j: stage.state(j) for j in stage.ended}
            due = interrupts.asked or time.perf_counter() - saved >= pause
            tick = time.perf_counter()
            for j in stage.going if due else stage.ended:
                save(j, stage.state(j))
            if due:
                saved = time.perf_counter()
                pause = (saved - tick) / SAVING
            if interrupts.asked:
                raise Interrupted(interrupts.asked, f"Interrupted at step {stage.step} of {config.steps}.")
    return ended
