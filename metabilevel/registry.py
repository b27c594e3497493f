"""Plugins, found by entry points: names are listed without an import, a plugin is imported when it is asked for.

The bundled plugins register in the same way as an outside one:

    [project.entry-points."metabilevel.methods"]
    my-method = "my_package.my_module:my_method"
"""

import inspect
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import InputError, PluginError, did_you_mean
from .schema import configure, options, positional

METHODS, TASKS, RULES, REPRO, DATA, BENCHMARKS = (
    f"metabilevel.{kind}" for kind in ("methods", "tasks", "rules", "repro", "data", "benchmarks")
)
KINDS = {
    METHODS: "method",
    TASKS: "task family",
    RULES: "rule",
    REPRO: "reproduction",
    DATA: "data set",
    BENCHMARKS: "benchmark",
}
OFF = "METABILEVEL_PLUGINS_OFF"
SLOW = 2.0  # seconds of an import that are worth a word


@dataclass(frozen=True, order=True)
class Entry:
    """What the metadata of an installed distribution say about one plugin."""

    name: str
    distribution: str
    version: str
    value: str

    @property
    def module(self) -> str:
        return self.value.partition(":")[0].strip()

    @property
    def qualified(self) -> str:
        """The name that stays unique when another distribution gives a plugin of the same name."""
        return f"{self.distribution}:{self.name}"

    def answers_to(self, name: str) -> bool:
        """Whether `name` is this plugin's, bare or qualified, however hyphens and capitals are written."""
        return _canonical(name) in (self.name, _canonical(self.qualified))

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.value})"


def entries(group: str) -> list[Entry]:
    """The plugins of `group` by name, less those that METABILEVEL_PLUGINS_OFF switches off; nothing is imported."""
    off = {_canonical(name) for name in os.environ.get(OFF, "").split(",")}
    return [e for e in _installed(group) if off.isdisjoint({_canonical(e.distribution), _canonical(e.qualified)})]


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Switches off plugins, each a `distribution` or a `distribution:name`, here and in the programs that are started.

    **Raises:** `PluginError` for what is not installed.
    """
    installed = {_canonical(name) for kind in KINDS for e in _installed(kind) for name in (e.distribution, e.qualified)}
    for name in names:
        if _canonical(name) not in installed:
            hint = did_you_mean(_canonical(name), installed)
            raise PluginError(f"There is no distribution or plugin {name!r} to do without.{hint}")
    before = os.environ.get(OFF)
    os.environ[OFF] = ",".join(filter(None, [before, *names]))
    try:
        yield
    finally:
        os.environ.pop(OFF)
        if before is not None:
            os.environ[OFF] = before


def find(group: str, name: str) -> Entry:
    """The one plugin that is called `name`, or `distribution:name`.

    **Raises:** `PluginError` where there is none, or where more than one distribution has a plugin of that name.
    """
    kind, found = KINDS.get(group, group), entries(group)
    match [e for e in found if e.answers_to(name)]:
        case [entry]:
            return entry
        case []:
            if any(e.answers_to(name) for e in _installed(group)):
                raise PluginError(f"The {kind} {name!r} is switched off by {OFF}={os.environ[OFF]!r}.")
            names = sorted({e.qualified if ":" in name else e.name for e in found})
            hint = did_you_mean(_canonical(name), names)
            raise PluginError(f"There is no {kind} {name!r}.{hint} Installed: {', '.join(names) or 'none'}.")
        case several:
            ways = ", ".join(e.qualified for e in several)
            raise PluginError(f"More than one distribution gives a {kind} {name!r}; say which: {ways}.")


def load(group: str, name: str) -> Any:
    """Imports the one plugin that is called `name` and returns the object that its entry point names.

    **Raises:** `PluginError` where there is no one such plugin, or where its import fails, `sys.exit` included.
    """
    return _import(group, find(group, name))


def load_method(name: str) -> Callable[..., Any]:
    """The factory `(subject, *, options...) -> Method` of an installed method; its options are checked when given."""
    return _factory(METHODS, name, 1, "one positional parameter, what the method is built on")


def load_tasks(name: str) -> Callable[..., Any]:
    """The factory `(*, options...) -> TaskDistribution` of an installed task family; options as in `load_method`."""
    return _factory(TASKS, name, 0, "no positional parameter")


def _factory(group: str, name: str, arity: int, wanted: str) -> Callable[..., Any]:
    entry = find(group, name)
    factory = _import(group, entry)
    try:
        if not callable(factory):
            raise PluginError(f"a factory is wanted, and {factory!r} cannot be called.")
        options(factory)
        if (given := positional(factory)) != arity:
            raise PluginError(f"it must have {wanted}, and it has {given}.")
    except PluginError as error:
        raise PluginError(f"The {KINDS[group]} {entry.name!r} of {entry}: {error}") from error

    annotations = [p.annotation for p in inspect.signature(factory, eval_str=True).parameters.values()]
    wanted_type = annotations[0] if arity and annotations[0] not in (inspect.Parameter.empty, Any) else None

    @wraps(factory)
    def checked(*subject: Any, **given: Any) -> Any:
        if subject and isinstance(wanted_type, type) and not isinstance(subject[0], wanted_type):
            got, hint = type(subject[0]).__name__, " Give tasks.subject." if hasattr(subject[0], "subject") else ""
            raise InputError(f"{entry.name} is built on a {wanted_type.__name__}, and was given a {got}.{hint}")
        return factory(*subject, **configure(factory, given))

    return checked


def _import(group: str, entry: Entry) -> Any:
    if group in (METHODS, TASKS):  # which need it anyway: its seconds are not the plugin's
        import_module(".method", __package__)
    begun = time.perf_counter()
    try:
        found = EntryPoint(entry.name, entry.value, group).load()
        if (seconds := time.perf_counter() - begun) > SLOW:
            text = f"The {KINDS.get(group, group)} {entry.name!r} of {entry} took {seconds:.1f} s to import."
            warnings.warn(text, stacklevel=2)
        return found
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        kind, reason = KINDS.get(group, group), " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"The {kind} {entry.name!r} did not import from {entry}: {reason}") from error


def _installed(group: str) -> list[Entry]:
    """Every plugin of `group`; the first metadata of a distribution on `sys.path` count, stale copies do not."""
    found = sorted(_entry(point) for point in entry_points(group=group))
    return list({_canonical(e.qualified): e for e in found}.values())


def _entry(point: EntryPoint) -> Entry:
    name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "unknown")
    return Entry(_canonical(point.name), name, version, point.value)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
