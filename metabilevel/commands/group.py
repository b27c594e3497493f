"""Groups of commands, and how a command fails."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from ..errors import did_you_mean


class Failure(click.ClickException):
    """The end of a command, with the line that says why and the exit status."""

    def __init__(self, message: object, exit_code: int):
        super().__init__(str(message))
        self.exit_code = exit_code


class Group(click.Group):
    """A group that offers the nearest command for one that it does not have."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command, names = super().get_command(ctx, cmd_name), self.list_commands(ctx)
        if command is None:
            hint = did_you_mean(cmd_name, names)
            raise click.UsageError(f"There is no command {cmd_name!r}.{hint} Commands: {', '.join(names)}.", ctx)
        return command


class LazyGroup(Group):
    """A group whose commands are imported when they are used.

    `lazy` gives for each name the module in this package, which calls the command by the same name with `_command`
    behind it, and its line in the help.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module = import_module(f".{self.lazy[cmd_name][0]}", __package__)
            self.add_command(module.command, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in self.lazy.items()])
