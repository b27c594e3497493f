"""The command line from outside: what it prints, how it fails, and that no interruption shows in a run."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from click.testing import CliRunner

from metabilevel.cli import COMMANDS, cli
from metabilevel.commands import experiment
from metabilevel.registry import METHODS, REPRO, TASKS, entries, find, load_method
from metabilevel.schema import options
from metabilevel.storage.runs import LOCK, Run

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
STEPS = 2000
MAML = ["run", "maml", "--tasks", "sinusoid"]
RUN = [*MAML, "--steps", str(STEPS), "--learning-rate", "0.01", "--every", "100"]
SUBCOMMANDS = {"repro": ("list", "show", "run"), "data": ("list", "fetch", "verify"), "plugin": ("new", "check")}

Invoke = Callable[..., tuple[int, str, str]]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the distribution `odd-plugin` on the path, with one plugin, `odd`, in a module of the same source."""

    def install(source: str, group: str = METHODS) -> None:
        module, metadata = f"odd_{tmp_path.name}", tmp_path / "odd_plugin-1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\nodd = {module}:odd\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the programs that are started here: what one has compiled, the others need not."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {**os.environ, **cache}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A run that nothing interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    done = program([*RUN, "--out", str(path), "--json"], path.parent, environment)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document.pop("compilation")["programs"] > 0
    assert document == {"run": str(path), **json.loads((path / "summary.json").read_text())}
    return path


def program(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The installed program, run in `folder`."""
    return subprocess.run([PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in COMMANDS), *([name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs)],
    ids=" ".join,
)
def test_help(command: list[str]):
    done = CliRunner().invoke(cli, [*command, "--help"], prog_name="metabilevel")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['metabilevel', *command])}")


@pytest.mark.parametrize("method", [entry.name for entry in entries(METHODS) if entry.distribution == "metabilevel"])
def test_help_of_a_method_shows_its_options(method: str):
    done = CliRunner().invoke(cli, ["run", method, "--tasks", "sinusoid", "--help"], terminal_width=250)
    assert done.exit_code == 0
    own = done.stdout.partition("Options of the run:")[0]
    for option in options(load_method(method)).values():
        flag = "--inner-steps" if option.name == "steps" else option.flag
        record = " ".join(own.partition(f"  {flag} ")[2].partition("\n  --")[0].split())
        assert f"[default: {str(option.default).lower()}]" in record
        assert option.help in record
    assert "max_amplitude  ranges" in done.stdout.partition("Options of sinusoid")[2]


def test_what_needs_no_jax_does_not_import_it():
    code = "import sys; from metabilevel.cli import cli\n"
    code += "for line in ['--help', 'run --help', 'list', 'data --help', 'repro --help', 'list --json']:\n"
    code += "    cli.main(line.split(), 'metabilevel', standalone_mode=False)\n"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([PROGRAM, "--help"], check=True, stdout=subprocess.DEVNULL)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.3


def test_list(invoke: Invoke):
    status, out, err = invoke("list", "--json")
    document = json.loads(out)
    assert (status, err, list(document)) == (0, "", ["methods", "tasks", "repro"])
    maml = {"name": "maml", "distribution": "metabilevel", "version": "0.1.0", "module": "metabilevel_fewshot.maml"}
    assert any(maml.items() <= row.items() for row in document["methods"])
    assert list(json.loads(invoke("list", "tasks", "--json")[1])) == ["tasks"]
    assert "metabilevel_fewshot.reptile" in invoke("list")[1]


WRONG = {
    "lst": "no command 'lst'. Did you mean 'list'? Commands: list, run",
    "data ftch omniglot": "no command 'ftch'. Did you mean 'fetch'?",
    "data verify omniglott": "no data set 'omniglott'. Did you mean 'omniglot'?",
    "repro show maml-sinusoids": "no reproduction 'maml-sinusoids'. Did you mean 'maml-sinusoid'?",
    "repro run maml-sinusoid --out=": "'--out': '' is no directory",
    "repro run maml-sinusoid --scale smal": "scale = 'smal': one of smoke, small, full. Did you mean 'small'?",
    "evaluate here": "There is no run in here",
    "evaluate here --inner-steps 0,x": "'--inner-steps': '0,x' is not a list of integers of 0 or more",
    "evaluate here --split tset": "'--split': 'tset' is not one of 'train', 'valid', 'test'",
    "run mamll": "no method 'mamll'. Did you mean 'maml'? Installed: adafac-mlp, ",
    "run --tasks sinusoid maml": "--tasks: the method comes first",
    "run maml": "Missing option '--tasks'. Installed: bilevel-cleaning, ",
    "run maml --tasks sinusiod": "no task family 'sinusiod'. Did you mean 'sinusoid'?",
}
WRONG_OPTIONS = {
    "--stps 3": "No such option '--stps'.",
    "--steps 0": "'--steps': '0' is not an integer of 1 or more",
    "--steps many": "'--steps': 'many' is not an integer of 1 or more",
    "--steps 2147483648": "'--steps': '2147483648' is not an integer from 1 to 2147483647",
    "--meta-batch -2": "'--meta-batch': '-2' is not an integer of 1 or more",
    "--task-chunk 0": "'--task-chunk': '0' is not an integer of 1 or more",
    "--seed 4294967296": "'--seed': '4294967296' is not an integer from 0 to 4294967295",
    "--outer-learning-rate nan": "'--outer-learning-rate': 'nan' is not a number above 0",
    "--outer-optimizer adan": "'--outer-optimizer': 'adan' is not one of 'adam', 'adamw'",
    "--learning_rate fast": "Option '--learning-rate' is 'fast', and must be a number",
    "--first-order maybe": "Option '--first-order' is 'maybe', and must be true or false",
    "--checkpoint stpe": "must be one of step, sqrt or none. Did you mean 'step'?",
    "--inner-steps 1.5": "Option '--inner-steps' is '1.5', and must be an integer",
    "--inner-steps -1": "maml: steps = -1: an integer of 0 or more is wanted",
    "--task-option shots": "'--task-option': 'shots' is not of the form NAME=VALUE",
    "--task-option shotz=5": "'--task-option': There is no option 'shotz'. Did you mean 'shots'?",
    "--task-option shots=x": "Option 'shots' is 'x', and must be an integer",
    "--task-option shots=0": "sinusoid: shots = 0",
    "--resume --out there": "--resume: There is no run in there",
    "--out=": "'--out': '' is no directory",
    "--tasks from-folder --task-option path=none": "from-folder: none does not exist: the folder",
    "--tasks from-arrays --task-option path=none": "from-arrays: none does not exist: the .npz file",
}
WRONG |= {f"{' '.join(MAML)} {line}": message for line, message in WRONG_OPTIONS.items()}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(invoke: Invoke, line: str):
    status, out, err = invoke(*line.split())
    assert (status, out) == (2, "")
    assert WRONG[line] in one_line(err)
    assert not list(Path().iterdir())


def test_wrong_input_as_json(invoke: Invoke):
    status, out, err = invoke("run", "mamll", "--json")
    assert json.loads(out) == {"error": one_line(err).removeprefix("Error: "), "status": 2}
    assert status == 2


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("import nowhere", 2, "did not import from odd-plugin 1.5 (odd_{}:odd): ModuleNotFoundError"),
        ("def odd(subject, *, rate=1): ...", 2, "option 'rate' needs an annotation"),
        ("import sys\ndef odd(subject): sys.exit(0)", 2, "odd-plugin 1.5 (odd_{}:odd) called sys.exit(0)."),
        ("def odd(subject): return 3", 2, "odd-plugin 1.5 (odd_{}:odd) gives a int, and no Method."),
        (
            "def odd(subject): return 1 / 0",
            1,
            "odd-plugin 1.5 (odd_{}:odd) failed: ZeroDivisionError: division by zero",
        ),
        ("import metabilevel as mb\ndef odd(subject): raise mb.InputError('not so')", 2, "odd: not so"),
    ],
)
def test_plugin_that_fails_is_named(
    invoke: Invoke, install: Install, tmp_path: Path, source: str, status: int, message: str
):
    install(source)
    assert {"odd", "maml"} <= {row["name"] for row in json.loads(invoke("list", "--json")[1])["methods"]}
    found, out, err = invoke("run", "odd", "--tasks", "sinusoid")
    assert (found, out) == (status, "")
    assert message.format(tmp_path.name) in one_line(err)
    assert not list(Path().iterdir())


def test_a_signal_while_a_plugin_is_imported_gives_one_document(install: Install, tmp_path: Path):
    install("import os, signal\nos.write(1, b'noise\\n')\nos.kill(os.getpid(), signal.SIGINT)")
    done = program(
        ["run", "odd", "--tasks", "sinusoid", "--json"], tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert (done.returncode, done.stderr.splitlines()) == (130, ["noise", "Interrupted."])
    assert json.loads(done.stdout) == {"error": "Interrupted.", "status": 130}


def test_tracebacks_are_for_who_asks_and_for_what_nobody_foresaw(
    invoke: Invoke, install: Install, monkeypatch: pytest.MonkeyPatch
):
    install("def odd(subject): return 1 / 0")
    monkeypatch.setenv("METABILEVEL_DEBUG", "1")
    assert "in odd\n" in invoke("run", "odd", "--tasks", "sinusoid")[2]
    monkeypatch.setattr(experiment, "start", lambda *_: [][1])
    monkeypatch.delenv("METABILEVEL_DEBUG")
    status, _, err = invoke(*MAML)
    assert status == 1
    assert err.startswith("Traceback")
    assert err.endswith("Error: IndexError: list index out of range\n")


def test_data_that_are_not_what_they_should_be(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    archive = tmp_path / "omniglot" / "images_background.zip"
    status, out, _ = invoke("data", "list", "--json")
    assert status == 0
    assert [row["ready"] for row in json.loads(out)["data"] if row["name"] == "omniglot"] == [False]
    status, _, err = invoke("data", "verify", "omniglot")
    assert status == 2
    assert "metabilevel data fetch omniglot" in one_line(err)
    archive.parent.mkdir()
    archive.write_bytes(b"PK")
    for command in ["data verify", "data verify omniglot", "data fetch omniglot", "run maml --tasks omniglot"]:
        status, out, err = invoke(*command.split())
        assert (status, out) == (2, "")
        assert f"{archive} is truncated or altered" in one_line(err)
    assert archive.read_bytes() == b"PK"


def test_official_files_are_not_missed_where_packed_ones_serve(
    invoke: Invoke, data_files: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (packed,) = data_files("omniglot", "omniglot28.npz")
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path))
    for folder in ("omniglot", "cifar"):
        (tmp_path / folder).mkdir()
    shutil.copy(packed, tmp_path / "omniglot")
    for part in ("train_subset", "test"):
        (tmp_path / "cifar" / f"cifar100_{part}.npz").touch()
    status, out, _ = invoke("data", "list")
    ready = {name: line for line in out.splitlines() for name in ("cifar10 ", "cifar100 ", "omniglot ") if name in line}
    assert status == 0
    assert ["no" in ready["cifar10 "], "packed part serves" in ready["cifar100 "]] == [True, True]
    assert "yes" in ready["omniglot "]
    status, out, _ = invoke("data", "fetch", "omniglot")
    assert (status, out.count("missing: packed part serves")) == (0, 2)


def test_run_directory(whole: Path):
    config, summary = (json.loads((whole / name).read_text()) for name in ("config.json", "summary.json"))
    assert config["method"]["options"]["learning_rate"] == 0.01
    assert config["tasks"]["options"]["shots"] == 10
    assert config["environment"]["x64"] is False
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(100, STEPS + 1, 100))
    assert all(row.keys() == {"step", "loss", "failed", "inner_residual"} for row in rows)
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert summary["metrics"] == rows[-1]
    scores = summary["evaluation"]
    assert (scores["episodes"], scores["protocol"]) == (600, "no batch statistics")
    assert [row["steps"] for row in scores["rows"]] == [0, 1]
    assert scores["rows"][1]["mean"] < scores["rows"][0]["mean"] / 2


def interrupted(arguments: list[str], path: Path, environment: dict[str, str], signum: int) -> tuple[int, str]:
    """Exit status and standard error of a program that gets a signal when it has gone on with the run in `path`."""
    metrics = path / "metrics.jsonl"
    reports = lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    begun = reports()
    pipe, arguments = subprocess.PIPE, [PROGRAM, *arguments]
    running = subprocess.Popen(arguments, cwd=path.parent, env=environment, text=True, stdout=pipe, stderr=pipe)
    while reports() < begun + 3 and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signum)
    _, said = running.communicate()
    return running.returncode, said


def test_killed_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    whole: Path, environment: dict[str, str], tmp_path: Path
):
    path = tmp_path / "a run"
    command = [*RUN, "--out", str(path)]
    newest = lambda: int(max(path.glob("checkpoints/*.ckpt")).stem)
    assert interrupted(command, path, environment, signal.SIGKILL)[0] == -signal.SIGKILL
    killed_at = newest()
    status, said = interrupted([*command, "--resume"], path, environment, signal.SIGINT)
    assert status == 130
    assert 0 < killed_at < newest() < STEPS
    message, _, again = said.splitlines()[-1].partition(" Resume with: ")
    assert message == f"Interrupted at step {newest()} of {STEPS}."
    name, *arguments = shlex.split(again)
    assert name == "metabilevel"
    done = program(arguments, tmp_path, environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no batch statistics" in done.stdout
    assert f"The run is in {path}" in done.stdout
    for name in ("metrics.jsonl", f"checkpoints/{STEPS:08d}.ckpt"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    assert Run.open(path).summary()["evaluation"] == Run.open(whole).summary()["evaluation"]  # pyright: ignore[reportOptionalSubscript]


def test_second_signal_stops_at_once():
    code = "from hashlib import pbkdf2_hmac; from metabilevel.commands.interrupts import Interrupts\n"
    code += "with Interrupts() as interrupts, interrupts.held():\n"
    code += "    print('ready', flush=True)\n"
    code += "    pbkdf2_hmac('sha1', b'', b'', 2**26)\n"  # no Python handler runs in it, as in compiled code
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdout=pipe, stderr=pipe) as busy:
        assert busy.stdout is not None
        assert busy.stderr is not None
        assert busy.stdout.readline() == "ready\n"
        busy.send_signal(signal.SIGTERM)
        assert "once more to stop at once" in busy.stderr.readline()
        busy.send_signal(signal.SIGTERM)
        assert busy.wait(30) == 143


def test_finished_run(whole: Path, invoke: Invoke):
    before = contents(whole)
    status, out, err = invoke(*RUN, "--out", str(whole), "--resume", "--json")
    assert status == 0
    assert json.loads(out)["step"] == STEPS
    assert "is finished. Give more --steps" in one_line(err)
    refused = {
        "": f"--out: {whole} holds a run already",
        "--resume --learning-rate 0.02 --seed 1": "options.learning_rate was 0.01 and is now 0.02; seed was 0 and is",
        "--resume --steps 9": f"steps was {STEPS} and is now 9",
    }
    for options_, message in refused.items():
        status, _, err = invoke(*RUN, "--out", str(whole), *options_.split())
        assert status == 2
        assert message in one_line(err)
    with Run.resume(whole, Run.open(whole).config):
        status, _, err = invoke(*RUN, "--out", str(whole), "--resume")
    assert status == 2
    assert f"--resume: The run directory {whole} is in use by process {os.getpid()} on" in one_line(err)
    assert contents(whole) == before


def test_more_steps_in_another_environment(whole: Path, environment: dict[str, str], tmp_path: Path):
    path = tmp_path / "more"
    shutil.copytree(whole, path)
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"git_commit": null', '"git_commit": "abc"'))
    arguments = [*RUN, "--steps", str(STEPS + 150), "--out", str(path), "--resume", "--json"]
    done = program(arguments, tmp_path, environment)
    assert (done.returncode, json.loads(done.stdout)["step"]) == (0, STEPS + 150)
    expected = "may differ in some bits: environment.git_commit was 'abc' and is now None."
    assert one_line(done.stderr).startswith("Warning: ")
    assert one_line(done.stderr).endswith(expected)
    assert [row["step"] for row in Run.open(path).metrics()][-2:] == [STEPS + 100, STEPS + 150]


def test_evaluate(whole: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    newer = lambda group, name: replace(find(group, name), version="0.1.0" if group == TASKS else "0.2.0")
    monkeypatch.setattr(experiment, "find", newer)
    chosen = ["--split", "valid", "--inner-steps", "5,0,1", "--episodes", "40", "--json"]
    status, out, err = invoke("evaluate", str(path), *chosen)
    assert status == 0
    assert one_line(err) == "Warning: maml was of metabilevel 0.1.0 in the run, and is of 0.2.0 now."
    document = json.loads(out)
    assert document == json.loads((path / "evaluation-valid.json").read_text())
    assert (document["step"], document["episodes"], document["split"]) == (STEPS, 40, "valid")
    assert [row["steps"] for row in document["rows"]] == [0, 1, 5]
    assert all(row["ci95"] > 0 for row in document["rows"])


def test_diagnose(invoke: Invoke):
    assert invoke(*MAML, "--steps", "3", "--learning-rate", "0.01", "--out", "run")[0] == 0
    status, out, err = invoke("diagnose", "run", "--tasks", "5", "--inner-steps", "2", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document == json.loads(Path("run/diagnose/diagnose.json").read_text())
    assert (document["run"], document["step"], document["split"]) == ("run", 3, "test")
    found = {each["name"]: each for each in document["diagnostics"]}
    assert list(found) == ["gradients", "memory", "similarity", "probe", "tangent"]
    assert all(Path(f"run/diagnose/{name}.png").read_bytes().startswith(b"\x89PNG") for name in found)
    assert {row["steps"] for row in found["gradients"]["rows"]} == {2}
    assert [row["block"] for row in found["similarity"]["rows"][::2]] == ["block 1", "block 2", "head"]
    status, out, err = invoke("diagnose", "run", "--what", "probe", "--tasks", "2")
    assert (status, err) == (0, "")
    assert "maml on sinusoid: probe" in out
    status, _, err = invoke("diagnose", "run", "--what", "prob")
    assert (status, "'prob' is not one of 'gradients', 'memory'" in one_line(err)) == (2, True)


def test_diagnose_skips_what_does_not_apply_and_refuses_it_when_asked_for(invoke: Invoke):
    assert invoke("run", "r2d2", "--tasks", "sinusoid", "--steps", "3", "--out", "run")[0] == 0
    status, out, err = invoke("diagnose", "run", "--tasks", "5", "--json")
    assert status == 0
    assert [each["name"] for each in json.loads(out)["diagnostics"]] == ["probe"]
    skipped = [line.split(": ")[1] for line in err.splitlines() if line.startswith("Skipped: ")]
    assert skipped == ["gradients", "memory", "similarity", "tangent"]
    before = contents(Path("run"))
    for name, message in {"memory": "the inner solver ClosedForm takes no steps", "similarity": "such as maml"}.items():
        status, out, err = invoke("diagnose", "run", "--what", "probe", "--what", name)
        assert (status, out) == (2, "")
        assert f"{name}: " in one_line(err)
        assert message in err
    assert contents(Path("run")) == before


def test_diverging_run(invoke: Invoke):
    status, out, err = invoke(*MAML, "--learning-rate", "1e20", "--steps", "3", "--json")
    assert status == 1
    assert json.loads(out)["status"] == 1
    assert "step 0: " in one_line(err)
    checkpoint = one_line(err).partition("The last good checkpoint is ")[2].rstrip(".")
    assert checkpoint == "runs/maml-sinusoid-0/checkpoints/00000000.ckpt"
    assert Path(checkpoint).is_file()


def test_an_adaptation_that_diverges_at_test_is_a_failed_computation(invoke: Invoke):
    status, out, err = invoke(*MAML, "--steps", "2", "--test-learning-rate", "1e4", "--test-steps", "30")
    assert status == 1
    assert "nan" in out or "inf" in out
    assert "The loss after 30 inner steps is not finite on some of the 600 test episodes" in one_line(err)
    assert invoke("evaluate", "runs/maml-sinusoid-0", "--episodes", "9")[0] == 1
    assert invoke("evaluate", "runs/maml-sinusoid-0", "--episodes", "9", "--inner-steps", "0")[0] == 0


def test_out_of_memory(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore")

    monkeypatch.setattr(experiment, "train", full)
    status, _, err = invoke("run", "oracle", "--tasks", "sinusoid")
    assert status == 1
    assert "Out of memory allocating 8 bytes. Compute fewer tasks at once: --task-chunk 1" in one_line(err)


REPRODUCTION = """
from dataclasses import dataclass
from metabilevel.reproduction import Claim, Curve, Outcome, Panel, Published, Reproduction, Scale

@dataclass(frozen=True)
class Settings:
    value: float

def experiment(settings, lab):
    return Outcome({"a": settings.value, "b": 3.0}, [Panel("a", "x", "y", [Curve("a", [0.0, 1.0], [0.0, 1.0])])])

odd = Reproduction(
    "odd", "An odd paper", "Odd 2020", "2001.00001", "Table 7", "error", "a standard error",
    (Published("a", 1.5, None, "Table 7"),), (Claim("b is larger.", "section 3", ("a", "b")),),
    {"smoke": Scale(Settings(1.0), "Quick.", ("Short.",)), "small": Scale(Settings(2.0), "Slow.")}, experiment)
"""


def test_reproduction(invoke: Invoke, install: Install):
    install(REPRODUCTION, REPRO)
    rows = {row["name"]: row for row in json.loads(invoke("repro", "list", "--json")[1])["repro"]}
    assert rows["odd"]["scales"] == ["smoke", "small"]
    shown = invoke("repro", "show", "odd")[1]
    assert all(words in shown for words in ("a standard error", "Table 7", "1.5", "section 3", "Quick.", "Short."))
    assert json.loads(invoke("repro", "show", "odd", "--json")[1])["published"][0]["place"] == "Table 7"
    unpublished = invoke("repro", "show", "r2d2-omniglot")[1]
    assert "Claims of the paper" in unpublished
    assert "published" not in unpublished
    for _ in range(2):
        status, out, err = invoke("repro", "run", "odd", "--scale", "smoke")
        assert (status, err) == (0, "")
        assert all(words in out for words in ("-0.5", "held", "runs/repro/odd-smoke"))
    assert {item.name for item in Path("runs/repro/odd-smoke").iterdir()} == {"result.json", "curves.png"}
    for name, words in {"runs/repro/odd-smoke": "holds a result of another", "runs": "holds 'repro'"}.items():
        status, out, err = invoke("repro", "run", "odd", "--out", name)
        assert (status, out) == (2, "")
        assert f"--out: {name} {words}" in one_line(err)
    status, out, _ = invoke("repro", "run", "odd", "--json", "--out", "other")
    assert json.loads(out)["rows"][0]["difference"] == 0.5
    assert json.loads(out) == json.loads(Path("other/result.json").read_text())
