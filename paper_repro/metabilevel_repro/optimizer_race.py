"""A learned optimizer beside tuned hand-made ones, on the same functions: what its reproductions measure."""

from dataclasses import dataclass
from typing import Any

import metabilevel as mb
from metabilevel.reproduction import Curve, Lab, Outcome, Panel

LSTM = "LSTM"
NAMES = {"sgd": "SGD", "momentum": "momentum", "nag": "NAG", "rmsprop": "RMSprop", "adam": "Adam"}
RUNS = 2  # the seed's use for the runs that are compared, which all optimizers share
BEST = "best hand-made"  # the tuned optimizer with the least mean loss at a step
POINTS = 40  # of a curve


@dataclass(frozen=True)
class Settings:
    """One training of the LSTM, and its comparison on several problems.

    - `family`: the task family of all; `problems`: its options for each, by name. The LSTM is trained on the first.
    - `lstm`: options of the method; Adam's `learning_rate` falls to 0 as a cosine over `updates` of `meta_batch` runs,
      `checks` times judged by `validation` runs.
    - `rates`: the grid of each hand-made optimizer, tuned on each problem by the loss of `tuning` runs at the horizon.
    - `functions`: runs of a comparison, of `length` steps on the first problem and to the horizon on the others;
      `at_once` of them are computed together.
    - `read`: the steps that have rows; `rivals`: whose losses less the LSTM's have rows.
    """

    family: str
    problems: dict[str, dict[str, Any]]
    lstm: dict[str, Any]
    rates: dict[str, tuple[float, ...]]
    learning_rate: float
    updates: int
    meta_batch: int
    validation: int
    functions: int
    tuning: int
    at_once: int
    horizon: int = 100
    length: int = 200
    read: tuple[int, ...] = (20, 50, 100, 200)
    checks: int = 20
    rivals: tuple[str, ...] = (BEST,)


def setting(problem: str, optimizer: str, step: int) -> str:
    """The name of a row."""
    return f"{problem}, {optimizer}, step {step}"


def ahead(problem: str, step: int, rival: str = BEST) -> str:
    """The name of the row with the mean over functions of the rival's loss less the LSTM's."""
    return f"{problem}, {rival} less LSTM, step {step}"


def tuned_rate(problem: str, optimizer: str, grid: tuple[float, ...]) -> str:
    """The name of the row with the rate that was chosen."""
    return f"{problem}, {optimizer}, tuned rate (of {', '.join(f'{each:g}' for each in grid)})"


def experiment(s: Settings, lab: Lab) -> Outcome:
    """Trains the LSTM, then lets it run beside the tuned optimizers on every problem."""
    return race(s, lab)[1]


def race(s: Settings, lab: Lab) -> tuple[Any, Outcome]:
    """The weights of the LSTM, and what `experiment` gives."""
    import optax

    families = {problem: mb.load_tasks(s.family)(**options) for problem, options in s.problems.items()}
    tasks = next(iter(families.values()))
    tuned = {problem: _tuned(family, s, lab) for problem, family in families.items()}  # first, since it may fail
    rate = optax.cosine_decay_schedule(s.learning_rate, s.updates)
    trained = lab.fit(
        "meta-training", racer("lstm", tasks, s), tasks, optax.adam(rate), steps=s.updates, meta_batch=s.meta_batch,
        every=s.updates // s.checks, validation=s.validation, on_nonfinite="mask",
    )  # fmt: skip
    training = lab.stages[-1]
    measured, panels = {"meta-training, seconds": training.seconds}, []
    for problem, family in families.items():
        length = s.length if family is tasks else s.horizon
        best = tuned[problem]
        measured |= {tuned_rate(problem, NAMES[each], s.rates[each]): rate for each, rate in best.items()}
        found, curves = _race(problem, family, length, trained, best, s, lab)
        measured |= found
        panels.append(Panel(problem, "step", "loss", curves, log="y"))
    rows = training.history
    checks = Curve("validation", [row["step"] for row in rows], [row["valid_loss"] for row in rows])
    panels.append(Panel("meta-training", "update", f"loss at step {s.horizon}", [checks], log="y"))
    return trained, Outcome(measured, panels)


def _tuned(tasks: mb.TaskDistribution, s: Settings, lab: Lab) -> dict[str, float]:
    """The best rate of each hand-made optimizer, no end of its grid."""
    import jax.numpy as jnp

    best = {}
    for optimizer, grid in s.rates.items():
        search = mb.grid_search(
            racer("hand-made", tasks, s, optimizer=optimizer), {rate: {"log_rate": jnp.log(rate)} for rate in grid},
            tasks, key=lab.key(1), episodes=s.tuning, progress=False,
        )  # fmt: skip
        best[optimizer] = search.require_interior().best
    return best


def _race(
    problem: str, tasks: mb.TaskDistribution, length: int, trained: Any, best: dict[str, float], s: Settings, lab: Lab
) -> tuple[dict[str, Any], list[Curve]]:
    """The rows and the curves of a problem."""
    import jax.numpy as jnp
    import numpy as np

    read = [step for step in s.read if step <= length]
    steps = sorted({*range(0, length + 1, max(1, length // POINTS)), *read})
    run = lambda method, x: _losses(method, x, tasks, steps, s, lab)
    measured: dict[str, Any] = {}
    losses = {
        NAMES[optimizer]: run(racer("hand-made", tasks, s, optimizer=optimizer), {"log_rate": jnp.log(rate)})
        for optimizer, rate in best.items()
    }
    losses[LSTM] = run(racer("lstm", tasks, s), trained)
    for step in read:
        at = {name: values[:, steps.index(step)] for name, values in losses.items()}
        measured |= {setting(problem, name, step): _interval(values) for name, values in at.items()}
        learned = at.pop(LSTM)
        at[BEST] = min(at.values(), key=np.mean)
        measured |= {ahead(problem, step, rival): _interval(at[rival] - learned) for rival in s.rivals}
    curves = []
    for name, values in losses.items():
        means = [_interval(column) for column in values.T]
        curves.append(Curve(name, steps, [i.mean for i in means], [i.ci95 for i in means]))
    return measured, curves


def racer(plugin: str, tasks: mb.TaskDistribution, s: Settings, **options: Any) -> mb.Method:
    """The LSTM or a hand-made optimizer, on a problem."""
    options = s.lstm if plugin == "lstm" else options | {"window": s.horizon}
    return mb.load_method(plugin)(tasks.subject, steps=s.horizon, **options)


def _losses(method: mb.Method, x: Any, tasks: Any, steps: list[int], s: Settings, lab: Lab) -> Any:
    """[functions, steps], of the split test: the same functions, starts and minibatches for every method."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    @eqx.filter_jit
    def run(method: mb.Method, x: Any, tasks: mb.TaskDistribution, keys: Any) -> Any:
        def one(key: Any) -> Any:
            k_task, k_run = jax.random.split(key)
            walked = method.curve(x, tasks.sample(k_task, "test"), k_run, steps)
            return jnp.stack([row["loss"] for row in walked])

        return jax.lax.map(one, keys, batch_size=s.at_once)

    return np.asarray(run(method, x, tasks, jax.random.split(lab.key(RUNS), s.functions)), float)


def _interval(values: Any) -> mb.Interval:
    import numpy as np

    return mb.Interval(float(values.mean()), float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5), len(values))
