"""What a diagnostic found, and when it does not apply."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..batching import map_tasks
from ..errors import InputError, count
from ..figures import Panel, draw
from ..learner import Learner
from ..method import Method
from ..problem import Key
from ..solvers import AbstractIterativeSolver
from ..tasks import TaskDistribution

if TYPE_CHECKING:
    from rich.table import Table


class NotApplicable(InputError):
    """A diagnostic has no meaning for this method or these tasks; the message says for which it has."""


@dataclass(frozen=True)
class Diagnosis:
    """`rows` of plain numbers, all with the same keys, which `caption` explains; `panels` show them and more."""

    name: str
    caption: str
    rows: tuple[Mapping[str, Any], ...]
    panels: tuple[Panel, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return asdict(self)

    def draw(self, path: Path, title: str) -> None:
        """Draws the panels into the PNG file `path`."""
        draw(path, f"{title}: {self.name}", self.panels)

    def table(self, title: str) -> "Table":
        """The rows, to be printed by rich."""
        from rich.table import Table

        table = Table(title=f"{title}: {self.name}", caption=self.caption)
        for heading, first in self.rows[0].items():
            table.add_column(heading.replace("_", " "), justify="left" if isinstance(first, str) else "right")
        for row in self.rows:
            table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
        return table


def over_tasks(
    one: Callable[..., Any], method: Method, x: PyTree, tasks: TaskDistribution, key: Key, episodes: int, split: str
) -> Any:
    """`one(method, x, task, key)` of each of `episodes` tasks, stacked; `evaluate` draws the same ones by this key."""
    count("episodes", episodes, 1)
    return jax.device_get(_over_tasks(one, method, x, tasks, jax.random.split(key, episodes), split))


@eqx.filter_jit
def _over_tasks(
    one: Callable[..., Any], method: Method, x: PyTree, tasks: TaskDistribution, keys: Array, split: Any
) -> Any:
    def each(given: tuple[Method, PyTree, TaskDistribution], key: Key) -> Any:
        method, x, tasks = given
        k_task, k_adapt = jax.random.split(key)
        return one(method, x, tasks.sample(k_task, split), k_adapt)

    return map_tasks(each, (method, x, tasks), keys)


def iterative(method: Method, what: str) -> AbstractIterativeSolver:
    """The method's inner solver.

    **Raises:** `NotApplicable` where it takes no steps.
    """
    if not isinstance(method.solver, AbstractIterativeSolver):
        solver = type(method.solver).__name__
        raise NotApplicable(f"{what}: the inner solver {solver} takes no steps; it is for methods that adapt by steps.")
    return method.solver


def learner_of(tasks: TaskDistribution, what: str) -> Learner:
    """The learner that the tasks are for.

    **Raises:** `NotApplicable` where they are for something else.
    """
    if not isinstance(tasks.subject, Learner):
        subject = type(tasks.subject).__name__
        raise NotApplicable(f"{what}: these tasks are for a {subject}; it is for tasks of a network (a Learner).")
    return tasks.subject


def increasing(steps: Sequence[int]) -> list[int]:
    """Numbers of inner steps, 1 or more, in order.

    **Raises:** `InputError` for others, or for none.
    """
    wanted = sorted({count("steps", each, 1) for each in steps})
    if not wanted:
        raise InputError("steps = []: numbers of inner steps are wanted.")
    return wanted


def require_outer(x: PyTree, what: str) -> None:
    """**Raises:** `NotApplicable` where there is no outer variable to differentiate in."""
    if not jax.tree.leaves(x):
        raise NotApplicable(f"{what}: this method trains nothing, and so has no outer gradient.")
