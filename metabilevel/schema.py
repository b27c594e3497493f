"""The options of a plugin: its factory's keyword-only parameters are their schema, its docstring is their help."""

import inspect
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from .errors import OptionError, PluginError, did_you_mean

Value: TypeAlias = int | float | bool | str | None

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Option:
    """One option of a factory; `type` is int, float, bool or str, the type of `choices` where there are any."""

    name: str
    type: type
    default: Value
    help: str = ""
    choices: tuple[Value, ...] = ()
    optional: bool = False

    @property
    def flag(self) -> str:
        """The option on a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        words = f"one of {', '.join(map(str, self.choices))}" if self.choices else _WORDS[self.type]
        return f"{words} or none" if self.optional else words

    def convert(self, value: object) -> Any:
        """`value` in the option's own type. A text is parsed, as it comes from a command line.

        **Raises:** `OptionError` that names the option, the value and what is allowed.
        """
        return self.check(self._parse(value) if isinstance(value, str) else value)

    def check(self, value: object) -> Any:
        """As `convert`, and a text counts for a text only. A floating scalar array, as of a population, is a number."""
        match value:
            case None if self.optional:
                return None
            case _ if self.choices:
                if any(value == choice and type(value) is type(choice) for choice in self.choices):
                    return value
            case bool() | str():
                if type(value) is self.type:
                    return value
            case Integral() if self.type is int:
                return int(value)
            case Real() if self.type is float and math.isfinite(value):
                return float(value)
            case _ if self.type is float and _is_scalar_array(value):
                return value
        hint = did_you_mean(value, map(str, self.choices)) if isinstance(value, str) else ""
        raise OptionError(f"Option {self.name!r} is {value!r}, and must be {self.allowed}.{hint}")

    def _parse(self, text: str) -> Value:
        """What `text` stands for; itself where that is nothing, for `check` to refuse."""
        if self.optional and text.lower() == "none":
            return None
        if self.choices:
            return next((choice for choice in self.choices if str(choice) == text), text)
        if self.type is bool:
            return _BOOLEANS.get(text.lower(), text)
        try:
            return self.type(text)
        except ValueError:
            return text


def _is_scalar_array(value: object) -> bool:
    """Whether `value` is one floating number that may be traced, as over a population, and is hence not looked at."""
    return getattr(value, "shape", None) == () and getattr(getattr(value, "dtype", None), "kind", "") == "f"


def options(factory: Callable[..., Any]) -> dict[str, Option]:
    """The options of `factory`: its keyword-only parameters, each annotated and with a default.

    An annotation is int, float, bool, str, a Literal of these, or one of them `| None`.

    **Raises:** `PluginError` that names the parameter which is no option.
    """
    found, helps = {}, _helps(inspect.getdoc(factory) or "")
    for p in _parameters(factory):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise PluginError(f"{p} hides the options; write them out.")
        if p.kind is not p.KEYWORD_ONLY:
            if p.default is not p.empty:
                raise PluginError(f"option {p.name!r} must be keyword-only; put it behind a *.")
            continue
        if p.annotation is p.empty or p.default is p.empty:
            raise PluginError(f"option {p.name!r} needs an annotation and a default.")
        kind, choices, optional = _kind(p)
        option = Option(p.name, kind, p.default, helps.get(p.name, ""), choices, optional)
        try:
            option.check(p.default)
        except OptionError as error:
            raise PluginError(f"the default does not fit: {error}") from error
        found[p.name] = option
    return found


def configure(factory: Callable[..., Any], given: Mapping[str, object]) -> dict[str, Any]:
    """Every option of `factory` with its value: the given one, checked, or the default.

    An integer does for a float; a bool is no integer; a text is parsed; a hyphen in a name is taken as an underscore.

    **Raises:** `OptionError` that names the option and the value, and says what is allowed.
    """
    known = options(factory)
    values = {name: option.check(option.default) for name, option in known.items()}
    for name, value in given.items():
        own = name.strip().replace("-", "_")
        if own not in known:
            raise OptionError(
                f"There is no option {name!r}.{did_you_mean(own, known)} Options: {', '.join(known) or 'none'}."
            )
        values[own] = known[own].convert(value)
    return values


def positional(factory: Callable[..., Any]) -> int:
    """How many parameters of `factory` are not options."""
    return sum(p.kind is not p.KEYWORD_ONLY for p in _parameters(factory))


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory, eval_str=True).parameters.values())
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise PluginError(f"its signature cannot be read: {error}") from error


def _kind(p: inspect.Parameter) -> tuple[type, tuple[Value, ...], bool]:
    """The type, the choices, and whether None is allowed."""
    union = get_origin(p.annotation) in (Union, types.UnionType)
    members = get_args(p.annotation) if union else (p.annotation,)
    optional, rest = type(None) in members, [m for m in members if m is not type(None)]
    choices = get_args(rest[0]) if len(rest) == 1 and get_origin(rest[0]) is Literal else ()
    kinds = {type(choice) for choice in choices} or set(rest)
    if len(kinds) != 1 or not kinds <= _WORDS.keys():
        shown = inspect.formatannotation(p.annotation)
        raise PluginError(
            f"option {p.name!r} is annotated {shown}, and must be int, float, bool, str, Literal or T | None."
        )
    return kinds.pop(), choices, optional


def _helps(doc: str) -> dict[str, str]:
    """Parameter -> text, from lines "- `name`: text" in the section **Arguments:** of a docstring."""
    section = re.search(r"\*\*Arguments:\*\*(.*?)(?=\n\s*\*\*\w+:\*\*|\Z)", doc, re.DOTALL)
    items = re.split(r"^\s*- (?=`)", section[1], flags=re.MULTILINE)[1:] if section else []
    helps = {}
    for item in items:
        names, _, text = re.split(r"\n\s*\n", item)[0].partition(":")
        helps |= dict.fromkeys(re.findall(r"`(\w+)`", names), " ".join(text.split()))
    return helps
