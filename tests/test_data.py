"""The store of data sets, on made-up files and a server on this machine."""

import hashlib
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from metabilevel import data, registry
from metabilevel.data import DataError, DataSet, RemoteFile

CONTENT = bytes(range(256)) * 40
ARRAY = np.frombuffer(CONTENT, np.uint8).reshape(-1, 16)


def build(paths: tuple[Path, ...]) -> dict[str, np.ndarray]:
    return {"bytes": np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8).reshape(-1, 16)}


def made_up(address: str, names: tuple[str, ...] = ("one.bin",), content: bytes = CONTENT) -> DataSet:
    """A data set of which every file has `content`, and whose arrays are right if the first alone is taken."""
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    return DataSet(
        name="made-up",
        files=tuple(RemoteFile(name, f"{address}/{name}", checksum) for name in names),
        build=lambda paths: build(paths[:1]),
        sha256={"bytes": data.digest(ARRAY)},
        cache="made-up.npz",
        licence="none",
        citation="none",
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; and the loopback device is asked without a proxy."""
    monkeypatch.setenv("METABILEVEL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "data" / "made_up"


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nobody listens, kept from others while the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address with `*.bin`, whole; `*.wrong`, altered; `*.cut`, cut short; and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            kind = self.path.rpartition(".")[2]
            answers = {"bin": CONTENT, "wrong": CONTENT[::-1], "cut": CONTENT[:100]}
            self.send_response(200 if kind in answers else 404)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(answers.get(kind, b""))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{opened.server_port}", asked
        opened.shutdown()
        thread.join()


def put(folder: Path, **files: bytes) -> dict[str, bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_missing_files_are_downloaded_once_and_their_arrays_kept(folder, server):
    address, asked = server
    dataset = made_up(address, ("one.bin", "two.bin"))
    assert not data.status(dataset).ready
    np.testing.assert_array_equal(data.load(dataset)["bytes"], ARRAY)
    assert contents(folder).keys() == {"one.bin", "two.bin", "made-up.npz"}
    assert (folder / "one.bin").stat().st_mode & 0o777 == 0o644
    np.testing.assert_array_equal(data.load(dataset)["bytes"], ARRAY)
    assert data.fetch(dataset).ready
    assert asked == ["/one.bin", "/two.bin"]


def test_only_what_is_missing_is_downloaded(folder, server):
    address, asked = server
    put(folder, one_bin=CONTENT)
    data.load(made_up(address, ("one.bin", "two.bin")))
    assert asked == ["/two.bin"]


def test_nothing_is_written_to_the_terminal_when_there_is_none(folder, server, capfd):
    data.load(made_up(server[0]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("there", ["the files", "the cache"])
def test_no_network_is_needed_for_what_is_there(folder, closed, there):
    put(folder, **({"one_bin": CONTENT} if there == "the files" else {"made-up_npz": npz(bytes=ARRAY)}))
    dataset = made_up(closed)
    assert data.status(dataset).ready
    np.testing.assert_array_equal(data.load(dataset)["bytes"], ARRAY)


def test_no_network_is_one_clear_error(folder, closed):
    with pytest.raises(DataError) as raised:
        data.load(made_up(closed))
    first, second = str(raised.value).splitlines()
    assert first == f"{closed}/one.bin cannot be downloaded (ConnectionError)."
    assert str(folder / "one.bin") in second
    assert second.endswith("metabilevel data fetch made-up")
    assert contents(folder) == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("one.wrong", "checksum is not md5:"), ("one.cut", "cannot be downloaded"), ("one.none", "HTTP status 404")],
)
def test_a_bad_download_is_not_kept(folder, server, name, reason):
    with pytest.raises(DataError, match=f"{server[0]}/{name} .*{reason}"):
        data.load(made_up(server[0], (name,)))
    assert contents(folder) == {}


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[::-1], b""])
def test_a_wrong_file_is_an_error_and_stays(folder, server, content):
    address, asked = server
    before = put(folder, two_bin=content)
    dataset = made_up(address, ("one.bin", "two.bin"))
    with pytest.raises(DataError) as raised:
        data.load(dataset)
    found, expected = hashlib.md5(content).hexdigest(), hashlib.md5(CONTENT).hexdigest()
    for text in (str(folder / "two.bin"), found, expected, f"{len(content):,} bytes", "data fetch made-up"):
        assert text in str(raised.value)
    assert contents(folder) == before
    assert asked == []


def test_what_is_no_file_is_an_error_and_stays(folder, server):
    (folder / "one.bin").mkdir(parents=True)
    with pytest.raises(DataError, match=r"one\.bin cannot be read"):
        data.load(made_up(server[0]))
    assert [path.name for path in folder.rglob("*")] == ["one.bin"]


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, bytes=np.array([{"a": 1}], dtype=object))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(npz(bytes=ARRAY)[:-40], id="truncated"),
        pytest.param(b"", id="empty"),
        pytest.param(npz(other=ARRAY), id="no such array"),
        pytest.param(npz(bytes=ARRAY + np.uint8(1)), id="other values"),
        pytest.param(npz(bytes=ARRAY.astype(np.int16)), id="other type"),
        pytest.param(npz(bytes=ARRAY.reshape(16, -1)), id="other shape"),
        pytest.param(pickled(), id="pickled"),
    ],
)
def test_a_wrong_cache_is_an_error_and_stays(folder, closed, content):
    before = put(folder, **{"made-up_npz": content})
    dataset = made_up(closed)
    with pytest.raises(DataError, match=r"made-up\.npz is truncated or altered"):
        data.load(dataset)
    assert contents(folder) == before
    checked = data.verify(dataset)
    assert checked.cache is not None
    assert (checked.cache.state, checked.ready) == ("corrupt", False)


def test_a_flipped_byte_in_a_cache_changes_no_array(folder, closed):
    whole = npz(bytes=ARRAY)
    for position in range(0, len(whole), 3):
        put(folder, **{"made-up_npz": whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :]})
        with suppress(DataError):  # the date of a member, say, does not matter
            np.testing.assert_array_equal(data.load(made_up(closed))["bytes"], ARRAY)


def test_status_looks_and_verify_reads(folder, closed):
    dataset = made_up(closed, ("one.bin", "two.bin", "three.bin"))
    put(folder, one_bin=CONTENT, two_bin=CONTENT[:-1])
    seen, checked = data.status(dataset), data.verify(dataset)
    assert [file.state for file in seen.files] == ["present", "present", "missing"]
    assert [file.state for file in checked.files] == ["verified", "corrupt", "missing"]
    assert [file.size for file in checked.files] == [len(CONTENT), len(CONTENT) - 1, None]
    assert "two.bin is truncated or altered" in checked.files[1].problem
    assert seen.cache == checked.cache == data.FileStatus(folder / "made-up.npz", "missing")
    assert not checked.ready


def test_a_packed_part_serves_where_it_alone_is_there(folder, closed):
    part = replace(made_up(closed, ("part.bin",)), cache=None)
    dataset = replace(made_up(closed), packed=part)
    assert not data.status(dataset).packed_serves
    put(folder, part_bin=CONTENT)
    checked = data.verify(dataset)
    assert (checked.ready, checked.packed_serves) == (False, True)
    assert checked.packed is not None
    assert [file.state for file in checked.packed.files] == ["verified"]
    put(folder, one_bin=CONTENT)
    assert (data.status(dataset).ready, data.status(dataset).packed_serves) == (True, False)


def test_a_folder_that_cannot_be_written_is_named(folder, server):
    folder.parent.write_text("a file, where a folder is wanted")
    with pytest.raises(DataError, match=r"one\.bin cannot be written: Not a directory"):
        data.load(made_up(server[0]))


def test_a_cache_that_cannot_be_kept_is_a_warning(folder, server):
    dataset = replace(made_up(server[0]), cache="n" * 251 + ".npz")  # a longer name than a temporary file may have
    with pytest.warns(UserWarning, match="is not kept"):
        np.testing.assert_array_equal(data.load(dataset)["bytes"], ARRAY)
    assert contents(folder).keys() == {"one.bin"}


def test_files_that_are_read_wrongly_are_not_kept(folder, server):
    dataset = replace(made_up(server[0]), build=lambda paths: {"bytes": ARRAY[::-1]})
    with pytest.raises(DataError, match="read wrongly"):
        data.load(dataset)
    assert contents(folder).keys() == {"one.bin"}


def test_the_data_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METABILEVEL_DATA", "~/here")
    assert data.data_folder() == tmp_path / "here"
    for unset in (lambda: monkeypatch.setenv("METABILEVEL_DATA", ""), lambda: monkeypatch.delenv("METABILEVEL_DATA")):
        unset()
        assert data.data_folder().is_relative_to(tmp_path)
        assert "metabilevel" in data.data_folder().parts


def test_every_registered_data_set_is_one_and_needs_no_jax():
    code = """
import sys
from metabilevel import data, registry
for entry in registry.entries(registry.DATA):
    dataset = registry.load(registry.DATA, entry.qualified)
    assert isinstance(dataset, data.DataSet) and dataset.name == entry.name, entry
    data.status(dataset)
assert "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "omniglot" in [entry.name for entry in registry.entries(registry.DATA)]
