"""What a run directory says of a run: everything that is needed to repeat it."""

import hashlib
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InputError, did_you_mean
from .files import dumps, plain

LIBRARIES = ("metabilevel", "jax", "jaxlib", "equinox", "optax", "numpy")
_WORDS = {
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    NoneType: "null",
}


@dataclass(frozen=True)
class Plugin:
    """A plugin with every one of its options."""

    name: str
    distribution: str
    version: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """Where a run was started, as far as it may change a bit of what comes out; `devices` share its tasks out."""

    versions: dict[str, str]
    git_commit: str | None
    device: str
    x64: bool
    date: str
    devices: int = 1

    @classmethod
    def current(cls) -> "Environment":
        """That of this process, with the commit of the checkout in which it works, `-dirty` where it was changed."""
        import jax

        return cls(
            versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            git_commit=_git_commit(),
            device=jax.devices()[0].device_kind,
            x64=jax.config.read("jax_enable_x64"),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            devices=max(1, jax.sharding.get_mesh().size),
        )


@dataclass(frozen=True)
class Config:
    """A run. `command` is what started it, and `options` are that command's own."""

    command: str
    method: Plugin
    tasks: Plugin
    seed: int
    steps: int
    meta_batch: int | None
    optimizer: str
    learning_rate: float
    options: dict[str, Any]
    environment: Environment


def decode(kind: Any, value: Any, where: str) -> Any:
    """`value`, as read from JSON, in the type `kind`: a dataclass, a dictionary, or one or several plain types.

    **Raises:** `InputError` that names the path of what is unknown, missing or of the wrong type.
    """
    if kind is Any:
        return value
    record = is_dataclass(kind)
    allowed = get_args(kind) if isinstance(kind, UnionType) else (dict if record else get_origin(kind) or kind,)
    if type(value) not in (*allowed, int if float in allowed else None):
        raise InputError(f"{where} is {value!r}, and must be {' or '.join(_WORDS[each] for each in allowed)}.")
    if record:
        return _record(kind, value, where)
    if isinstance(value, dict):
        return {name: decode(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}
    return float(value) if float in allowed else value


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise InputError(f"{where}.{name} is not known.{did_you_mean(name, hints.keys() - value.keys())}")
    for field in fields(kind):
        if field.name not in value and field.default is MISSING:
            raise InputError(f"{where}.{field.name} is missing.")
    return kind(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """path -> (old value, new value) of all that differs."""
    a, b = (dict(_flat(plain(asdict(config)))) for config in (old, new))
    return {path: (a.get(path), b.get(path)) for path in {**a, **b} if a.get(path) != b.get(path)}


def digest(config: Config) -> str:
    """The same for runs that go the same way: neither the environment nor the number of steps counts."""
    fields = {name: item for name, item in asdict(config).items() if name not in ("environment", "steps")}
    return hashlib.sha256(dumps(sorted(_flat(plain(fields)))).encode()).hexdigest()


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, item in value.items():
        yield from _flat(item, f"{path}.{name}" if path else name)


def _git_commit() -> str | None:
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
