"""Groups of commands, and how a command fails."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from ..errors import InputError, did_you_mean


class Failure(click.ClickException):
    """The end of a command, with the line that says why and the exit status."""

    def __init__(self, message: object, status: int):
        super().__init__(str(message))
        self.status = status


class Group(click.Group):
    """A group that offers the nearest command for one that it does not have."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command, names = super().get_command(ctx, cmd_name), self.list_commands(ctx)
        if command is None:
            hint = did_you_mean(cmd_name, names)
            raise click.UsageError(f"There is no command {cmd_name!r}.{hint} Commands: {', '.join(names)}.", ctx)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except (click.UsageError, InputError):
            if ctx.resilient_parsing:  # for the completion in a shell, which has nobody to tell
                return None, None, args[1:]
            raise


class LazyGroup(Group):
    """A group whose commands are imported when they are used.

    `lazy` gives for each name its module in this package, in which it is called `command`, and its line in the help.
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
