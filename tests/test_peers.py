"""The script that serves PyTorch's candidates, as a user of its protocol meets it."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from metabilevel_bench import PEERS

from metabilevel.bench.peers import find_python

TORCH = find_python(None)
FILES = {
    "missing.npz": None,
    "broken.npz": b"PK: not quite",
    "empty.npz": b"",
}


def serve(*arguments, python=sys.executable, lines=""):
    return subprocess.run([python, PEERS, *arguments], input=lines, capture_output=True, text=True)


@pytest.fixture(scope="module")
def listed():
    done = serve("--list")
    assert done.returncode == 0
    return json.loads(done.stdout)


@pytest.fixture
def arrays(tmp_path):
    """Logistic regression on one feature, whose Hessian is that of one number."""
    data = {f"{part}.{name}": np.ones((1, 1) if name == "inputs" else 1, np.float32)
            for part in ("support", "query") for name in ("inputs", "targets")}  # fmt: skip
    numbers = {"iterations": np.float32(1), "scale": np.float32(1)}
    file = tmp_path / "arrays.npz"
    np.savez(file, **{"x.0": np.zeros(1, np.float32), "y": np.ones(1, np.float32)}, **data, **numbers)
    return file


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--list"),
        (("no-such", "loop", "a.npz"), "'no-such'"),
        (("imaml", "qpth", "a.npz"), "'qpth'"),
        (("imaml", "loop"), "a file"),
    ],
)
def test_what_is_not_served_is_named_with_status_2(arguments, named):
    done = serve(*arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_is_named_with_status_2(tmp_path, name):
    file = tmp_path / name
    if FILES[name] is not None:
        file.write_bytes(FILES[name])
    done = serve("imaml", "loop", file)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert name in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="there is a torch here")
def test_without_torch_every_workload_and_peer_says_so(listed, arrays):
    assert {"loop", "torch.func", "higher", "learn2learn", "torchopt", "qpth"} <= {
        p for ps in listed.values() for p in ps
    }
    once = {peer: workload for workload, peers in listed.items() for peer in peers}
    for workload, peer in [*((w, p) for p, w in once.items()), *((w, ps[0]) for w, ps in listed.items())]:
        done = serve(workload, peer, arrays)
        assert done.returncode == 0
        assert "torch" in json.loads(done.stdout)["missing"]


@pytest.mark.skipif(TORCH is None, reason="there is no environment of the peers; metabilevel bench --install-peers")
@pytest.mark.parametrize("peer", ["loop", "torch.func"])
def test_answers_line_by_line_and_ends_with_its_input(arrays, peer):
    done = serve("logistic-cg", peer, arrays, python=TORCH, lines="\n\n")
    ready, *answers = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, done.stderr, ready["ready"], len(answers)) == (0, "", True, 2)
    assert 0 < answers[0]["processor"] <= answers[1]["processor"]
    weight = 1 / (1 + np.exp(1.0))  # of the loss softplus(-y) at y = 1: derivative -w, second w (1 - w)
    with np.load(f"{arrays}.{peer}.npz") as found:
        np.testing.assert_allclose(found["value"], np.log1p(np.exp(-1.0)), rtol=1e-6)
        np.testing.assert_allclose(found["g.0"], [weight / (weight * (1 - weight) + 1)], rtol=1e-6)


@pytest.mark.skipif(TORCH is None, reason="there is no environment of the peers; metabilevel bench --install-peers")
def test_an_array_that_is_lacking_is_named_with_status_2(tmp_path):
    file = tmp_path / "other.npz"
    np.savez(file, a=1.0)
    done = serve("logistic-cg", "loop", file, python=TORCH)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "'x.0'" in done.stderr
