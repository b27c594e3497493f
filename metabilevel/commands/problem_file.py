"""A bilevel problem in a Python file of the user's own: what `check`, `advise` and `solve` look at."""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import jax

from ..adjoints import AbstractAdjoint, Unroll, check_parts
from ..errors import InputError, count, did_you_mean
from ..problem import BilevelProblem, Key, Outer, Task, canonical, check_problem
from ..solvers import AbstractInnerSolver

CONTENTS = """FILE.py is a Python file of your own, in which these names are looked for:

\b
problem   a metabilevel.BilevelProblem, under this or any other name
x         the outer variable at which to look (or x0)
solver    the inner solver, e.g. metabilevel.GradientDescent(optax.sgd(0.1), steps=100)
task      what the problem's functions take for it [default: None]
adjoint   how dy/dx is had [default: metabilevel.Unroll()]
key       a jax.random.key, or an integer as its seed [default: 0]

Of several problems, FILE.py:NAME says which; they share the other names. One with its own is a dictionary of them all,
as of the arguments of metabilevel.hypergradient: NAME = dict(problem=..., x=..., solver=...). A whole file:

\b
import jax.numpy as jnp
import metabilevel as mb
import optax
\b
data = jnp.array([1.0, 2.0, 3.0])
problem = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(3),
    inner_loss=lambda x, y, task, key: jnp.sum((y - data) ** 2) + jnp.exp(x) * jnp.sum(y**2),
    outer_loss=lambda x, y, task, key: jnp.sum((y - 1.0) ** 2),
)
x = 0.0
solver = mb.GradientDescent(optax.sgd(0.1), steps=100)"""

_PARTS = ("problem", "x", "task", "key", "solver", "adjoint")
_SOLVER = "solver = metabilevel.GradientDescent(optax.sgd(0.1), steps=100)"


@dataclass(frozen=True)
class Case:
    """A problem with all that a hypergradient of it takes."""

    title: str
    problem: BilevelProblem
    x: Outer
    task: Task
    key: Key
    solver: AbstractInnerSolver
    adjoint: AbstractAdjoint


class ProblemFile(click.ParamType):
    """FILE.py, or FILE.py:NAME, as a pair of a path and a name or None; the file is not run."""

    name = "file.py[:name]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if not (split := split_target(value)):
            self.fail(f"{value!r} is no Python file: FILE.py or FILE.py:NAME is wanted.", param, ctx)
        return split


def split_target(text: str) -> tuple[Path, str | None] | None:
    """The file and the name in `FILE.py[:NAME]`, None for another text."""
    path, colon, name = text.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path), name or None
    return (Path(text), None) if text.endswith(".py") else None


def load_case(path: Path, name: str | None) -> Case:
    """Runs the file and takes the one problem in it, or the one called `name`.

    **Raises:** `InputError` for a file that is not there, or raises, with its line; for none or several problems, which
    it names; for parts that are missing or of another kind.
    """
    if not path.is_file():
        raise InputError(f"There is no file {str(path)!r}.")
    given = vars(_run(path))
    problems = {k: v for k, v in given.items() if not k.startswith("_") and _is_problem(v)}
    problems = {k: v for k, v in problems.items() if next(a for a, b in problems.items() if b is v) == k}
    names = ", ".join(problems)
    if not problems:
        what = "no metabilevel.BilevelProblem(init, inner_loss, outer_loss) at its top level"
        if any(v is BilevelProblem or (isinstance(v, type) and issubclass(v, BilevelProblem)) for v in given.values()):
            what += ": a class is none, an instance is"
        raise InputError(f"{path} holds {what}. --help says what belongs into the file.")
    if name is None:
        if len(problems) > 1:
            raise InputError(
                f"{path} holds {len(problems)} problems, {names}: say which, as in {path}:{names.split(',')[0]}."
            )
        (name,) = problems
    if name not in given:
        raise InputError(f"{path} holds no {name!r}.{did_you_mean(name, problems)} Its problems: {names}.")
    chosen = given[name]
    if not _is_problem(chosen):
        raise InputError(f"{name} in {path} is of type {type(chosen).__name__}, and no problem. Its problems: {names}.")
    parts = {**given, **(chosen if isinstance(chosen, Mapping) else {"problem": chosen})}
    if isinstance(chosen, Mapping) and (unknown := set(chosen) - {*_PARTS, "x0"}):
        wrong = sorted(map(str, unknown))[0]
        raise InputError(
            f"{name} in {path} has an entry {wrong!r}.{did_you_mean(wrong, _PARTS)} Known: {', '.join(_PARTS)}."
        )
    return _case(f"{path.name}:{name}", path, parts)


def _case(title: str, path: Path, parts: Mapping[str, Any]) -> Case:
    x = parts.get("x", parts.get("x0"))
    if x is None:
        raise InputError(f"{path} says no x, the outer variable at which to look: x = jnp.zeros(3), for one.")
    if "solver" not in parts:
        raise InputError(f"{path} says no solver, by which y is found: {_SOLVER}, for one.")
    key = parts.get("key", 0)
    problem, task, solver = parts["problem"], parts.get("task"), parts["solver"]
    adjoint = parts.get("adjoint", Unroll())
    try:
        check_parts(problem, solver, adjoint)
        if isinstance(key, int):
            key = jax.random.key(count("key", key, 0, 2**32 - 1))
        if not isinstance(key, jax.Array):
            raise InputError(f"key is of type {type(key).__name__}: jax.random.key(0), or an integer, is wanted.")
        x = canonical(jax.tree.map(lambda a: float(a) if type(a) is int else a, x), "x")  # x = 3 means 3.0
        check_problem(problem, x, task, key)
    except (Exception, SystemExit) as error:
        raise InputError(f"{title}: {_place(error, path)}{_said(error)}") from error
    return Case(title, problem, x, task, key, solver, adjoint)


def _is_problem(value: Any) -> bool:
    return isinstance(value, BilevelProblem) or (
        isinstance(value, Mapping) and isinstance(value.get("problem"), BilevelProblem)
    )


def _run(path: Path) -> ModuleType:
    name = f"metabilevel_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as Python itself does for a script
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"{path} does not run: {_place(error, path)}{_said(error)}") from error
    finally:
        del sys.path[0]
    return module


def _place(error: BaseException, path: Path) -> str:
    """The last line of the user's file that the error went through."""
    here = lambda name: name is not None and Path(name).resolve() == path.resolve()
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if here(f.filename)]
    if isinstance(error, SyntaxError) and here(error.filename):
        lines = [error.lineno]
    return f"line {lines[-1]}: " if lines else ""


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
