"""Learned optimizers outside of their training: as optax transformations, and as files."""

import dataclasses
from io import BytesIO
from pathlib import Path

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
    that is not installed or lacks an option, and weights of double precision where JAX has none.
    """
    path = Path(path)
    try:
        fields, body = unseal(path, *FORMAT)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a learned optimizer: {error}.") from error
    rule = _rule(path, decode(Plugin, fields["rule"], f"{path}: rule"))
    stream = BytesIO(body)
    return LearnedOptimizer(rule, jax.tree.map(lambda kind: _weight(path, kind, stream), fields["weights"]))


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


def _weight(path: Path, kind: str, stream: BytesIO) -> jax.Array:
    """The next array of the body, of the `kind` float32[3, 4], say."""
    dtype, _, shape = kind.partition("[")
    sizes = loads(f"[{shape}")
    count = int(np.prod(sizes, dtype=int))
    bits = np.frombuffer(stream.read(count * jnp.dtype(dtype).itemsize), jnp.dtype(dtype)).reshape(sizes)
    array = jnp.asarray(bits)
    if array.dtype != bits.dtype:
        raise InputError(f"{path} holds weights of {dtype}, which JAX has only by JAX_ENABLE_X64=1.")
    return array
