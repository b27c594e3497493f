"""`metabilevel run`: a command for every installed method."""

import click

from ..registry import METHODS, entries, find
from .group import Group


class Methods(Group):
    """The installed methods as commands. A method is imported when its command is asked for, and not in the list."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [entry.name for entry in entries(METHODS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        entry = find(METHODS, cmd_name)
        from .method import command_of

        return command_of(entry)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            raise click.UsageError(
                f"{args[0]}: the method comes first, as in: {ctx.command_path} maml {args[0]} ...", ctx
            )
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods"):
            formatter.write_dl([(entry.name, str(entry)) for entry in entries(METHODS)])


@click.command("run", cls=Methods, subcommand_metavar="METHOD --tasks NAME [OPTIONS]")
def command() -> None:
    """Train a method on tasks, in a run directory, and judge it.

    `metabilevel run METHOD --help` shows all options; with `--tasks NAME` before `--help`, those of the tasks too.
    """
