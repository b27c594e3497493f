"""A progress bar with rate and time left, on standard error, silent where that is no terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.3g}/s" if task.speed else "compiling")


def bar(show: bool | None) -> Progress:
    """A rich progress bar; `show` None means where standard error is a terminal."""
    visible = sys.stderr.isatty() if show is None else show
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True)


def track(
    stages: Iterable[tuple[Any, dict[str, float | int] | None]], steps: int, *, show: bool | None
) -> Iterator[Any]:
    """Passes on the stages of `train`; the bar shows the step and the last reported loss."""
    with bar(show) as progress:
        task = progress.add_task("training", total=steps)
        for state, row in stages:
            progress.update(task, completed=int(state.step))
            if row:
                progress.update(task, description=f"loss {row['loss']:.4g}")
            yield state, row
