"""Files are replaced whole or not at all, and hold strict JSON."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from metabilevel.errors import InputError
from metabilevel.storage import journal
from metabilevel.storage.files import dumps, loads, read_json, replace, sweep, write_json

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from metabilevel.errors import ComputationError
from metabilevel.storage.files import replace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    replace(Path(sys.argv[1]), b"new" * 1000)
except ComputationError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file size there")
def test_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    replace(path, b"ol", b"d")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be written: File too large" in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_reader_of_the_old_file_keeps_it(tmp_path: Path):
    replace(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        replace(tmp_path / "file", b"new")
        assert reader.read() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_sweep_takes_temporary_files_only(tmp_path: Path):
    for name in ("a.ckpt", "a.ckpt.tmp.123", "config.json.tmp.9", "b.tmp"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.ckpt", "b.tmp"]


def test_numbers_of_every_kind_go_through_json():
    row = {"a": np.float32(0.1), "b": jnp.array([1, 2]), "c": jnp.bfloat16(1.5), "d": (None, True), "e": np.int64(3)}
    assert loads(dumps(row)) == {"a": float(np.float32(0.1)), "b": [1, 2], "c": 1.5, "d": [None, True], "e": 3}


def test_json_is_strict_and_keeps_what_is_not_finite():
    text = dumps({"loss": math.nan, "worst": [math.inf, -jnp.inf]})
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": "nan", "worst": ["inf", "-inf"]}
    again = loads(text)
    assert math.isnan(again["loss"])
    assert again["worst"] == [math.inf, -math.inf]
    with pytest.raises(ValueError, match="NaN is not JSON"):
        loads('{"loss": NaN}')


def test_what_has_no_place_in_json_is_refused():
    with pytest.raises(TypeError, match="set has no place in JSON"):
        dumps({"a": {1}})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{\n "a": 1,\n}', "line 3 column 1"),
        (b"\xff", "can't decode byte"),
        (b'{"a": Infinity}', "Infinity is not JSON"),
        (b"[" * 100_000, "too many lists"),
    ],
)
def test_broken_json_says_where(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"config.json cannot be read: .*{reason}"):
        read_json(path)


def test_json_files_end_in_a_newline(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": math.inf})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "inf"\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": math.inf}


def test_journal_goes_back_to_its_mark(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert journal.read(path) == []
    journal.append(path, {"step": 1})
    end = journal.mark(path)
    journal.append(path, {"step": 2})
    with path.open("ab") as file:
        file.write(b'{"step": 3')
    assert journal.read(path) == [{"step": 1}, {"step": 2}]
    journal.cut(path, end)
    assert path.read_bytes() == b'{"step": 1}\n'
    for wrong in (end - 1, end + 1):
        with pytest.raises(InputError, match="changed by hand"):
            journal.cut(path, wrong)
    journal.cut(path, 0)
    assert path.read_bytes() == b""


def test_journal_names_a_broken_line(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"step": 1}\n{"step": }\n')
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2, cannot be read"):
        journal.read(tmp_path / "rows.jsonl")
