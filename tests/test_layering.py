"""Imports go one way, and the core knows no plugin; read off the source, without importing it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ["errors", "problem", "solvers", "adjoints", "estimators", "method", "training", "hypergradients"]
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PACKAGES = {p.name for folder in ("plugins", "paper_repro", "benchmarks") for p in (ROOT / folder).iterdir()}


def imports(path: Path, *, lazily: bool = True) -> set[str]:
    """Absolute names of what a file imports; within metabilevel, relative ones are made absolute."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazily else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = [path.parent.name] if node.level else []
            found.add(".".join([*package, *filter(None, [node.module])]))
    return found


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_downwards_only(module):
    above = {f"metabilevel.{name}" for name in CORE[CORE.index(module) + 1 :]}
    assert not imports(ROOT / "metabilevel" / f"{module}.py") & above


def test_the_core_never_imports_a_plugin():
    for path in (ROOT / "metabilevel").rglob("*.py"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert not tops & PACKAGES, f"{path} imports a plugin"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: p.name)
def test_plugins_use_the_public_package_only(path):
    private = {name for name in imports(path) if name.startswith("metabilevel.")}
    assert not private, f"{path.name} reaches into {private}"


def test_what_starts_fast_imports_jax_nowhere():
    heavy = {"jax", "equinox", "optax", "jaxopt", "matplotlib", "PIL"}
    for module in (
        "__init__",
        "cli",
        "errors",
        "registry",
        "schema",
        "data",
        "stamps",
        "storage/runs",
        "commands/bench",
        "commands/run",
        "commands/listing",
    ):
        tops = {name.partition(".")[0] for name in imports(ROOT / "metabilevel" / f"{module}.py", lazily=False)}
        assert not tops & heavy, f"{module} imports {tops & heavy} at its top"


def test_no_file_is_long():
    for folder in ("metabilevel", "plugins", "paper_repro", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, f"{path} has a seam somewhere"
