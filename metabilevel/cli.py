"""The command line. Every command lives in a module of its own, which is imported when the command is used."""

import errno
import os
import signal
import sys
import traceback
import warnings
from contextlib import nullcontext
from typing import Any, NoReturn

import click

from . import __version__
from .commands.document import DOCUMENT
from .commands.group import Failure, LazyGroup
from .compilation import VARIABLE, keep_compiled, without_cache
from .errors import ComputationError, InputError
from .registry import without

DEBUG = "METABILEVEL_DEBUG"
COMMANDS = {
    "list": ("listing", "Installed methods, task families and reproductions."),
    "run": ("run", "Train a method on tasks, in a run directory."),
    "evaluate": ("evaluate", "Judge a run on fresh tasks."),
    "verify": ("verify", "Repeat the first steps of a run, and compare."),
    "export": ("export", "Write the optimizer that a run has learned to one file."),
    "compare": ("compare", "Race learned optimizers against tuned hand-made ones."),
    "solve": ("solve", "Minimise the outer loss of a problem in a file of your own."),
    "advise": ("advise", "Compare estimators of the hypergradient on a problem, and recommend one."),
    "check": ("check", "Hold a hypergradient against differences of the solved problem."),
    "diagnose": ("diagnose", "Look inside the adaptation of a run."),
    "plugin": ("plugin", "Methods of your own: new, check."),
    "repro": ("repro", "Reproductions of papers: list, show, run."),
    "bench": ("bench", "Time the library beside others' ways to compute the same."),
    "data": ("data", "Data sets: list, fetch, verify."),
}
EPILOG = f"""
Exit status: 0 done, 1 the computation failed, 2 wrong input, 130 interrupted (143 by SIGTERM).
{DEBUG}=1 shows the traceback behind an error. What is compiled is kept for the next time in the
user's cache folder, or where {VARIABLE} says (off: nowhere).
"""


class Cli(LazyGroup):
    """Gives whatever went wrong one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except InputError as error:
            raise Failure(error, 2) from error
        except ComputationError as error:
            raise Failure(error, 1) from error
        except KeyboardInterrupt as error:
            raise Failure(str(error) or "Interrupted.", 128 + getattr(error, "signum", 2)) from error
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich's word for a reader that has gone
                raise
            raise Failure(f"A file or a plugin called sys.exit({error.code!r}), and should not.", 2) from error
        except OSError as error:
            named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise Failure(f"{named}.", 2 if error.errno == errno.ENAMETOOLONG else 1) from error
        except Exception as error:
            traceback.print_exc()
            raise Failure(f"{type(error).__name__}: {error}", 1) from error


@click.command(
    cls=Cli,
    lazy=COMMANDS,
    epilog=EPILOG,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-"), "max_content_width": 100},
)
@click.option("--no-plugin", multiple=True, metavar="NAME", help="Do without that distribution, or distribution:name.")
@click.version_option(__version__, prog_name="metabilevel")
@click.pass_context
def cli(ctx: click.Context, no_plugin: tuple[str, ...]) -> None:
    """Meta-learning and bilevel optimisation: every method an outer objective over an inner solver."""
    ctx.with_resource(without(no_plugin))


def main() -> NoReturn:
    """The program `metabilevel`."""
    warnings.showwarning = _warn
    keep_compiled()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    status = _status(sys.argv[1:])
    if status > 128 or (status and "--distributed" in sys.argv):
        _end(status)
    sys.exit(status)


def _leave(signum: int, frame: Any) -> None:
    """A signal while there is nothing to save, as during imports, which may swallow an exception."""
    click.echo("Interrupted.", err=True)
    if "--json" in sys.argv and not DOCUMENT.printed:
        DOCUMENT.print(f'{{"error": "Interrupted.", "status": {128 + signum}}}')
    _end(128 + signum)


def _end(status: int) -> NoReturn:
    """Ends the process without Python's own clearing up, which crashes where compiled code was interrupted, and waits
    where other processes should have been told."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(arguments: list[str]) -> int:
    """Runs a command; a failure is one line on standard error and, with --json, a document on standard output where
    there is none yet."""
    try:
        with DOCUMENT.alone() if "--json" in arguments else nullcontext():
            return cli.main(arguments, "metabilevel", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        message = " ".join(error.format_message().split())
        status = error.status if isinstance(error, Failure) else 2
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
    click.echo(message if status > 128 else f"Error: {message}", err=True)
    if "--json" in arguments and not DOCUMENT.printed:
        from .storage.files import dumps

        DOCUMENT.print(dumps({"error": message, "status": status}))
    return status


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    text = " ".join(str(message).split())
    click.echo(f"Warning: {without_cache(text) or text}", err=True)
