"""Four data sets of two classes from the LIBSVM collection (Chang and Lin 2011): a9a, w8a, mushrooms and ijcnn1."""

import bz2
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

import numpy as np

from metabilevel import data

FEATURES = {"a9a": 123, "w8a": 300, "mushrooms": 112, "ijcnn1": 22}
_BROKEN = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, LZMAError)


def examples() -> data.Arrays:
    """For every data set and part, such as `a9a_train` and `a9a_test`: `..._inputs` [n, d] and `..._labels` [n].

    Inputs are uint8 where all are 0 or 1, and float64 in ijcnn1; mushrooms has no test part. The label, uint8, is 1
    for the larger of the file's two labels. They come out of the official files, downloaded where they are missing,
    or out of the packed ones where only these are there.

    **Raises:** `DataError`, as `data.load` does.
    """
    return data.load(PACKED if data.status(LIBSVM).packed_serves else LIBSVM)


def read(files: tuple[Path, ...]) -> data.Arrays:
    """The arrays out of official files `<name>`, `<name>.t`, with lines `label index:value index:value ...`.

    Indices begin at 1, and what is left out is 0; a file may be compressed (`.bz2`).

    **Raises:** `DataError` that names the file which cannot be read.
    """
    arrays = {}
    for path in files:
        name, *endings = path.name.split(".")
        part = f"{name}_{'test' if 't' in endings else 'train'}"
        try:
            with (bz2.open if "bz2" in endings else open)(path, "rt", encoding="ascii") as stream:
                rows = [line.split() for line in stream]
            inputs, labels = np.zeros((len(rows), FEATURES[name])), np.array([float(row[0]) for row in rows])
            for filled, (_, *entries) in zip(inputs, rows, strict=True):
                for index, value in (entry.split(":") for entry in entries):
                    filled[int(index) - 1] = float(value)
            if len(np.unique(labels)) != 2:
                raise ValueError(f"it has {len(np.unique(labels))} labels, where 2 are wanted")
        except _BROKEN as error:
            raise data.DataError(f"{path} is no LIBSVM file of {name}: {error}.") from error
        arrays |= _part(part, inputs, labels)
    return arrays


def unpack(files: tuple[Path, ...]) -> data.Arrays:
    """The arrays out of packed files.

    Features that are all 0 or 1 are kept as rows of a sparse matrix (`indptr`, `indices`); ijcnn1 as the number of
    the one of its first ten features that is 1 (`onehot`), and the others in millionths (`x_micro_T`).

    **Raises:** `DataError` that names the file which cannot be read.
    """
    arrays = {}
    for path in files:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
                for part in ("train", "test"):
                    if f"{part}_y" not in packed:
                        continue
                    if f"{part}_onehot" in packed:
                        one_hot, rest = np.eye(10)[packed[f"{part}_onehot"]], packed[f"{part}_x_micro_T"].T / 1e6
                        inputs = np.concatenate([one_hot, rest], 1)
                    else:
                        sizes = np.diff(packed[f"{part}_indptr"])
                        inputs = np.zeros((len(sizes), FEATURES[path.stem]))
                        inputs[np.repeat(np.arange(len(sizes)), sizes), packed[f"{part}_indices"]] = 1
                    arrays |= _part(f"{path.stem}_{part}", inputs, packed[f"{part}_y"])
        except _BROKEN as error:
            raise data.DataError(f"{path} has no packed LIBSVM data: {error}.") from error
    return arrays


def _part(name: str, inputs: np.ndarray, labels: np.ndarray) -> data.Arrays:
    binary = ((inputs == 0) | (inputs == 1)).all()
    inputs = inputs.astype(np.uint8) if binary else inputs
    return {f"{name}_inputs": inputs, f"{name}_labels": (labels == labels.max()).astype(np.uint8)}


_CITATION = "Chang and Lin (2011), LIBSVM: a library for support vector machines, ACM TIST 2(3), 27:1-27:27"
_LICENCE = "a9a and mushrooms: CC BY 4.0 (UCI Adult, UCI Mushroom); w8a and ijcnn1: none stated"
_ADDRESS = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary"
_SHA256 = {
    "a9a_train_inputs": "2ba1fbe6cbaddf7db06b6461bed9d9c2d2b992ef80b22afef0c38b74d043cacf",
    "a9a_train_labels": "d6f3e8270a881d3d8b8bd73fa63df77ca532bf29210d75b6363de20dba799bd9",
    "a9a_test_inputs": "52e4db862fe67459c5e93d4aa8b79a53e1a8f21168b97bd77fc041de4a52235a",
    "a9a_test_labels": "d5115e3f04de5d3d4653a886b2cea3a9c79cff1908e74ca9a1fa2960e19582ec",
    "w8a_train_inputs": "143f86d4a3f6336155793679493e61851c625e2d2941debba4ba96bf8e723439",
    "w8a_train_labels": "4a014b54a2801f5eb0284e4cfed90503b45deb15228762eb1073985704e57bd9",
    "w8a_test_inputs": "41849bdd92f64160bd7966c5f3881a3102117cabe19c6b1dd61d2192cd984922",
    "w8a_test_labels": "4df884849ad70dba660774a3003b9045d3e0163e6a207567267abe4fb1adc411",
    "mushrooms_train_inputs": "e17ec03192903a6487d0118ea4e920066742320344b22f58a13931d2b62a13fa",
    "mushrooms_train_labels": "0d06c43887c5d3810e4ff7a40642776d867d725b14e934a82c49212dddc8078d",
    "ijcnn1_train_inputs": "d4dbf7fcb571ff149f28226c842357ea01f494bf9294d2d0d294eb5d76a47e51",
    "ijcnn1_train_labels": "f49b05b641300865b81cf59e5962e0acd59befd0a77893f25652420edc897819",
    "ijcnn1_test_inputs": "6ec962200dd14262d1e63ce4d6a38a946fc57c5af100c9124e041c40df69c70d",
    "ijcnn1_test_labels": "8e8e98c8a84f9ff00c4793d6d8ba4ed6517ad8183f8c198be28c3c6e1d020848",
}

PACKED = data.DataSet(
    name="libsvm",
    files=tuple(
        data.RemoteFile(name, "", f"sha256:{sha256}")
        for name, sha256 in {
            "a9a.npz": "475c0daaf4129725bf591e9f8ac3f845ce4ce64eba1ba377823f9d4981e129bc",
            "w8a.npz": "07cef5776aa4f52078f3217831d088dc886d84efd2c365a2d3331eac98dc947f",
            "mushrooms.npz": "1678ce9c535b0ccd53d73473dd8a596ea2e067feb746d5c4eeafa0c958b24a3d",
            "ijcnn1.npz": "33aa1f582866b6724525c05396fc4b0e4d20335c741eebcd654d77e6b6aa6c6e",
        }.items()
    ),
    build=unpack,
    sha256=_SHA256,
    cache=None,
    licence=_LICENCE,
    citation=_CITATION,
)
LIBSVM = data.DataSet(
    name="libsvm",
    files=tuple(
        data.RemoteFile(name, f"{_ADDRESS}/{name}", f"md5:{md5}")
        for name, md5 in {
            "a9a": "fb3596510d780aaf76a06dc721d49662",
            "a9a.t": "f0bb16cf1ee3e80ff560e9d132ee647e",
            "w8a": "05cdbfad8de0af3887c0e6f42fddc32b",
            "w8a.t": "938543adbdc198246247d5d2015f01e8",
            "mushrooms": "2a52251de564d72e772b25211a84f5f8",
            "ijcnn1.bz2": "c3e9162f8e38e0b6c0e02d313a59de2b",
            "ijcnn1.t.bz2": "66433ab8089acee9e56dc61ac89a2fe2",
        }.items()
    ),
    build=read,
    sha256=_SHA256,
    cache="libsvm.npz",
    licence=_LICENCE,
    citation=_CITATION,
    packed=PACKED,
)
