"""A method on one family of tasks: what the checks look at, computed once."""

import gc
import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..errors import InputError
from ..info import Info
from ..method import Method
from ..problem import BilevelProblem, Key, Outer, Task, canonical, check_problem
from ..tasks import TaskDistribution, sample_batch
from .families import FAMILIES, Family
from .outcome import Nonconformity, NotApplicable
from .trees import parts

Factory = Callable[..., Method]


class Point(NamedTuple):
    """The arguments of an estimator."""

    x: Outer
    tasks: Task
    carry: PyTree
    key: Key


class Found(NamedTuple):
    """What an estimator gives."""

    direction: Outer
    carry: PyTree
    info: Info


class Program(NamedTuple):
    """What a trace of the estimator gave: its operations in words, and the arrays that they hold."""

    text: str
    constants: list[np.ndarray]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program) or len(self.constants) != len(other.constants) or self.text != other.text:
            return False
        return all(map(np.array_equal, self.constants, other.constants))


class Bench:
    """`factory`'s method on `family` with batches of `size` tasks, in single or double precision.

    `traces` counts how often the estimator was traced; `inputs` are references to the tracers of the last time.
    """

    def __init__(self, factory: Factory, family: Family, size: int, double: bool):
        self.factory, self.family, self.size, self.double = factory, family, size, double
        self.traces, self.inputs = 0, []
        self._started: dict[int, Point] = {}
        self._found: dict[int, Found] = {}
        with self.precision():
            self.tasks: TaskDistribution = family()
            self.method = factory(self.tasks.subject)
            if not isinstance(self.method, Method):
                raise TypeError(f"the factory gives {type(self.method).__name__}: a Method is wanted.")
            self._init = eqx.filter_jit(self.method.init)
            self._begin = eqx.filter_jit(self.method.estimator.init)
            self._estimate = jax.jit(self._counted)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The precision of this bench; what a method warns of is not what is looked at."""
        with jax.enable_x64(self.double), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    def _counted(self, point: Point) -> Found:
        self.traces += 1
        self.inputs = [weakref.ref(tracer) for tracer in jax.tree.leaves(point)]
        return Found(*self.method.estimator(*point))

    def raw(self, seed: int) -> Outer:
        """x as `Method.init` gives it."""
        with self.precision():
            return self._init(jax.random.key(seed))

    def batch(self, seed: int) -> Task:
        """Tasks of the training split."""
        with self.precision():
            return sample_batch(self.tasks, jax.random.key(seed + 1000), "train", self.size)

    def start(self, seed: int) -> Point:
        """The arguments of the first call."""
        if seed not in self._started:
            with self.precision():
                k_carry, k_call = jax.random.split(jax.random.key(seed + 2000))
                x, tasks = canonical(self.raw(seed), "x"), self.batch(seed)
                self._started[seed] = Point(x, tasks, self._begin(x, tasks, k_carry), k_call)
        return self._started[seed]

    def alone(self, seed: int) -> Point:
        """The same with the first task alone."""
        point = self.start(seed)
        with self.precision():
            tasks = jax.tree.map(lambda a: a[:1], point.tasks)
            return point._replace(tasks=tasks, carry=self.method.estimator.init(point.x, tasks, point.key))

    def first(self, seed: int) -> Found:
        """What the first call gives."""
        if seed not in self._found:
            self._found[seed] = self(self.start(seed))
        return self._found[seed]

    def after(self, calls: int, seed: int) -> Point:
        """The arguments of the call after so many calls with the same x, tasks and key."""
        point, found = self.start(seed), self.first(seed)
        for _ in range(calls - 1):
            found = self(point._replace(carry=found.carry))
        return point._replace(carry=found.carry)

    def __call__(self, point: Point) -> Found:
        """The compiled estimator."""
        with self.precision():
            return jax.block_until_ready(self._estimate(point))

    @cached_property
    def value_at_solution(self) -> Any:
        """x, task, key -> F(x, y(x)) where y(x) is the inner solution, found by Newton's method from y0."""
        problem = [*parts(self.method.estimator, BilevelProblem), self.method.problem][0]

        def value(x: Outer, task: Task, key: Key) -> Array:
            z, y0, k = problem.begin(x, task, key)
            y, unravel = ravel_pytree(y0)
            inner = lambda y: problem.inner_loss(z, unravel(y), task, k)
            newton = lambda _, y: y - jnp.linalg.lstsq(jax.hessian(inner)(y), jax.grad(inner)(y))[0]
            return problem.objective(z, unravel(jax.lax.fori_loop(0, 4, newton, y)), task, k)[0]

        return jax.jit(value)

    def outliving(self) -> list[str]:
        """Of what type are the tracers of the last trace that something still refers to."""
        gc.collect()
        return [tracer.aval.str_short() for tracer in (reference() for reference in self.inputs) if tracer is not None]

    def on(self, tasks: Task, point: Point) -> Found:
        """The first call with other tasks than those of `point`, from a carry of their own."""
        with self.precision():
            return self(point._replace(tasks=tasks, carry=self._begin(point.x, tasks, jax.random.key(2000))))

    @cached_property
    def program(self) -> Program:
        """What is compiled."""
        return self.program_of(self._estimate)

    @cached_property
    def rebuilt(self) -> Method:
        """The method once more, from nothing."""
        with self.precision():
            return self.factory(self.family().subject)

    def compiled(self, method: Method) -> Any:
        """The estimator of `method`, to be traced anew."""
        return jax.jit(lambda point: Found(*method.estimator(*point)))

    def program_of(self, estimate: Any) -> Program:
        """What is compiled of `estimate`."""
        with self.precision():
            traced = estimate.trace(next(iter(self._started.values()))).jaxpr
        words = re.sub(r"0x[0-9a-f]+", "", str(traced))  # where an object lies says nothing
        return Program(words, [np.asarray(a) for a in traced.consts])


def choose(factory: Factory, tasks: Family | None) -> tuple[str, Bench]:
    """The first family that the factory takes, in double precision: with three tasks at once, or one.

    **Raises:** `NotApplicable` where it takes none; `Nonconformity` where it fails on one that it takes.
    """
    families = {"the tasks given": tasks} if tasks is not None else fitting(factory)
    told = tasks is not None or _annotation(factory) is not None
    reasons = []
    for name, family in families.items():
        for size in (3, 1):
            try:
                bench = Bench(factory, family, size, double=True)
                _meets(bench)
            except InputError as error:
                reasons.append(f"{name}, {size} at once: {error}")
            except Exception as error:
                if told:
                    raise Nonconformity(f"on {name}: {type(error).__name__}: {error}") from error
                reasons.append(f"{name}, {size} at once: {type(error).__name__}: {error}")
            else:
                return name, bench
    raise NotApplicable(
        "the method takes none of the kit's families; give it tasks of your own: checks(factory, tasks=my_tasks). "
        + "; ".join(reasons)
    )


def _meets(bench: Bench) -> None:
    """Raises an `InputError` where the method refuses these tasks."""
    with bench.precision():
        x, tasks, _, key = bench.start(0)
        first = jax.tree.map(lambda a: a[0], tasks)
        check_problem(bench.method.problem, x, first, key)
        jax.eval_shape(bench.method.test, x, first, key)
        bench.method.estimator.check(x, bench.tasks, key)


def fitting(factory: Factory) -> dict[str, Family]:
    """The kit's families whose subject is of the kind that the factory's first parameter is annotated with."""
    wanted = _annotation(factory)
    found = {name: family for name, (kind, family) in FAMILIES.items() if wanted is None or issubclass(kind, wanted)}
    if not found:
        raise NotApplicable(
            f"the method is built on {wanted}, of which the kit has no tasks; give some: checks(factory, tasks=...)"
        )
    return found


def _annotation(factory: Factory) -> Any:
    """The type of the factory's first parameter; None where it does not say."""
    signature = inspect.signature(factory, eval_str=True)
    first = next(iter(signature.parameters.values()), None)
    said = None if first is None or first.annotation in (first.empty, Any) else first.annotation
    try:
        issubclass(Method, said)  # pyright: ignore[reportArgumentType]
    except TypeError:  # None, or a type that only a type checker understands
        return None
    return said
