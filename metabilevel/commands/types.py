"""Types of options, whose errors say what is allowed."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import MOST
from ..registry import entries, find
from ..schema import Option

UNITS = {
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
    "B": 1,
    "": 1,
}


class Count(click.ParamType):
    """An integer from `least` to `most`."""

    name = "integer"

    def __init__(self, least: int, most: int = MOST):
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = None
        if number is None or not self.least <= number <= self.most:
            usual = self.most == MOST and (number is None or number < self.least)
            limits = f"of {self.least} or more" if usual else f"from {self.least} to {self.most}"
            self.fail(f"{value!r} is not an integer {limits}.", param, ctx)
        return number


class Folder(click.Path):
    """A directory that need not exist, or with `or_file` a file as well. An empty text, as of a shell variable that is
    not set, is refused."""

    def __init__(self, *, or_file: bool = False):
        super().__init__(path_type=Path)
        self.or_file = or_file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("'' is no directory: name one, or . for the current one.", param, ctx)
        there = next((each for each in (Path(value), *Path(value).parents) if each.exists()), Path())
        if not there.is_dir() and not (self.or_file and there == Path(value)):
            self.fail(f"{str(there)!r} is a file, and no directory.", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(click.Path):
    """A file that is to be written in a directory that there is."""

    def __init__(self):
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if path.is_dir():
            self.fail(f"{str(value)!r} is a directory: name a file.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"There is no directory {str(path.parent)!r} for {path.name!r}.", param, ctx)
        return super().convert(value, param, ctx)


class Positive(click.ParamType):
    """A finite number above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a number above 0.", param, ctx)
        return number


class Size(click.ParamType):
    """A number of bytes, as 8GiB, 500 MB or 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)", value.strip(), re.ASCII)
        unit = {name.lower(): size for name, size in UNITS.items()}.get(found[2].lower()) if found else None
        if not found or unit is None or not 1 <= (size := float(found[1]) * unit) < 2**63:
            units = ", ".join(filter(None, UNITS))
            self.fail(f"{value!r} is not a size such as 8GiB or 500MB (units: {units}; bytes without one).", param, ctx)
        return int(size)


class Counts(click.ParamType):
    """Integers of 0 or more with commas between them."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() and part.isascii() for part in parts):
            self.fail(f"{value!r} is not a list of integers of 0 or more, such as 0,1,5,10.", param, ctx)
        return [int(part) for part in parts]


class Axes(click.ParamType):
    """The axes of a mesh of devices, as tasks=8 or tasks=4,runs=2."""

    name = "axis=n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        parts = [part.partition("=") for part in value.split(",")]
        axes = {name.strip(): size.strip() for name, _, size in parts}
        if len(axes) < len(parts) or not all(
            name and size.isdecimal() and size.isascii() and 0 < int(size) <= MOST for name, size in axes.items()
        ):
            self.fail(f"{value!r} is no mesh such as tasks=8 or tasks=4,runs=2.", param, ctx)
        return {name: int(size) for name, size in axes.items()}


class Address(click.ParamType):
    """HOST:PORT, as a pair."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = value.rpartition(":")
        if not (host and port.isdecimal() and port.isascii() and 0 < int(port) < 2**16):
            self.fail(f"{value!r} is not of the form HOST:PORT, such as node1:8476.", param, ctx)
        return host.strip("[]"), int(port)


class Assignment(click.ParamType):
    """NAME=VALUE, as a pair of texts."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not (name.strip() and equals):
            self.fail(f"{value!r} is not of the form NAME=VALUE, such as shots=5.", param, ctx)
        return name.strip(), text


class PluginName(click.ParamType):
    """The name of an installed plugin of `group`, as its entry; the plugin is not imported."""

    name = "name"

    def __init__(self, group: str):
        self.group = group

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return find(self.group, value) if isinstance(value, str) else value

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return f"Installed: {', '.join(entry.name for entry in entries(self.group))}."


class PluginValue(click.ParamType):
    """A value of a plugin's option, which is called `flag` here."""

    def __init__(self, option: Option, flag: str):
        self.option = replace(option, name=flag)
        self.name = option.type.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.option.convert(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        words = [*map(str, self.option.choices), *(["true", "false"] if self.option.type is bool else [])]
        if words:
            return f"[{'|'.join([*words, *(['none'] if self.option.optional else [])])}]"
        return {int: "INTEGER", float: "NUMBER", str: "TEXT"}[self.option.type]
