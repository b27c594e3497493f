"""Plugins are listed without an import, and a bad one harms no other."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metabilevel import registry
from metabilevel.errors import InputError, PluginError
from metabilevel.registry import METHODS, TASKS

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one plugin on the path, as an installer would."""

    def install(distribution: str, name: str, value: str, source: str = "", group: str = METHODS, version: str = "1.0"):
        folder = tmp_path / f"{distribution}-{version}-site"
        metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        (folder / f"{value.partition(':')[0]}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        return folder

    return install


def test_listing_needs_no_import(install: Install):
    install("broken-plugin", "boom", "boom_module:boom", "raise SystemExit('no listing')")
    names = [entry.name for entry in registry.entries(METHODS)]
    assert {"boom", "maml", "reptile"} <= set(names)
    assert names == sorted(names)
    entry = registry.find(METHODS, "boom")
    assert (entry.distribution, entry.version, entry.module) == ("broken-plugin", "1.0", "boom_module")


def test_listing_does_not_import_jax():
    code = "import sys; from metabilevel.registry import *; assert entries(METHODS) and entries(TASKS)"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'jax' not in sys.modules"], check=True)


@pytest.mark.parametrize(
    "name", ["my-method", "my_method", "My_Method", "some-plugin:my-method", "some_plugin:my_method"]
)
def test_hyphens_underscores_and_capitals_are_one(install: Install, name: str):
    install(
        "some-plugin", "my_method", "hyphens_module:factory", "def factory(subject, *, rate: float = 1): return rate"
    )
    assert registry.load_method(name)(None) == 1


def test_unknown_name_offers_the_nearest():
    with pytest.raises(PluginError, match=r"no method 'mamll'\. Did you mean 'maml'\? Installed: .*reptile"):
        registry.load(METHODS, "mamll")


def test_unknown_distribution_offers_qualified_names():
    with pytest.raises(PluginError, match="Did you mean 'metabilevel:maml'"):
        registry.load(METHODS, "metabilevl:maml")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("raise BaseException('two\\nlines')", "BaseException: two lines"),
        ("def", "SyntaxError: "),
        ("", "AttributeError: .*no attribute 'factory'"),
    ],
)
def test_failing_import_is_named(install: Install, tmp_path: Path, source: str, reason: str):
    module = tmp_path.name
    install("bad-plugin", "bad", f"{module}:factory", source, version="2.3")
    with pytest.raises(PluginError, match=rf"'bad' .* bad-plugin 2\.3 \({module}:factory\): {reason}"):
        registry.load(METHODS, "bad")
    assert callable(registry.load_method("maml"))


def test_interrupt_at_import_is_an_interrupt(install: Install):
    install("slow-plugin", "slow", "interrupted_module:slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.load(METHODS, "slow")


def test_one_name_from_two_distributions(install: Install):
    install("first-plugin", "twin", "twin_one:twin", "def twin(subject): return 1")
    install("second-plugin", "twin", "twin_two:twin", "def twin(subject): return 2")
    with pytest.raises(PluginError, match="first-plugin:twin, second-plugin:twin"):
        registry.load(METHODS, "twin")
    assert registry.load_method("second-plugin:twin")(None) == 2
    assert callable(registry.load_method("maml"))


def test_stale_metadata_of_one_distribution_are_no_clash(install: Install):
    install("Some.Plugin", "moved", "moved_old:moved", "def moved(subject): return 'old'", version="0.9")
    install("some-plugin", "moved", "moved_new:moved", "def moved(subject): return 'new'", version="1.0")
    assert registry.load_method("moved")(None) == "new"
    assert [entry.version for entry in registry.entries(METHODS) if entry.name == "moved"] == ["1.0"]


@pytest.mark.parametrize("off", ["first-plugin", "second-plugin, first_plugin:switched"])
def test_switched_off(install: Install, monkeypatch: pytest.MonkeyPatch, off: str):
    install("first-plugin", "switched", "switched_module:factory", "def factory(subject): ...")
    assert registry.load_method("switched")
    monkeypatch.setenv(registry.OFF, off)
    assert "switched" not in [entry.name for entry in registry.entries(METHODS)]
    with pytest.raises(PluginError, match=f"switched off by METABILEVEL_PLUGINS_OFF='{off}'"):
        registry.load(METHODS, "switched")


def test_switched_off_for_a_while(install: Install, monkeypatch: pytest.MonkeyPatch):
    install("first-plugin", "either", "either_first:either", "def either(subject): return 1")
    install("second-plugin", "either", "either_second:either", "def either(subject): return 2")
    monkeypatch.setenv(registry.OFF, "nothing")
    with registry.without(["second_plugin:either"]):
        assert registry.load_method("either")(None) == 1
    with registry.without(["first-plugin"]):
        assert registry.load_method("either")(None) == 2
    with pytest.raises(PluginError, match="More than one"):
        registry.load_method("either")
    assert os.environ[registry.OFF] == "nothing"
    with pytest.raises(PluginError, match=r"no distribution or plugin 'frist-plugin'.*Did you mean 'first-plugin"):
        registry.without(["frist-plugin"]).__enter__()


def test_a_plugin_that_imports_slowly_is_told(install: Install, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "SLOW", 0.0)
    install("slow-plugin", "slow", "slow_module:slow", "def slow(subject): return 1")
    with pytest.warns(
        UserWarning, match=r"The method 'slow' of slow-plugin 1.0 \(slow_module:slow\) took .* s to import"
    ):
        registry.load(METHODS, "slow")


def test_switching_off_decides_a_clash(install: Install, monkeypatch: pytest.MonkeyPatch):
    install("first-plugin", "either", "either_one:either", "def either(subject): return 1")
    install("second-plugin", "either", "either_two:either", "def either(subject): return 2")
    monkeypatch.setenv(registry.OFF, "second-plugin")
    assert registry.load_method("either")(None) == 1


@pytest.mark.parametrize(
    ("group", "source", "reason"),
    [
        (METHODS, "def factory(): ...", "one positional parameter.* has 0"),
        (METHODS, "def factory(subject, other): ...", "one positional parameter.* has 2"),
        (METHODS, "def factory(subject, **options): ...", "options hides the options"),
        (METHODS, "factory = 3", "3 cannot be called"),
        (TASKS, "def factory(subject): ...", "no positional parameter.* has 1"),
    ],
)
def test_object_that_is_no_factory(install: Install, tmp_path: Path, group: str, source: str, reason: str):
    module = tmp_path.name
    install("odd-plugin", "odd", f"{module}:factory", source, group)
    with pytest.raises(InputError, match=f"odd-plugin 1.0 .*{reason}"):
        (registry.load_method if group == METHODS else registry.load_tasks)("odd")


def test_a_subject_of_any_kind_is_let_through(install):
    source = "from typing import Any\n\n\ndef factory(subject: Any): return subject"
    install("some-plugin", "open", "open_module:factory", source)
    assert registry.load_method("open")("a text") == "a text"
