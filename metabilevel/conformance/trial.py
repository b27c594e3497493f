"""One method under trial: its benches, which the checks share."""

from collections.abc import Sequence
from functools import cache, cached_property

import jax
import numpy as np

from ..errors import InputError
from ..tasks import sample_batch
from .bench import Bench, Factory, Found, Point, choose
from .families import CASES, Family, case, enlarged
from .outcome import Nonconformity, NotApplicable
from .trees import flat, unequal

CALLS = 150
LATER = 10
AT_REST = 1e-8  # relative change of the direction and the loss over a call


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
            raise NotApplicable("the estimator raises: see `runs`") from error
        return bench

    @cached_property
    def single(self) -> Bench:
        """As `bench`, in single precision."""
        return Bench(self.bench.factory, self.bench.family, self.bench.size, double=False)

    @cached_property
    def deterministic(self) -> bool:
        """Whether nothing of a first call depends on the key."""
        bench = self.bench

        def same(seed: int) -> bool:
            with bench.precision():
                other = bench(bench.start(seed)._replace(key=jax.random.key(seed + 5000)))
            return unequal(other[::2], bench.first(seed)[::2], "", 1e-10) is None

        return all(map(same, self.seeds))

    @cached_property
    def uncompiled(self) -> Found:
        """A first call of the estimator as it is: on the first task alone where that can be compared with the task in
        a batch, on all elsewhere."""
        bench, seed = self.bench, self.seeds[0]
        with bench.precision():
            return Found(*bench.method.estimator(*(bench.alone(seed) if self.deterministic else bench.start(seed))))

    @cache  # noqa: B019 - lives as long as the test
    def quadratic_bench(self, dimension: int) -> Bench:
        """The method on quadratics of this dimension, a task at a time."""
        family = lambda: case(self.bench.tasks.subject, (1.0,) * dimension)
        try:
            bench = Bench(self.factory, family, 1, double=True)
            bench.first(self.seeds[0])
        except InputError as error:
            raise NotApplicable(f"the method refuses the kit's quadratics: {error}") from error
        return bench

    @cache  # noqa: B019 - likewise
    def quadratic(self, name: str, seed: int) -> tuple[Bench, Point]:
        """The bench of an analytic case, and the arguments of its first call."""
        bench = self.quadratic_bench(len(CASES[name]))
        with bench.precision():
            point = bench.start(seed)
            tasks = sample_batch(case(self.bench.tasks.subject, CASES[name]), jax.random.key(seed), "train", 1)
            tasks = enlarged(tasks) if name == "large" else tasks
            return bench, point._replace(tasks=tasks, carry=bench.method.estimator.init(point.x, tasks, point.key))

    @cache  # noqa: B019 - likewise
    def settled(self, name: str, seed: int) -> tuple[Point, Found]:
        """An analytic case where the estimator, x held, has come to rest, after `LATER` calls at least, or made `CALLS`
        calls: its arguments there, and what it gives."""
        bench, point = self.quadratic(name, seed)
        found = bench(point)
        for number in range(CALLS):
            point = point._replace(carry=found.carry)
            before, found = found, bench(point)
            change = np.abs(flat((found.direction, found.info.loss)) - flat((before.direction, before.info.loss)))
            if number >= LATER and change.max(initial=0.0) <= AT_REST * np.abs(flat(found.direction)).max(initial=0.0):
                break
        return point, found
