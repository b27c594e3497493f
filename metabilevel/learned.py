"""Learned optimizers outside of their training: as optax transformations, and as files."""

import dataclasses
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .errors import InputError, PluginError
from .method import Method
from .problem import Outer, canonical
from .registry import RULES, entries, find, load
from .rules import AbstractRule, RuleDescent, transformation
from .storage.config import Plugin, decode
from .storage.envelope import seal, unseal
from .storage.files import dumps, loads
from .storage.leaves import encode
from .storage.runs import PathLike

FORMAT = ("optimizer", 1)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of its body: `weights` has the kind of an array, float32[3, 4] say, in the place of each."""

    rule: Plugin
    weights: Any
    sha256: str


class LearnedOptimizer(eqx.Module):
    """An update rule with its weights."""

    rule: AbstractRule
    weights: Outer

    @classmethod
    def of(cls, method: Method, x: Outer) -> "LearnedOptimizer":
        """What the training of `method` learned, x.

        **Raises:** `InputError` for a method whose inner solver follows no rule.
        """
        if not isinstance(method.solver, RuleDescent):
            kind = type(method.solver).__name__
            raise InputError(f"A learned optimizer is wanted, whose inner solver is a RuleDescent and not a {kind}.")
        return cls(method.solver.rule, x)

    def save(self, path: PathLike) -> None:
        """Writes one file, whole or not at all: the rule by its name as a plugin, its options, and the weights.

        **Raises:** `InputError` for a rule that is no plugin, options or weights of other types than an `AbstractRule`
        has; `ComputationError` where the file cannot be written.
        """
        rule = plugin_of(self.rule)
        weights = canonical(self.weights, "weights")
        form = jax.tree.map(lambda a: f"{a.dtype}{list(a.shape)}", weights)
        if jax.tree.structure(loads(dumps(form))) != jax.tree.structure(form):
            raise InputError("The weights of a rule must be nested dictionaries, by texts, and lists, to be saved.")
        body = b"".join(map(encode, jax.tree.leaves(weights)))
        seal(Path(path), *FORMAT, {"rule": dataclasses.asdict(rule), "weights": form}, body)


def as_optax(learned: LearnedOptimizer) -> optax.GradientTransformation:
    """`learned` for any training loop: `update(gradients, state, params)`, which needs the parameters.

    It computes in the widest type among weights and parameters; updates have the types of the parameters.

    **Raises:** `InputError`, at `init`, that names the first leaf of weights which do not fit the parameters; at
    `update` where the parameters are missing.
    """
    return transformation(learned.rule, learned.weights)


def load_optimizer(path: PathLike) -> LearnedOptimizer:
    """What `LearnedOptimizer.save` wrote, bit for bit. Only an installed rule is imported, whatever the file names.

    **Raises:** `InputError` for a file that is truncated, altered, of another format or no such file at all, a rule
    that is not installed or lacks an option, a body that is not what the header says, and weights of double precision
    where JAX has none.
    """
    path = Path(path)
    try:
        fields, body = unseal(path, *FORMAT)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a learned optimizer: {error}.") from error
    header = decode(Header, fields, f"{path}: header")
    rule, likes = _rule(path, header.rule), jax.tree.map(lambda kind: _like(path, kind), header.weights)
    size = sum(like.size * like.dtype.itemsize for like in jax.tree.leaves(likes))
    if size != len(body):
        raise InputError(f"{path}: header.weights are of {size} bytes, and the body is of {len(body)}.")
    stream = BytesIO(body)
    return LearnedOptimizer(rule, jax.tree.map(lambda like: _weight(path, like, stream), likes))


def plugin_of(rule: AbstractRule) -> Plugin:
    """The plugin that `rule` is, with its options.

    **Raises:** `InputError` for one that is none, and for an option of another type than an `AbstractRule` has.
    """
    kind = type(rule)
    value = f"{kind.__module__}:{kind.__qualname__}"
    entry = next((entry for entry in entries(RULES) if entry.value == value), None)
    if entry is None:
        raise InputError(f"The rule {value} is no plugin: name it in the entry points {RULES!r} of its distribution.")
    options = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    for name, option in options.items():
        if not isinstance(option, int | float | str | None):
            raise InputError(
                f"The option {name} = {option!r} of the rule {entry.name!r} is no number, text or boolean."
            )
    return Plugin(entry.name, entry.distribution, entry.version, options)


def rule_of(plugin: Plugin) -> AbstractRule:
    """The installed rule that `plugin` names, by its distribution and its name.

    **Raises:** `PluginError` where there is none, and for options that it does not have or refuses.
    """
    name = f"{plugin.distribution}:{plugin.name}"
    kind, entry = load(RULES, name), find(RULES, name)
    if not (isinstance(kind, type) and issubclass(kind, AbstractRule)):
        raise PluginError(f"The rule {entry.name!r} of {entry} is no AbstractRule.")
    known = [field.name for field in dataclasses.fields(kind)]
    for option in plugin.options:
        if option not in known:
            has = ", ".join(known) or "none"
            raise PluginError(f"The rule {entry.name!r} of {entry} has no option {option!r}. Options: {has}.")
    try:
        return kind(**plugin.options)
    except InputError as error:
        raise PluginError(f"The rule {entry.name!r} of {entry}: {error}") from error


def _rule(path: Path, plugin: Plugin) -> AbstractRule:
    try:
        return rule_of(plugin)
    except PluginError as error:
        raise PluginError(f"{path} is of {plugin.distribution} {plugin.version}: {error}") from error


def _like(path: Path, kind: object) -> jax.ShapeDtypeStruct:
    """Shape and type of the `kind` float32[3, 4], say."""
    found = re.fullmatch(r"(b?float\d\w*)\[((?:\d+, )*\d+)?\]", str(kind))
    dtype = getattr(jnp, found[1], None) if found else None
    if not found or dtype is None:
        raise InputError(
            f"{path}: header.weights hold {kind!r}, and must hold kinds of arrays such as 'float32[3, 4]'."
        )
    return jax.ShapeDtypeStruct(tuple(map(int, re.findall(r"\d+", found[2] or ""))), dtype)


def _weight(path: Path, like: jax.ShapeDtypeStruct, stream: BytesIO) -> jax.Array:
    """The next array of the body."""
    bits = np.frombuffer(stream.read(like.size * like.dtype.itemsize), like.dtype).reshape(like.shape)
    array = jnp.asarray(bits)
    if array.dtype != bits.dtype:
        raise InputError(f"{path} holds weights of {like.dtype}, which JAX has only by JAX_ENABLE_X64=1.")
    return array
