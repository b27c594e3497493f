"""The 24 photographs of the Kodak PhotoCD at half their size, and four paintings."""

from pathlib import Path

import numpy as np

from metabilevel import data

from .cifar_data import BROKEN, decode

PAINTINGS = ("starry_night", "the_scream", "shipwreck_of_the_minotaur", "great_wave")


def unpack(files: tuple[Path, ...]) -> data.Arrays:
    """`landscape` [18, 256, 384, 3], `portrait` [6, 384, 256, 3] and `paintings` [4, 256, 256, 3], RGB, with the Kodak
    numbers `landscape_number` [18] and `portrait_number` [6]; all uint8. Paintings come in the order of `PAINTINGS`.

    **Raises:** `DataError` that names the file which cannot be read.
    """
    photographs, styles = files
    arrays, path = {}, photographs
    try:
        with photographs.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
            for way in ("landscape", "portrait"):
                arrays[way] = decode(packed[way])
                arrays[f"{way}_number"] = packed[f"{way}_id"].astype(np.uint8)
        path = styles
        with styles.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
            arrays["paintings"] = decode(packed["residual"])
            if (names := tuple(packed["name"])) != PAINTINGS:
                raise ValueError(f"it has the paintings {', '.join(names)}")
    except BROKEN as error:
        raise data.DataError(f"{path} has no packed pictures: {error}") from error
    return arrays


PHOTOS = data.DataSet(
    name="photos",
    files=tuple(
        data.RemoteFile(name, "", f"sha256:{sha256}")  # at this size, and in this form, nobody publishes them
        for name, sha256 in {
            "kodak_half.npz": "1064cfc9b68e6446fbf36209169b1b8c6a4be6e5d6e8128e0de2e7b986b2da23",
            "styles.npz": "5a03aef9cef526699252ec96770e15ce79cb7843f136a7db33aa49eab9b35d6c",
        }.items()
    ),
    build=unpack,
    sha256={
        "landscape": "6747f83011307622fc9e782e94c155e256115f09a33607593654fe13e3f0ab4f",
        "landscape_number": "1fd006d45dcb8b95772283c89f30a15f90bb6578e1074e3d38285b6d37b74b10",
        "portrait": "f1582f48aa7888400c4797846c08499481de815d7e010a7998a4c882e151ae2b",
        "portrait_number": "503c2dc75049531a9fc35d445d25813bf83840fe4db3823adeb5fe6a05a0f049",
        "paintings": "b33dd64d2258da843b76626aa37dbba682fa33474e123df1aae565585f3f349a",
    },
    cache=None,
    licence="photographs: released by the Eastman Kodak Company for unrestricted usage; paintings: public domain",
    citation="Kodak Lossless True Color Image Suite (PhotoCD PCD0992), halved by 2 x 2 averaging; van Gogh (1889), "
    "The Starry Night; Munch (1893), The Scream; Turner (c. 1810), The Wreck of a Transport Ship; Hokusai (c. 1831), "
    "The Great Wave off Kanagawa",
)
