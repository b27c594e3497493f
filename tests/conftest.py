"""What the tests share: where the data lie, and double precision."""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from metabilevel.cli import main
from metabilevel.data import data_folder

# XLA optimises little, in the commands that are tested too: nearly all the time of a test is compilation. Without its
# emitters of fused loops it compiles several times as fast.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
QUICK = "jax_disable_most_optimizations"
os.environ.setdefault(QUICK.upper(), "1")
jax.config.update(QUICK, os.environ[QUICK.upper()] == "1")

# What is compiled is kept for the tests that compile it again, in this process or in a command; each process of pytest
# has a folder of its own, and nothing is left in the user's.
COMPILED = tempfile.TemporaryDirectory(prefix="metabilevel-tests-")
os.environ["METABILEVEL_COMPILATION_CACHE"] = "off"
for name, value in (("jax_compilation_cache_dir", COMPILED.name), ("jax_persistent_cache_min_compile_time_secs", 0.0)):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

SHARED = Path(__file__).parents[2] / "shared" / "data"
if "METABILEVEL_DATA" not in os.environ and SHARED.is_dir():
    os.environ["METABILEVEL_DATA"] = str(SHARED)


@pytest.fixture(autouse=True, scope="module")
def forget() -> Iterator[None]:
    """Frees what was compiled: a process that holds thousands of programs runs out of memory maps, and crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision, for comparisons with finite differences and closed forms."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised() -> Iterator[None]:
    """XLA compiles as it does for a user: for what is said of compiled programs, and for what compilers get wrong."""
    before = jax.config.read(QUICK)
    jax.config.update(QUICK, False)
    yield
    jax.config.update(QUICK, before)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(7)


@pytest.fixture(scope="session")
def data_files() -> Callable[..., list[Path]]:
    """Files of a data set, by its name and theirs.

    Where one is absent the test is skipped, but not if it is looked for in the folder beside the clone, which is
    there and ought to hold it.
    """

    def find(dataset: str, *names: str) -> list[Path]:
        paths = [data_folder() / dataset.replace("-", "_") / name for name in names]
        if not all(path.is_file() for path in paths):
            (pytest.fail if data_folder() == SHARED else pytest.skip)(f"data set absent: {dataset}")
        return paths

    return find


@pytest.fixture
def invoke(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """The program in this process and an empty directory: exit status, standard output, standard error."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METABILEVEL_STAMPS", str(tmp_path / "stamps"))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metabilevel", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()  # pyright: ignore[reportReturnType]

    return invoke
