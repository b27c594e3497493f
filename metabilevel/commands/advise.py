"""`metabilevel advise`."""

from pathlib import Path
from typing import get_args

import click
import jax

from ..advice.advise import advise
from ..advice.reference import Target
from ..errors import ComputationError
from ..storage.files import write_json
from .interrupts import Interrupts
from .output import json_option, show
from .problem_file import CONTENTS, ProblemFile, load_case
from .types import Count, Folder, Positive, Size

PICTURE, DOCUMENT = "advice.png", "advice.json"


@click.command("advise")
@click.argument("file", type=ProblemFile(), metavar="FILE.py[:NAME]")
@click.option("--budget", type=Size(), help="Of temporary memory, as 2GiB: what takes more is left out.")
@click.option("--tolerance", type=Positive(), default=0.01, show_default=True, help="The relative error that is good.")
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    default="path",
    show_default=True,
    help="Compare with the derivative of what the solver computes, or of the solved problem.",
)
@click.option("--seed", type=Count(0, 2**32 - 1), help="Of all randomness. [default: the file's key]")
@click.option("--out", type=Folder(), metavar="DIR", help=f"Where {DOCUMENT} and {PICTURE} go. [default: advice/NAME]")
@json_option
def command(
    file: tuple[Path, str | None],
    budget: int | None,
    tolerance: float,
    target: Target,
    seed: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    with Interrupts():
        case = load_case(*file)
        found = advise(
            case.problem,
            case.x,
            case.task,
            key=case.key if seed is None else jax.random.key(seed),
            solver=case.solver,
            tolerance=tolerance,
            target=target,
            budget_bytes=budget,
            progress=False if as_json else None,
        )
    folder = out or Path("advice", f"{file[0].stem}-{case.title.partition(':')[2]}")
    folder.mkdir(parents=True, exist_ok=True)
    found.draw(folder / PICTURE, case.title)
    document = {"problem": case.title, **found.as_json()}
    write_json(folder / DOCUMENT, document)
    said = (found.reference, *found.remarks, "", found.reason, "", f"    {found.line}", "", f"Written to {folder}")
    show(as_json, document, found.table(case.title), found.left_out(), *said)
    if found.recommended is None:
        raise ComputationError(found.reason)


command.help = "\n\n".join(
    [
        "Which estimator of the hypergradient suits a problem of your own?",
        "Every one that applies is compiled and run on it: its error, its time, its memory. One is recommended, with "
        "the line of Python to paste: the fastest whose error is below --tolerance, whose certificate has nothing "
        "against it, and that fits into --budget.",
        CONTENTS,
    ]
)
