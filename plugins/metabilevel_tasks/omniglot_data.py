"""Omniglot: 1,623 characters of 50 alphabets, each drawn once by 20 people (Lake et al. 2015), in 28 x 28 pixels."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from metabilevel import data

CHARACTERS, DRAWINGS, SIDE, ORIGINAL_SIDE = 1623, 20, 28, 105
_MEMBER = re.compile(r"[^/]+/[^/]+/character\d\d/(\d{4})_(\d\d)\.png")  # archive/alphabet/characterNN/ID_DRAWING.png
_LARGEST = 1 << 14  # bytes; the largest drawing has about 500
_BROKEN = (  # what zipfile and Pillow raise
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)


def drawings(archive: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    """Every drawing of an official archive: character and drawing, from 0, and the image, bool [105, 105], ink true.

    Both numbers are those of the file's name less one. Nothing is unpacked to disk; other members are passed by.

    **Raises:** `DataError` that names the archive and the member which cannot be read.
    """
    member = ""
    try:
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if match := _MEMBER.fullmatch(member := info.filename):
                    yield int(match[1]) - 1, int(match[2]) - 1, _decoded(opened, info)
    except _BROKEN as error:
        raise data.DataError(f"{archive} is not an archive of Omniglot drawings: {member} {error}") from error


def _decoded(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.file_size > _LARGEST:
        raise ValueError(f"has {info.file_size:,} bytes")
    with Image.open(io.BytesIO(archive.read(info)), formats=["PNG"]) as image:
        if (image.mode, image.size) != ("1", (ORIGINAL_SIDE, ORIGINAL_SIDE)):
            raise ValueError(f"is an image of mode {image.mode!r} and size {image.size}")
        return ~np.asarray(image)


def shrink(image: np.ndarray) -> np.ndarray:
    """[..., 105, 105] to [..., 28, 28] by the nearest neighbour: row i is row floor((i + 1/2) 105 / 28).

    Finn et al.'s script asks Pillow for Lanczos, which Pillow passes over in silence for images of one bit.
    """
    nearest = ((np.arange(SIDE) + 0.5) * ORIGINAL_SIDE / SIDE).astype(int)
    return image[..., nearest[:, None], nearest]


def pack(archives: tuple[Path, ...]) -> dict[str, np.ndarray]:
    """`bits`, uint8 [1623, 20, 98]: the 784 pixels of every drawing, packed as by `numpy.packbits`, ink = 1.

    **Raises:** `DataError` if a drawing is missing, or as `drawings` does.
    """
    bits = np.zeros((CHARACTERS, DRAWINGS, SIDE * SIDE // 8), np.uint8)
    found = np.zeros((CHARACTERS, DRAWINGS), bool)
    for archive in archives:
        for character, drawing, image in drawings(archive):
            if not (0 <= character < CHARACTERS and 0 <= drawing < DRAWINGS):
                raise data.DataError(f"{archive} has a drawing {drawing + 1} of a character {character + 1}.")
            bits[character, drawing] = np.packbits(shrink(image))
            found[character, drawing] = True
    if not found.all():
        names = " and ".join(archive.name for archive in archives)
        raise data.DataError(f"{names} have {found.sum():,} of the {found.size:,} drawings of Omniglot.")
    return {"bits": bits}


def quarter_turns(bits: np.ndarray, turns: int) -> np.ndarray:
    """Packed drawings [...] after 0, 1, ..., turns - 1 quarter turns, counterclockwise: [turns, ...]."""
    images = np.unpackbits(bits, axis=-1).reshape(*bits.shape[:-1], SIDE, SIDE)
    turned = (np.rot90(images, turn, (-2, -1)).reshape(*bits.shape[:-1], -1) for turn in range(turns))
    return np.stack([np.packbits(pixels, axis=-1) for pixels in turned])


_ADDRESS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"

OMNIGLOT = data.DataSet(
    name="omniglot",
    files=tuple(
        data.RemoteFile(name, f"{_ADDRESS}/{name}", f"md5:{md5}")
        for name, md5 in {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        }.items()
    ),
    build=pack,
    sha256={"bits": "af5c0a11a8b1d6f7db5ff79ec0ae99e3ad7abc790ea266dfc051c572daf5db6e"},
    cache="omniglot28.npz",
    licence="MIT, (c) 2015 Brenden Lake",
    citation="Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning through probabilistic program "
    "induction, Science 350(6266), 1332-1338",
)
