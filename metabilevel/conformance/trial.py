"""One method under trial: its benches, which the checks share."""

from collections.abc import Sequence
from functools import cached_property

from .bench import Bench, Factory, choose
from .families import Family
from .outcome import Nonconformity, NotApplicable


class Trial:
    """A method factory with the arguments of `checks`."""

    def __init__(
        self, factory: Factory, tasks: Family | None, direction_is_the_gradient: bool | None, seeds: Sequence[int]
    ):
        self.factory, self.tasks, self.seeds = factory, tasks, tuple(seeds)
        self.direction_is_the_gradient = direction_is_the_gradient

    @cached_property
    def chosen(self) -> tuple[str, Bench]:
        """The family that the method is looked at on, and the bench in double precision."""
        return choose(self.factory, self.tasks)

    @cached_property
    def bench(self) -> Bench:
        """The bench in double precision, which has run once; a check of something else does not apply to a method
        that cannot be built or run."""
        try:
            bench = self.chosen[1]
        except Nonconformity as error:
            raise NotApplicable("the method cannot be built: see `builds`") from error
        try:
            bench.first(self.seeds[0])
        except Exception as error:
            raise NotApplicable("the estimator raises: see `traces-without-leaks`") from error
        return bench

    @cached_property
    def single(self) -> Bench:
        """As `bench`, in single precision."""
        return Bench(self.bench.factory, self.bench.family, self.bench.size, double=False)
