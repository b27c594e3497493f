"""`metabilevel check` as a user meets it, and the files that are given to it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import metabilevel as mb
from metabilevel.commands.problem_file import load_case, split_target

PROGRAM = str(Path(sys.executable).with_name("metabilevel"))
FILE = """
import jax.numpy as jnp
import metabilevel as mb
import optax

print("a file that prints")
problem = mb.BilevelProblem(
    init=lambda x, task, key: jnp.zeros(3),
    inner_loss=lambda x, y, task, key: jnp.sum((y - task) ** 2) / 2 + jnp.exp(x) * jnp.sum(y**2) / 2,
    outer_loss=lambda x, y, task, key: jnp.sum((y - 1.0) ** 2),
)
x = 0.0
task = jnp.array([1.0, 2.0, 3.0])
solver = mb.GradientDescent(optax.sgd(0.1), steps=STEPS)
adjoint = mb.Implicit(mb.ConjugateGradient(20))
"""
NOISE = """
import atexit, os, sys

os.system("echo of another program")
os.write(1, b"of the descriptor\\n")
sys.__stdout__.write("of the first stream\\n")
atexit.register(print, "of the end")
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("mine.py")
        path.write_text(text)
        return path

    return write


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("steps", "status", "verdict"), [(200, 0, "right"), (10, 1, "inner solve not converged")])
def test_a_file_is_checked_and_prints_beside_the_document(steps, status, verdict, write):
    write(FILE.replace("STEPS", str(steps)) + NOISE)
    done = run("check", "mine.py", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["verdict"], document["title"]) == (status, verdict, "mine.py:problem")
    printed = ("a file that prints", "of another program", "of the descriptor", "of the first stream", "of the end")
    assert set(printed) <= set(done.stderr.splitlines())
    assert Path("checks/mine-problem/check.png").is_file()
    assert document["right"] == (status == 0)
    if status:
        assert document["series"]["numbers"][0] == 10


def test_a_run_and_a_method_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--learning-rate", "0.01", "--steps", "3", "--meta-batch", "2", "--out", "here"]
    assert run("run", "maml", "--tasks", "sinusoid", *options, "--json").returncode == 0
    done = run("check", "here")
    assert (done.returncode, "Right: " in done.stdout) == (0, True), done.stderr
    assert "maml on sinusoid, step 3: check" in done.stdout
    assert Path("here/check.png").is_file()
    done = run("check", "fomaml", "--tasks", "sinusoid", "--out", "there", "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "second derivatives dropped")
    assert Path("there/check.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["maml"], "--tasks NAME, one of "),
        (["mamel", "--tasks", "sinusoid"], "Did you mean 'maml'?"),
        (["gone.py"], "Error: There is no file 'gone.py'"),
        (["mine.py", "--tasks", "sinusoid"], "'--tasks': only a METHOD takes it"),
        (["maml", "--tasks", "sinusoid", "--option", "stepz=3"], "'--option': There is no option 'stepz'"),
        (["mine.py", "--meta-batch", "3"], "'--meta-batch': only a METHOD or a RUN takes it"),
        (["mine.py", "--out", "mine.py"], "'--out': 'mine.py' is a file, and no directory."),
        (["mine.py", "--out", "mine.py/below"], "'--out': 'mine.py' is a file, and no directory."),
        (["hoag", "--tasks", "sinusoid"], "meta_batch = 2"),
        (["."], "holds no run (config.json)"),
    ],
)
def test_what_is_asked_for_wrongly_gets_one_line(arguments, said, write, invoke):
    write(FILE.replace("STEPS", "2"))
    status, out, err = invoke("check", *arguments)
    assert (status, out) == (2, "")
    assert said in err.strip().splitlines()[-1]
    assert "Traceback" not in err


GOOD = FILE.replace("STEPS", "2").replace("print", "str")


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("1 / 0", None, "mine.py does not run: line 1: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)", None, "line 2: SystemExit: 3"),
        ("x = (", None, "line 1: SyntaxError"),
        ("x = 1.0", None, "holds no metabilevel.BilevelProblem"),
        ("from metabilevel import BilevelProblem as problem", None, "a class is none, an instance is"),
        (GOOD + "again = dict(problem=problem)", None, "holds 2 problems, problem, again: say which"),
        (GOOD, "problm", "holds no 'problm'. Did you mean 'problem'?"),
        (GOOD, "task", "task in mine.py is of type ArrayImpl, and no problem. Its problems: problem."),
        (GOOD.replace("x = 0.0", ""), None, "says no x"),
        (GOOD.replace("solver =", "sover ="), None, "says no solver"),
        (
            GOOD.replace("solver = mb.GradientDescent(optax.sgd(0.1), steps=2)", "solver = optax.sgd(0.1)"),
            None,
            "solver is",
        ),
        (GOOD.replace("mb.Implicit(mb.ConjugateGradient(20))", "mb.Implicit"), None, "adjoint is the class Implicit"),
        (GOOD + "key = 'zero'", None, "key is of type str"),
        (GOOD + "key = 2**80", None, "mine.py:problem: key = 1208925819614629174706176: 4294967295 or less is wanted"),
        (GOOD.replace("x = 0.0", "x = jnp.array(3)"), None, "x holds int32"),
        (GOOD.replace("x = 0.0", "x = 10**400"), None, "OverflowError"),
        (GOOD.replace("jnp.sum((y - 1.0) ** 2)", "(y - 1.0) ** 2"), None, "outer_loss must give one floating scalar"),
        (GOOD.replace("* jnp.sum(y**2) / 2", "* y**2"), None, "inner_loss must give one floating scalar"),
        (GOOD.replace("jnp.zeros(3)", "jnp.zeros(3, int)"), None, "init gives y of type int32"),
        (GOOD.replace("jnp.sum((y - 1.0) ** 2)", "exit()"), None, "mine.py:problem: line 10: SystemExit"),
        (GOOD.replace("jnp.zeros(3)", "jnp.zeros(2)"), None, "mine.py:problem: line 9: TypeError"),
        (GOOD + "mine = dict(problem=problem, slover=1)", "mine", "has an entry 'slover'. Did you mean 'solver'?"),
    ],
)
def test_files_that_do_not_serve_say_why(text, name, said, write):
    with pytest.raises(mb.InputError) as refused:
        load_case(write(text), name)
    assert said in str(refused.value)


def test_a_file_may_hold_several_problems_with_parts_of_their_own(write):
    path = write(GOOD + "other = dict(problem=problem, x=jnp.ones(()), adjoint=mb.Unroll(), key=5)")
    first, other = (load_case(path, name) for name in ("problem", "other"))
    assert (first.title, other.title) == ("mine.py:problem", "mine.py:other")
    assert (float(first.x), float(other.x)) == (0.0, 1.0)
    assert isinstance(first.adjoint, mb.Implicit)
    assert isinstance(other.adjoint, mb.Unroll)
    assert jnp.array_equal(first.task, other.task)
    assert jax.random.key_data(other.key)[1] == 5


def test_an_x_of_integers_means_floats(write):
    assert load_case(write(GOOD.replace("x = 0.0", "x = 3")), None).x == 3.0
    path = write(GOOD.replace("x = 0.0", "x = [3, 4]").replace("jnp.exp(x)", "jnp.exp(x[0] + x[1])"))
    assert [float(a) for a in load_case(path, None).x] == [3.0, 4.0]


def test_what_is_traced_cannot_be_checked(write):
    case = load_case(write(GOOD), None)
    check = lambda x: mb.check_hypergradient(case.problem, x, case.task, key=case.key, solver=case.solver).error
    with pytest.raises(mb.InputError, match=r"looks at numbers: call it outside jax\.jit"):
        jax.jit(check)(case.x)


def test_a_file_may_import_what_lies_beside_it(write, tmp_path):
    (tmp_path / "beside_it.py").write_text(GOOD)
    assert load_case(write("from beside_it import *"), None).title == "mine.py:problem"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("a.py", ("a.py", None)),
        ("a.py:b", ("a.py", "b")),
        ("c:/a.py", ("c:/a.py", None)),
        ("maml", None),
        ("runs/x", None),
    ],
)
def test_targets(text, split):
    assert split_target(text) == (split and (Path(split[0]), split[1]))
