"""A workload measured: same mathematics first, then times in turns, and one document of results."""

import datetime
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from ..errors import ComputationError
from ..progress import bar
from .peers import Absent, Peer, offered, write_file
from .timing import Times, alternate, machine, square_product
from .workload import Candidate, Case, Race, Study

PRODUCT = "matrix product"  # among the candidates, the machine's peak
NOT_INSTALLED = "not installed (metabilevel bench --install-peers)"


def measure(
    workload: Race | Study,
    *,
    rounds: int | None = None,
    quick: bool = False,
    python: Path | None = None,
    peers: bool = True,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The document of a workload, with the date and the machine.

    **Arguments:** `rounds` of the turns, the workload's own number if None; `quick` for small sizes; `python` is the
    one that `peers` run in, where they take part; `progress` shows a bar, where standard error is a terminal if None.

    **Raises:** `ComputationError` where the reference does not compute what it should.
    """
    rounds = rounds or (2 if quick else workload.rounds)
    document = {
        "workload": workload.name,
        "about": workload.about,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "quick": quick,
        "rounds": rounds,
    }
    if isinstance(workload, Study):
        return {**document, "kind": "study", "rows": list(workload.measure(rounds, quick))}
    with ExitStack() as stack:
        return {**document, "kind": "race", **_race(workload, rounds, quick, python, peers, progress, stack)}


def _race(
    race: Race, rounds: int, quick: bool, python: Path | None, peers: bool, progress: bool | None, stack: ExitStack
) -> dict[str, Any]:
    case = race.build(quick)
    processes, missing = _started(race, case, python, stack) if peers and race.peers else ({}, {})
    truth = _truth(case)
    differences = {}
    for name, each in case.candidates.items():
        differences[name] = _difference(case, name, each.answer or each.call, truth if each.compared else None)
    case.check(case.candidates)
    for name, process in list(processes.items()):
        try:
            differences[name] = _difference(case, name, partial(process.answer, case.x), truth)
        except Absent as why:
            missing[name] = str(why)
            del processes[name]
    shown = stack.enter_context(bar(progress))
    while True:
        try:
            times, peak = _timed(race.name, case, processes, rounds, quick, shown)
            break
        except Absent as why:  # in the midst of it: once more without that one
            missing[why.peer] = str(why)
            del processes[why.peer]
    rows = [_row(case, name, each, times, peak, differences[name]) for name, each in case.candidates.items()]
    for name, process in processes.items():
        row = _row(case, name, Candidate(process), times, peak, differences[name])
        rows.append({**row, "peer": True, "resident": process.resident, "versions": process.versions})
    rows += [{"candidate": name, "peer": True, "missing": why} for name, why in missing.items()]
    return {
        "reference": case.reference,
        "operations": case.operations,
        "peak": peak,
        "goals": _judged(race, rows),
        "rows": rows,
    }


def _timed(
    race: str, case: Case, processes: Mapping[str, Peer], rounds: int, quick: bool, shown: Progress
) -> tuple[dict[str, Times], float]:
    """The times of all candidates, and the machine's peak in operations a second."""
    product, product_work = square_product(256 if quick else 1536)
    calls = {name: each.call for name, each in case.candidates.items()} | {**processes, PRODUCT: product}
    busy = lambda: time.process_time() + sum(process.spent for process in processes.values())
    task = shown.add_task(race, total=len(calls) * (rounds + 1))
    done = lambda name: shown.update(task, advance=1, description=f"{race}: {name}")
    times = alternate(calls, rounds, seconds=0.02 if quick else 0.5, processor=busy, done=done)
    for name, process in processes.items():
        times[name].first = process.first
    return times, product_work / times[PRODUCT].median


def _started(race: Race, case: Case, python: Path | None, stack: ExitStack) -> tuple[dict[str, Peer], dict[str, str]]:
    """The processes of the peers that take part, and why others do not."""
    assert race.peers
    names = offered(race.peers).get(race.name, [])
    if python is None:
        return {}, dict.fromkeys(names, NOT_INSTALLED)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    file = Path(folder) / "given.npz"
    write_file(file, case.x, case.arrays)
    processes: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            processes[name] = Peer(python, race.peers, race.name, name, file)
            stack.callback(processes[name].close)
        except Absent as why:
            missing[name] = str(why)
    return processes, missing


def _truth(case: Case) -> tuple[Any, Any] | None:
    if not isinstance(case.truth, str):
        return case.truth
    chosen = case.candidates[case.truth]
    return (chosen.answer or chosen.call)()


def _difference(case: Case, name: str, answer: Any, truth: tuple[Any, Any] | None) -> tuple[float, float] | None:
    """Relative differences of value and gradient from the `truth`.

    **Raises:** `ComputationError` where they are those of the reference, and not small.
    """
    if truth is None:
        return None
    found = answer()
    vectors = [np.concatenate([np.ravel(a) for a in jax.tree.leaves(each[1])]).astype(float) for each in (found, truth)]
    value = abs(float(found[0]) / float(truth[0]) - 1)
    gradient = float(np.linalg.norm(vectors[0] - vectors[1]) / np.linalg.norm(vectors[1]))
    if name == case.reference and not (value <= case.value_tolerance and gradient <= case.gradient_tolerance):
        raise ComputationError(
            f"{name} does not compute what it should: its value is {value:.1e} away and its gradient {gradient:.1e}, "
            f"where {case.value_tolerance:g} and {case.gradient_tolerance:g} are allowed."
        )
    return value, gradient


def _row(
    case: Case,
    name: str,
    candidate: Candidate,
    times: Mapping[str, Times],
    peak: float,
    difference: tuple[float, float] | None,
) -> dict[str, Any]:
    own, reference = times[name], times[case.reference]
    of_one = own.as_json(candidate.steps)
    compile_seconds = candidate.compile_seconds
    if compile_seconds is None:
        compile_seconds = max(0.0, own.first - own.median)
    row = {
        "candidate": name,
        **of_one,
        "ratio": own.over(reference) * case.candidates[case.reference].steps / candidate.steps,
        "compile_seconds": compile_seconds,
        "temporaries": candidate.temporaries,
    }
    if case.operations is not None:
        row["fraction_of_peak"] = case.operations / of_one["median"] / peak
    if difference is not None:
        value, gradient = difference
        row |= {"value_difference": value, "gradient_difference": gradient}
        row["same"] = value <= case.value_tolerance and gradient <= case.gradient_tolerance
    return row


def _judged(race: Race, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each goal, with the ratio that stands against it: None where no such candidate took part."""
    ratios = {row["candidate"]: row["ratio"] for row in rows if "ratio" in row}
    ratios["peers"] = min((r["ratio"] for r in rows if r.get("peer") and r.get("same")), default=math.nan)
    judged = []
    for name, least in race.goals.items():
        ratio = ratios.get(name, math.nan)
        known = not math.isnan(ratio)
        judged.append({"against": name, "least": least, "ratio": ratio if known else None,
                       "met": ratio >= least if known else None})  # fmt: skip
    return judged
