"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of 28 x 28 pixels, 10 classes."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from metabilevel import data

_UINT8 = bytes([0, 0, 8])  # how an idx file of unsigned bytes begins


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzipped idx file of unsigned bytes.

    The file has two zeros, the code 8 of the type, the number of axes d, d sizes (32 bits each, the highest byte
    first), and the values, the last axis running fastest.

    **Raises:** `DataError` that names the file and what is wrong with it.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read()
        if content[:3] != _UINT8 or len(content) < 4:
            raise ValueError(f"it begins with {content[:4].hex(' ') or 'nothing'}")
        start = 4 + 4 * content[3]
        shape = np.frombuffer(content, ">u4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise data.DataError(f"{path} is no gzipped idx file of unsigned bytes: {error}.") from error


def read(files: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """`train_images` [60000, 28, 28], `train_labels` [60000], `test_images`, `test_labels`: uint8, in official order.

    **Raises:** `DataError`, as `read_idx` does.
    """
    return dict(zip(("train_images", "train_labels", "test_images", "test_labels"), map(read_idx, files), strict=True))


def _data_set(name: str, address: str, md5: tuple[str, str, str, str], licence: str, citation: str) -> data.DataSet:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    files = tuple(
        data.RemoteFile(f"{file}-ubyte.gz", f"{address}/{file}-ubyte.gz", f"md5:{checksum}")
        for file, checksum in zip(names, md5, strict=True)
    )
    return data.DataSet(name, files, read, sha256={}, cache=None, licence=licence, citation=citation)


MNIST = _data_set(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist",  # a mirror: the authors' own page no longer gives the files
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    licence="CC BY-SA 3.0, (c) Yann LeCun and Corinna Cortes",
    citation="LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition, "
    "Proceedings of the IEEE 86(11), 2278-2324",
)
FASHION_MNIST = _data_set(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    licence="MIT, (c) 2017 Zalando SE",
    citation="Xiao, Rasul and Vollgraf (2017), Fashion-MNIST: a novel image dataset for benchmarking machine learning "
    "algorithms, arXiv:1708.07747",
)
