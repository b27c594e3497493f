"""What the tests share: where the data lie, and double precision."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from metabilevel.data import data_folder

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
def quick() -> Iterator[None]:
    """XLA optimises little: for grids whose time is all compilation, and which test mathematics, not XLA."""
    option = "jax_disable_most_optimizations"
    before = jax.config.read(option)
    jax.config.update(option, True)
    yield
    jax.config.update(option, before)


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
