"""A run as its configuration describes it: built, trained in its directory, judged."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from ..devices import as_leader, largest, leads, of_leader
from ..errors import ComputationError, InputError, NonFiniteError, PluginError, RunError
from ..evaluation import as_rows, evaluate, usual_episodes
from ..learner import Learner
from ..method import Method
from ..operations import Operations, operations
from ..optimizees import AbstractOptimizee
from ..planning import Plan, readable, require_room
from ..problem import Key, Outer
from ..profiling import Profile, profile
from ..progress import track
from ..registry import KINDS, METHODS, TASKS, find, load_method, load_tasks
from ..solvers import AbstractIterativeSolver
from ..storage.config import Config, Plugin
from ..storage.runs import PathLike, Run
from ..tasks import Split, TaskDistribution, sample_batch
from ..training import Row, TrainState, outer_step, plan, start, train
from .interrupts import Interrupted, Interrupts
from .judgement import Judgement, numbers
from .output import note

OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
}
FULL = "float32"
PRECISIONS = (FULL, "tensorfloat32", "bfloat16")  # of the factors of a matrix product; sums are in float32
META_BATCH = 25  # where nothing else is asked for
TRAIN_OPTIONS = ("every", "on_nonfinite", "task_chunk", "validation", "patience")  # that `train` takes as they are
JUDGED = 2**32 - 2  # what is folded into a judgement's key, where step i of the training folds in i
SAVING = 0.05  # the share of the time that goes to checkpoints, at most


@contextmanager
def memory_errors() -> Iterator[None]:
    """Says what to do where the memory does not suffice."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).partition("\n")[0].rstrip(".") or "Out of memory"
        raise ComputationError(
            f"{reason}. Compute fewer tasks at once: --task-chunk 1, or a smaller --meta-batch."
        ) from error


@dataclass(frozen=True)
class Experiment:
    """What a configuration stands for. The key of the training is `jax.random.key(config.seed)`."""

    config: Config
    method: Method
    tasks: TaskDistribution
    optimizer: optax.GradientTransformation

    @classmethod
    def build(cls, config: Config, given: TaskDistribution | None = None) -> "Experiment":
        """Tasks, unless they are `given`, method and outer optimizer, traced once to see that they fit; nothing
        is compiled.

        A `meta_batch` of None becomes `META_BATCH`, or 1 where every draw is the same task.

        **Raises:** `InputError` for options that are not allowed; `ComputationError` that names the plugin where its
        factory fails otherwise.
        """
        jax.config.update("jax_default_matmul_precision", config.options.get("precision"))
        if config.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer = {config.optimizer!r}: one of {', '.join(OPTIMIZERS)}.")
        tasks = made(TASKS, config.tasks, load_tasks, TaskDistribution) if given is None else given
        if config.meta_batch is None:
            config = replace(config, meta_batch=1 if tasks.single else META_BATCH)
        method = made(METHODS, config.method, load_method, Method, tasks.subject)
        picked: dict[str, Any] = config.options.get("plan") or {"task_chunk": config.options.get("task_chunk")}
        method = Plan(**picked).applied(method)
        built = cls(config, method, tasks, OPTIMIZERS[config.optimizer](config.learning_rate))
        eqx.filter_eval_shape(start, *built._beginning())
        return built

    @classmethod
    def of_run(cls, run: PathLike) -> tuple["Experiment", Run]:
        """The experiment of a run directory, in the run's own precision; plugins of another version are noted.

        **Raises:** `RunError` where there is no run; otherwise as `build`.
        """
        opened = Run.open(run)
        config = opened.config
        jax.config.update("jax_enable_x64", config.environment.x64)
        for group, plugin in [(METHODS, config.method), (TASKS, config.tasks)]:
            entry = find(group, f"{plugin.distribution}:{plugin.name}")
            if entry.version != plugin.version:
                was = f"{plugin.distribution} {plugin.version}"
                note(f"Warning: {plugin.name} was of {was} in the run, and is of {entry.version} now.")
        return cls.build(config), opened

    @classmethod
    def restored(cls, run: PathLike) -> tuple["Experiment", Outer, int]:
        """The experiment of a run directory, the x that it chose, and the outer step that this x is of.

        Nothing else of its newest checkpoint is read: carries and optimizers may have changed since.

        **Raises:** `RunError` where there is no checkpoint yet; otherwise as `of_run` and `Run.restore`.
        """
        experiment, opened = cls.of_run(run)
        like = experiment.start()
        found = opened.restore(like.x, ".x") if like.best is None else opened.restore(like.best, ".best")
        if found is None:
            raise RunError(f"The run in {run} has no checkpoint yet.")
        best = found.tree
        return (experiment, best, found.step) if like.best is None else (experiment, best.x, int(best.step))

    @property
    def title(self) -> str:
        """What was trained on what."""
        return f"{self.config.method.name} on {self.config.tasks.name}"

    @property
    def protocol(self) -> str | None:
        """What a learner or an optimizee wants to be said beside every score."""
        subject = self.tasks.subject
        return subject.protocol if isinstance(subject, Learner | AbstractOptimizee) else None

    def start(self) -> TrainState:
        """The state before the first step."""
        return start(*self._beginning())

    @memory_errors()
    def plan(self) -> Plan:
        """The way that fits the memory budget, or the method's own; all of the run is compiled, and none of it run.

        **Raises:** `InputError` where nothing fits into the budget, or the run not into the machine.
        """
        options = self.config.options
        found = plan(
            *(self.method, self.tasks, self.optimizer),
            key=jax.random.key(self.config.seed),
            meta_batch=self.meta_batch,
            memory_budget=options["memory_budget"],
            task_chunk=options["task_chunk"],
            validation=options["validation"],
            evaluations=[{"steps": self.inner_steps}],
        )
        require_room(found)
        picked = of_leader(lambda: asdict(replace(found, programs={})))  # memories of hosts may differ
        return replace(found, **{**picked, "programs": found.programs})

    def by(self, plan: Plan) -> "Experiment":
        """This experiment in the way of `plan`; what was picked for a budget is noted, and stands in the
        configuration, which a resumed run goes by."""
        planned = replace(self, method=plan.applied(self.method))
        if plan.budget is None:
            return planned
        note(
            f"Memory: {plan.way}; predicted peak {readable(plan.peak or 0)} of {readable(plan.budget)} "
            f"({plan.compiled} compiled in {plan.seconds:.0f} s)."
        )
        picked = asdict(replace(plan, programs={}))
        return replace(planned, config=replace(self.config, options={**self.config.options, "plan": picked}))

    def operations(self) -> Operations:
        """Of one outer step, its tasks drawn; nothing is compiled."""
        state = eqx.filter_eval_shape(start, *self._beginning())

        def step(state: TrainState, key: Key) -> Any:
            batch = sample_batch(self.tasks, key, "train", self.meta_batch)
            return outer_step(self.method, self.optimizer, state.x, state.optimizer, state.carry, batch, key)[:3]

        return operations(step, state, jax.random.key(0))

    @memory_errors()
    def deviation(self) -> float:
        """|d - d'| / |d'| of the directions of one batch, d in the precision of the run's products, d' in float32."""
        state, key = self.start(), jax.random.key(self.config.seed)
        batch = sample_batch(self.tasks, key, "train", self.meta_batch)
        direction = eqx.filter_jit(lambda x, batch, carry, key: self.method.estimator(x, batch, carry, key)[0])
        found = direction(state.x, batch, state.carry, key)
        with jax.default_matmul_precision(FULL):
            exact = direction(state.x, batch, state.carry, key)
        off = optax.tree.norm(jax.tree.map(jnp.subtract, found, exact))
        return float(off / optax.tree.norm(exact))

    def stages(self, state: TrainState | None = None) -> Iterator[tuple[TrainState, Row | None]]:
        """The training, from `state` on if there is one, as `training.train` walks through it."""
        options = {name: self.config.options[name] for name in TRAIN_OPTIONS}
        options["every"] = options["every"] or max(1, self.config.steps // 20)
        options["task_chunk"] = self.method.estimator.task_chunk
        return train(
            *(self.method, self.tasks, self.optimizer),
            key=jax.random.key(self.config.seed),
            steps=self.config.steps,
            meta_batch=self.meta_batch,
            state=state,
            **options,
        )

    @memory_errors()
    def train(self, run: Run, interrupts: Interrupts, *, progress: bool | None = None) -> TrainState:
        """Trains in the directory of `run`, from its newest checkpoint to the last step.

        The first state is saved, then one as often as `SAVING` allows, and the last one. A signal is granted when
        the compiled step comes back. Of many processes one restores and saves, and a signal to any stops all.

        **Raises:** `Interrupted` after saving; `NonFiniteError` that names the last good checkpoint.
        """
        config, state, writes = self.config, self.start(), leads()
        found = run.restore(state)
        stages = self.stages(as_leader(found.tree if found else state))
        pause, step, kept = 0.0, -1, -1
        saved = time.perf_counter()
        try:
            with interrupts.held():
                for state, row in track(stages, config.steps, show=progress):
                    step = int(state.step)
                    if row:
                        run.append({name: value for name, value in row.items() if name != "seconds"})
                    asked = largest(interrupts.asked or 0)
                    if writes and (asked or time.perf_counter() - saved >= pause):
                        begun = time.perf_counter()
                        run.save(step, state)
                        kept = step
                        saved = time.perf_counter()
                        pause = (saved - begun) / SAVING
                    if asked:
                        raise Interrupted(asked, f"Interrupted at step {step} of {config.steps}.")
                if writes and kept != step:
                    run.save(step, state)
        except NonFiniteError as error:
            if not (writes and isinstance(error.state, TrainState)):
                raise
            path = run.save(int(error.state.step), error.state)
            message = str(error).replace("on_nonfinite='mask'", "--on-nonfinite mask, in another directory")
            raise NonFiniteError(f"{message} The last good checkpoint is {path}.", error.state) from error
        return state

    @memory_errors()
    def judge(
        self,
        x: Outer,
        step: int,
        *,
        seed: int,
        split: Split = "test",
        episodes: int | None = None,
        steps: Sequence[int] | None = None,
        task_chunk: int | None = None,
        progress: bool | None = None,
    ) -> Judgement:
        """x, as it was after the outer step `step`, on fresh tasks.

        `steps` None means none and the method's own number of inner steps, where its solver takes steps.
        """
        episodes = episodes or usual_episodes(self.tasks)
        steps = self.inner_steps if steps is None else steps
        scores = evaluate(
            self.method,
            x,
            self.tasks,
            key=jax.random.fold_in(jax.random.key(seed), JUDGED),
            split=split,
            episodes=episodes,
            steps=steps,
            task_chunk=task_chunk or self.method.estimator.task_chunk,
            progress=progress,
        )
        return Judgement(step, split, episodes, seed, self.protocol, as_rows(scores), numbers(x))

    @memory_errors()
    def profile(self, run: Run) -> Profile:
        """Some more steps from the newest checkpoint of `run` on, which are traced and forgotten; and a judgement."""
        found = run.restore(self.start())
        if found is None:
            raise RunError(f"The run in {run.path} has no checkpoint yet.")
        key, folder = jax.random.key(self.config.seed), run.path / "profile"
        seen = profile(self.method, self.tasks, self.optimizer, found.tree, folder, key=key, meta_batch=self.meta_batch)
        score = lambda: self.judge(found.tree.chosen, found.step, seed=self.config.seed, progress=False)
        score()  # compiles, where the run was finished before
        begun = time.perf_counter()
        judged = score()
        return replace(seen, scoring=(time.perf_counter() - begun) / judged.episodes)

    @property
    def meta_batch(self) -> int:
        """Tasks of an outer step."""
        return self.config.meta_batch or META_BATCH

    @property
    def inner_steps(self) -> list[int] | None:
        """After how many a judgement looks, if nothing else is asked for: none and the method's own number."""
        solver = self.method.solver
        return [0, solver.steps] if isinstance(solver, AbstractIterativeSolver) else None

    def _beginning(self) -> tuple[Method, TaskDistribution, Any, Key, int, bool]:
        validated = self.config.options.get("validation") is not None
        return self.method, self.tasks, self.optimizer, jax.random.key(self.config.seed), self.meta_batch, validated


def made(group: str, plugin: Plugin, load: Callable[[str], Callable[..., Any]], kind: type, *subject: Any) -> Any:
    """What the factory of `plugin` makes."""
    name = f"{plugin.distribution}:{plugin.name}"
    factory = load(name)
    try:
        made = factory(*subject, **plugin.options)
    except InputError as error:
        raise InputError(f"{plugin.name}: {error}") from error
    except SystemExit as error:
        raise PluginError(f"The {KINDS[group]} {_whose(group, name)} called sys.exit({error.code!r}).") from error
    except Exception as error:
        raise ComputationError(
            f"The {KINDS[group]} {_whose(group, name)} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, kind):
        raise PluginError(
            f"The {KINDS[group]} {_whose(group, name)} gives a {type(made).__name__}, and no {kind.__name__}."
        )
    return made


def _whose(group: str, name: str) -> str:
    entry = find(group, name)
    return f"{entry.name!r} of {entry}"
