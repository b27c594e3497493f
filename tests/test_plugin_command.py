"""`metabilevel plugin`: a package that works as it is written, and a stamp that tells the truth."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metabilevel import stamps
from metabilevel.registry import METHODS, find

ROOT = Path(__file__).parents[1]
PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
METHOD = "import metabilevel as mb\ndef odd(subject: mb.Learner): "

Invoke = Callable[..., tuple[int, str, str]]
Install = Callable[[str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the distribution `odd-plugin` on the path, with a method `odd` in a module of a package; gives its file."""

    def install(source: str) -> Path:
        package, metadata = tmp_path / f"odd_{tmp_path.name}", tmp_path / "odd_plugin-1.5.dist-info"
        for folder in (package, metadata):
            folder.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(f"[{METHODS}]\nodd = {package.name}.method:odd\n")
        (package / "__init__.py").write_text("")
        (package / "method.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return package / "method.py"

    return install


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


def test_a_new_package_passes_its_tests_and_runs(tmp_path: Path):
    site = tmp_path / "site"
    environment = {**os.environ, "PYTHONPATH": str(site), "METABILEVEL_STAMPS": str(tmp_path / "stamps")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    made = json.loads(run(PROGRAM, "plugin", "new", "My_Method", "--json"))
    files = ["README.md", "my_method.py", "pyproject.toml", "test_my_method.py"]
    assert made == {"name": "my-method", "module": "my_method", "folder": "My_Method", "files": files}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    run(*pip, "--disable-pip-version-check", "--target", str(site), "./My_Method")
    assert sorted(path.name for path in site.glob("*.py")) == ["my_method.py"]
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", "My_Method")
    rows = {row["name"]: row for row in json.loads(run(PROGRAM, "list", "methods", "--json"))["methods"]}
    about = {"name": "my-method", "distribution": "my-method", "version": "0.1.0", "module": "my_method"}
    assert rows["my-method"] == {**about, "conformance": None}
    assert "of the pull back to x; 0 gives MAML." in run(PROGRAM, "run", "my-method", "--help")
    small = ["--tasks", "sinusoid", "--steps", "20", "--meta-batch", "2", "--json"]
    assert json.loads(run(PROGRAM, "run", "my_method", *small))["step"] == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maml", "there is such a method already, of metabilevel 0.1.0 (metabilevel_fewshot.maml:maml)"),
        ("Meta_SGD", "there is such a method already, of metabilevel 0.1.0 (metabilevel_fewshot.rates:meta_sgd)"),
        ("optax", "NAME = 'optax': optax 0."),
        ("json", "there is a module 'json' already"),
        ("lambda", "'lambda' is a word of Python's own"),
        ("2step", "letters, digits and single hyphens are wanted, a letter first"),
        ("my--method", "NAME = 'my--method': letters"),
        ("a/b", "NAME = 'a/b': letters"),
        ("größe", "NAME = 'größe': letters"),
        ("", "NAME = '': letters"),
        ("m" * 250, "File name too long"),  # as late as with the last file, whose name has five letters more
    ],
)
def test_a_name_that_cannot_be(invoke: Invoke, name: str, message: str):
    status, out, err = invoke("plugin", "new", name)
    assert (status, out) == (2, "")
    assert message in one_line(err)
    assert not list(Path().iterdir())


def test_a_place_that_cannot_be(invoke: Invoke):
    Path("full").mkdir()
    Path("full", "mine.txt").write_text("mine")
    for out, message in {
        "full": "full holds 'mine.txt': give an empty directory",
        "full/mine.txt": "'--out': 'full/mine.txt' is a file, and no directory.",
        "full/mine.txt/new": "'--out': 'full/mine.txt' is a file, and no directory.",
        "/proc/new": "/proc/new cannot be written: ",
    }.items():
        status, _, err = invoke("plugin", "new", "my-method", "--out", out)
        assert status == 2, out
        assert message in one_line(err)
    assert [str(path) for path in Path().rglob("*")] == ["full", "full/mine.txt"]
    Path("empty").mkdir()
    assert invoke("plugin", "new", "my-method", "--out", "empty")[0] == 0
    assert invoke("plugin", "new", "my-method", "--out", "deep/er")[0] == 0
    assert Path("empty", "my_method.py").read_bytes() == Path("deep", "er", "my_method.py").read_bytes()
    assert "$" not in "".join(path.read_text() for path in Path("empty").iterdir())


def test_templates_are_part_of_the_wheel(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    templates = list((ROOT / "metabilevel" / "templates").rglob("*.template"))
    assert templates
    assert {str(path.relative_to(ROOT)) for path in templates} <= held


@pytest.mark.parametrize(
    ("source", "status", "message"),
    [
        ("import nowhere", 2, "did not import from odd-plugin 1.5 (odd_{0}.method:odd): ModuleNotFoundError"),
        ("import sys; sys.exit(0)", 2, "did not import from odd-plugin 1.5 (odd_{0}.method:odd): SystemExit: 0"),
        ("odd = 3", 2, "a factory is wanted, and 3 cannot be called"),
        ("def odd(): ...", 2, "it must have one positional parameter"),
        (METHOD + "exit(0)", 2, "The method 'odd' of odd-plugin 1.5 (odd_{0}.method:odd) calls sys.exit(0)."),
        ("def odd(subject: int): ...", 2, "No check applies to odd: "),
        (METHOD + "return 3", 1, "Does not conform: "),
        (METHOD + "return 1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_is_none(
    invoke: Invoke, install: Install, tmp_path: Path, source: str, status: int, message: str
):
    install(f"print('loud')\n{source}")
    stamps.require_folder()
    stamps.keep(find(METHODS, "odd"), 7, "")
    found, out, err = invoke("plugin", "check", "odd")
    assert found == status, out + err
    assert message.format(tmp_path.name) in (one_line(err) if status == 2 else " ".join(out.split()))
    assert stamps.path_of(find(METHODS, "odd")).exists() is (status == 2)  # which found nothing out


def test_json_is_one_document_though_the_plugin_prints(invoke: Invoke, install: Install):
    install(f"print('loud')\n{METHOD}print('louder'); return 3")
    status, out, err = invoke("plugin", "check", "odd", "--json")
    document = json.loads(out)
    assert (status, document["conforms"], document["stamp"]) == (1, False, None)
    assert document["distribution"] == "odd-plugin"
    assert {check["status"] for check in document["checks"]} == {"failed", "not applicable"}
    assert err.splitlines()[:2] == ["loud", "louder"]


def test_a_stamp_that_cannot_be_kept(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    Path("file").write_text("")
    monkeypatch.setenv("METABILEVEL_STAMPS", "file/stamps")
    status, out, err = invoke("plugin", "check", "maml")
    assert (status, out) == (2, "")
    assert "file/stamps cannot keep a stamp: Not a directory. Name another folder in METABILEVEL_STAMPS." in one_line(
        err
    )


def test_list_tells_a_stamp_that_holds_from_one_that_does_not(invoke: Invoke, install: Install):
    method = install("raise SystemExit('imported')")
    odd = find(METHODS, "odd")

    def conformance() -> object:
        (row,) = [row for row in json.loads(invoke("list", "--json")[1])["methods"] if row["name"] == "odd"]
        return row["conformance"]

    def line() -> str:
        (row,) = [row for row in invoke("list", "methods")[1].splitlines() if " odd " in row]
        return row

    assert conformance() is None
    assert "│ - " in line()
    stamps.require_folder()
    path = stamps.keep(odd, 7, stamps.digest(odd))
    kept = json.loads(path.read_text())
    assert conformance() == {**kept, "holds": True}
    assert "conforms 0.1.0, 7 checks" in line()

    beside = method.with_name("part.py")
    for change, undo in [
        (
            lambda: method.write_text("raise SystemExit('changed')"),
            lambda: method.write_text("raise SystemExit('imported')"),
        ),
        (lambda: beside.write_text("x = 1"), beside.unlink),
        (lambda: path.write_text(json.dumps({**kept, "version": "1.4"})), lambda: path.write_text(json.dumps(kept))),
        (lambda: path.write_text(json.dumps({**kept, "metabilevel": "0"})), lambda: path.write_text(json.dumps(kept))),
    ]:
        change()
        assert f"changed since {kept['date'][:10]}" in line()
        assert conformance()["holds"] is False
        undo()
        assert conformance()["holds"] is True

    path.write_text('{"name": "odd"}')
    status, out, err = invoke("list", "--json")
    assert status == 0
    assert "odd.json.distribution is missing. Renew it: metabilevel plugin check odd-plugin:odd" in one_line(err)
    assert {"odd", "maml"} <= {row["name"] for row in json.loads(out)["methods"]}
    assert not any(name.startswith(method.parent.name) for name in sys.modules)
