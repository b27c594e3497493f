"""The example of an outside plugin, installed by pip and used through the public names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "metabilevel-example-plugin"

USE = """
import json
import equinox as eqx, jax, jax.numpy as jnp
import metabilevel as mb
from metabilevel.registry import METHODS, find
from metabilevel.schema import configure

tasks, factory, key = mb.load_tasks("sinusoid")(), mb.load_method("sign_maml"), jax.random.key(0)
method = factory(tasks.subject, **configure(factory, {"learning-rate": "0.125", "steps": "3"}))

@eqx.filter_jit
def once(tasks, key):
    batch = mb.sample_batch(tasks, key, "train", 2)
    x, task = method.init(key), jax.tree.map(lambda a: a[0], batch)
    y = method.adapt(x, task, key)
    direction, _, info = method.estimator(x, batch, method.estimator.init(x, batch, key), key)
    norm = sum(jnp.sum(a**2) for a in jax.tree.leaves(direction))
    return jnp.concatenate([jnp.abs(a - b).ravel() for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y))]), norm

moves, norm = once(tasks, key)
moves = moves / 0.125
print(json.dumps({
    "origin": str(find(METHODS, "sign-maml")),
    "moves": jnp.unique(jnp.round(moves)).tolist(),
    "rest": float(jnp.abs(moves - jnp.round(moves)).max()),
    "norm": float(norm),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example is installed, without the network."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(folder), str(EXAMPLE)], check=True)
    return folder


def python(site: Path, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), **variables}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_outside_method_is_used_like_a_bundled_one(site: Path):
    found = json.loads(python(site, "-c", USE))
    assert found["origin"] == "metabilevel-example-plugin 0.1.0 (metabilevel_example_plugin:sign_maml)"
    assert {1, 3} <= set(found["moves"]) <= {0, 1, 2, 3}  # three inner steps of one size, none where the gradient is 0
    assert found["rest"] < 1e-4
    assert found["norm"] > 0


def test_outside_method_on_the_command_line_in_double_precision(site: Path, tmp_path: Path):
    cli, out = str(ROOT / "cli.py"), tmp_path / "run"
    assert "--inner-steps" in python(site, cli, "run", "sign-maml", "--help")
    options = {"--learning-rate": "0.005", "--inner-steps": "2", "--steps": "20", "--meta-batch": "4", "--every": "10"}
    arguments = [word for option in options.items() for word in option]
    arguments += ["--tasks", "sinusoid", "--out", str(out), "--json"]
    found = json.loads(python(site, cli, "run", "sign_maml", *arguments, JAX_ENABLE_X64="1"))
    assert [row["steps"] for row in found["evaluation"]["rows"]] == [0, 2]
    config = json.loads((out / "config.json").read_text())
    assert config["method"] == {
        "name": "sign-maml",
        "distribution": "metabilevel-example-plugin",
        "version": "0.1.0",
        "options": {"learning_rate": 0.005, "steps": 2},
    }
    assert config["environment"]["x64"] is True
    again = json.loads(python(site, cli, "evaluate", str(out), "--json"))
    assert again["rows"] == found["evaluation"]["rows"]


def test_outside_method_has_a_test_with_the_kit(site: Path):
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "builds or direction-like-x", str(EXAMPLE)]
    assert "2 passed" in python(site, *pytest_)
