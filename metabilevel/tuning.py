"""Competitors at their best: one number of theirs, a learning rate say, tuned by a grid on the validation split."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .errors import InputError
from .evaluation import Interval, evaluate
from .method import Method
from .problem import Key, Outer
from .tasks import TaskDistribution

START = (0.001, 10.0)  # the ends of the grid .001, .002, .005, .01, ..., 10
EXTENSIONS = 12  # numbers by which it may grow: four powers of ten


class Search(NamedTuple):
    """What a grid search found: the mean loss at the last step, by number in increasing order."""

    scores: dict[float, Interval]

    @property
    def best(self) -> float:
        """The number of the least mean; of a candidate that diverged it is not finite, and counts as the worst."""
        return min(self.scores, key=lambda number: math.inf if self.diverged(number) else self.scores[number].mean)

    @property
    def interior(self) -> bool:
        """Whether smaller and larger numbers were tried than the best one."""
        return min(self.scores) < self.best < max(self.scores)

    def diverged(self, number: float) -> bool:
        """Whether the loss is not finite on some episode."""
        return not math.isfinite(self.scores[number].mean)

    def require_interior(self) -> "Search":
        """Itself.

        **Raises:** `InputError` where the best number lies at the border of the grid, beyond which better ones may be.
        """
        if not self.interior:
            low, high = min(self.scores), max(self.scores)
            way = "smaller" if self.best == low else "larger"
            said = "all of it diverged" if self.diverged(self.best) else f"loss {self.scores[self.best]}"
            raise InputError(
                f"The best number of the grid from {low:g} to {high:g} is {self.best:g}, at its border ({said}): "
                f"try {way} ones too."
            )
        return self

    def as_rows(self) -> list[dict[str, Any]]:
        """The grid as rows for JSON."""
        return [{"number": n, **i._asdict(), "diverged": self.diverged(n)} for n, i in self.scores.items()]


def grid_search(
    method: Method,
    candidates: Mapping[float, Outer],
    tasks: TaskDistribution,
    *,
    key: Key,
    split: str = "valid",
    episodes: int | None = None,
    steps: int | None = None,
    progress: bool | None = None,
) -> Search:
    """Judges x = candidates[number] for every number, all on the same episodes and in one compilation.

    **Arguments:** `steps` are inner steps, as many as the method takes if None; the others as of `evaluate`.

    **Returns:** the loss at the last step by number, of which `best` has the least; `require_interior()` makes sure
    that it is not one of the ends of the grid.

    **Raises:** `InputError` for no candidates, and as `evaluate`.
    """
    if not candidates:
        raise InputError("candidates = {}: one x for each number of the grid is wanted.")
    options: dict[str, Any] = {"key": key, "split": split, "episodes": episodes, "progress": progress}
    at = lambda x: evaluate(method, x, tasks, steps=None if steps is None else [steps], **options)[steps]["loss"]
    return Search({number: at(candidates[number]) for number in sorted(candidates)})


def tune(method: Method, candidate: Callable[[float], Outer], tasks: TaskDistribution, **options: Any) -> Search:
    """`grid_search` of x = candidate(number) over the numbers 1, 2 and 5 of the powers of ten in `START`.

    Where the best is an end of the grid, this grows beyond that end until it is `interior`, or by `EXTENSIONS` numbers:
    then it is for the caller to say (`require_interior`). `options` are those of `grid_search`.
    """

    def judged(exponents: Iterable[int]) -> dict[float, Interval]:
        numbers = [float(f"{(1, 2, 5)[k % 3]}e{k // 3}") for k in exponents]
        return grid_search(method, {number: candidate(number) for number in numbers}, tasks, **options).scores

    low, high = (round(3 * math.log10(number)) for number in START)
    search = Search(judged(range(low, high + 1)))
    for _ in range(EXTENSIONS):
        if search.interior:
            break
        if search.best == min(search.scores):
            low -= 1
            search = Search({**judged([low]), **search.scores})
        else:
            high += 1
            search = Search({**search.scores, **judged([high])})
    return search
