"""The page on writing a method, followed to the letter: its files are written, its commands typed, its outputs met."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from metabilevel.conformance import CHECKS

GUIDE = Path(__file__).parents[1] / "docs" / "write-a-method.md"
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Reader:
    """Who follows the page, in the directory `here`."""

    here: Path
    environment: dict[str, str]

    def runs(self, *command: str) -> tuple[int, str]:
        """The exit status, and all that is printed."""
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=self.here, env=self.environment, **both)
        return done.returncode, done.stdout

    def types(self, console: str, status: int) -> None:
        """The lines that begin with `$`, one after another; each prints what follows it, and ends with `status`."""
        for line, _, promised in (part.partition("\n") for part in re.split(r"^\$ ", console, flags=re.M)[1:]):
            found, printed = self.runs("bash", "-c", line)
            assert found == status, f"$ {line}\n{printed}"
            assert meets(printed, promised), f"$ {line}\n{printed}\nand not\n{promised}"

    def follows(self, language: str, said: str, text: str) -> None:
        """A block; `said` after its language is the file that it is of, or the status of commands that fail."""
        match language:
            case "console":
                self.types(text, int(said.removeprefix("status=") or 0))
            case "python" if not said:
                status, printed = self.runs("python", "-W", "error", "-c", text)
                assert status == 0, printed
            case "python":
                assert (self.here / said).is_file(), f"{said} is not there to be changed"
                (self.here / said).write_text(text)
            case "diff":
                (self.here / said).write_text(changed((self.here / said).read_text(), text))
            case "toml":
                points = lambda text: tomllib.loads(text)["project"]["entry-points"]["metabilevel.methods"]
                assert points((self.here / said).read_text()).items() <= points(text).items()
            case _:
                raise AssertionError(f"nobody knows how to follow {language!r}")


def meets(printed: str, promised: str) -> bool:
    """Whether the output is the promised one; `...` stands for anything, and white space for one space."""
    wanted = ".*".join(re.escape(" ".join(part.split())) for part in promised.split("..."))
    return re.fullmatch(rf"\s*{wanted}\s*".replace(r"\ ", r"\s+"), printed, re.DOTALL) is not None


def changed(text: str, diff: str) -> str:
    """`text` with the one place changed that `diff` shows."""
    lines = diff.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
    assert text.count(old) == 1, f"what is to be changed stands there {text.count(old)} times:\n{old}"
    return text.replace(old, new)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """In an empty directory, and in a fresh environment with the programs of this one, where pip needs no network."""
    here, home = tmp_path / "here", tmp_path / "environment"
    here.mkdir()
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for program in ("metabilevel", "pip", "pytest"):
        script = Path(sys.executable).with_name(program).read_text()
        (home / "bin" / program).write_text(script.replace(sys.executable, str(home / "bin" / "python")))
        (home / "bin" / program).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
        "METABILEVEL_STAMPS": str(tmp_path / "stamps"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip is told to isolate nothing
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return Reader(here, environment)


def test_the_page_is_followed_to_the_letter(reader: Reader):
    blocks = FENCE.findall(GUIDE.read_text())
    assert len(blocks) > 10
    for block in blocks:
        reader.follows(*block)


def test_every_check_has_a_row():
    section = GUIDE.read_text().partition("### The checks")[2].partition("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?`) \|", section, re.M) for name in re.findall("`(.*?)`", row)]
    assert named == list(CHECKS)


@pytest.mark.parametrize(
    ("promised", "met"),
    [
        ("one\n...\nfour\n", True),
        ("one two ... four", True),
        ("...\ntwo\n...", True),
        ("one\nfour\n", False),
        ("...\nfive\n...", False),
        ("", False),
        ("one two th.ee four", False),
    ],
)
def test_outputs_are_compared(promised: str, met: bool):
    assert meets("one\n  two three\nfour\n", promised) is met
