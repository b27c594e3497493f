"""20 newsgroups by date (Lang 1995): 11,314 posts for training and 7,532 for the test, as counts of their words."""

import re
import tarfile
import zipfile
import zlib
from collections import Counter
from lzma import LZMAError
from operator import itemgetter
from pathlib import Path

import numpy as np

from metabilevel import data

_MEMBER = re.compile(r"20news-bydate-(train|test)/([^/]+)/(\d+)")  # folder/group/number
_WORD = re.compile(r"\b\w\w+\b")
_BROKEN = (
    OSError, ValueError, LookupError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error,
    LZMAError,
)  # fmt: skip


def counts() -> data.Arrays:
    """Of each part, such as `train`, the posts one after another, as rows of a sparse matrix.

    `train_starts` int32 [posts + 1] says where a post begins; `train_words` int32 and `train_counts` int16, which
    words it has, in ascending order, and how often; `train_labels` uint8 [posts], of which group it is. Groups are in
    the order of their names, posts in that of group and number (as texts). Words are those of the training posts,
    headers included, in the order of the alphabet: two letters, digits or underscores at least, in lower case.

    They come out of the official archive, downloaded where it is missing, or out of the packed file where this alone
    is there.

    **Raises:** `DataError`, as `data.load` does.
    """
    return data.load(PACKED if data.status(NEWSGROUPS).packed_serves else NEWSGROUPS)


def read(files: tuple[Path, ...]) -> data.Arrays:
    """The arrays, as `counts` gives them, out of the official archive.

    **Raises:** `DataError` that names the archive and what is wrong with it.
    """
    (path,) = files
    posts: dict[str, list[tuple[str, str, Counter[str]]]] = {"train": [], "test": []}
    try:
        with tarfile.open(path) as opened:
            for info in opened:
                stream = opened.extractfile(info)
                if stream and (match := _MEMBER.fullmatch(info.name)):
                    part, group, number = match.groups()
                    text = stream.read().decode("latin-1").lower()
                    posts[part].append((group, number, Counter(_WORD.findall(text))))
        for part, found in posts.items():
            if not found:
                raise ValueError(f"it has no posts of 20news-bydate-{part}")
            found.sort(key=itemgetter(0, 1))
    except _BROKEN as error:
        raise data.DataError(f"{path} is no archive of 20 newsgroups: {error}.") from error
    groups = sorted({group for group, *_ in posts["train"]})
    vocabulary = sorted(set().union(*(words for *_, words in posts["train"])))
    column = {word: i for i, word in enumerate(vocabulary)}
    arrays = {}
    for part, found in posts.items():
        rows = [sorted((column[word], n) for word, n in words.items() if word in column) for *_, words in found]
        entries = np.array([entry for row in rows for entry in row])
        arrays |= {
            f"{part}_starts": np.cumsum([0, *map(len, rows)]).astype(np.int32),
            f"{part}_words": entries[:, 0].astype(np.int32),
            f"{part}_counts": entries[:, 1].astype(np.int16),
            f"{part}_labels": np.array([groups.index(group) for group, *_ in found], np.uint8),
        }
    return arrays


def unpack(files: tuple[Path, ...]) -> data.Arrays:
    """The arrays, as `counts` gives them, out of the packed file, which has steps from word to word (`delta`).

    **Raises:** `DataError` that names the file if it cannot be read.
    """
    (path,) = files
    arrays = {}
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
            for part in ("train", "test"):
                starts, sums = packed[f"{part}_indptr"], np.cumsum(packed[f"{part}_delta"], dtype=np.int64)
                before = np.concatenate([[0], sums])[starts[:-1]]
                arrays |= {
                    f"{part}_starts": starts,
                    f"{part}_words": (sums - np.repeat(before, np.diff(starts))).astype(np.int32),
                    f"{part}_counts": packed[f"{part}_count"],
                    f"{part}_labels": packed[f"{part}_y"],
                }
    except _BROKEN as error:
        raise data.DataError(f"{path} has no packed posts of 20 newsgroups: {error}.") from error
    return arrays


_LICENCE = "none stated"
_CITATION = "Lang (1995), NewsWeeder: learning to filter netnews, ICML, 331-339"

PACKED = data.DataSet(
    name="newsgroups",
    files=(
        data.RemoteFile(
            "news20_counts.npz", "", "sha256:f5e4a5d3382c7ff568aa4927c93c3861461bc579f79b582335aa291fbba16752"
        ),
    ),
    build=unpack,
    sha256={
        "train_starts": "c636f8d802aa1add7e51cd7dfe15bdd425a0c61ca82007120daec43a53b196d3",
        "train_words": "3e09ad0cfda0b89291f4e519885399f91a4d9424d49579ffebb59206c1e8552c",
        "train_counts": "bab04f7531db69c20e06f4c153884469879050e5f1309072389fc12f24e27849",
        "train_labels": "43f6dc0cc3ee02df0f48ebc9586abc4d03a0a4153efdd6692f38bb5babd37397",
        "test_starts": "67fad9255447d65d7c48daf83e1b2e11abe3106b8b5b1ca4bfa1d5c6cab75a6b",
        "test_words": "4b4c062f1d26eb65300f8100e63424c96df516691cd7261549309bb054210035",
        "test_counts": "912e573d87563ecffc1b57955a4d7aff848e75c5196cb162f0c552bbeafc5d36",
        "test_labels": "66cec66b8037af16e7d0fb1d7ab8eaedb7996d8f0a0178c2ba556c7ee0bb8915",
    },
    cache=None,
    licence=_LICENCE,
    citation=_CITATION,
)
NEWSGROUPS = data.DataSet(
    name="newsgroups",
    files=(
        data.RemoteFile(
            "20news-bydate.tar.gz",
            "https://ndownloader.figshare.com/files/5975967",
            "sha256:8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
        ),
    ),
    build=read,
    sha256={},  # the archive is checked whole
    cache=None,
    licence=_LICENCE,
    citation=_CITATION,
    packed=PACKED,
)
