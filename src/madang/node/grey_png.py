"""Many grey pictures in PNG at once (ISO/IEC 15948): all of one size, 8 bits, not interlaced.

Owns the decoding, for data sets that recipes read. Refuses every other kind of PNG by name. Filters are undone for all
pictures together, row by row, so that two thousand of them take seconds where one by one would take many minutes.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from madang.core import Rejected

Pixels = NDArray[np.uint8]
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">IIBBBBB")
_GREY_8 = (8, 0, 0, 0, 0)
"""Bit depth, colour type, compression, filter method, interlace method."""
_FILTERS = 5
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4


def read_greys(files: Sequence[bytes], check_wanted: Callable[[], None] = lambda: None) -> Pixels:
    """Return pictures as (picture, row, column); raises Rejected naming which is no grey picture of the first's size.

    Args:
        files: whole PNG files, at least one.
        check_wanted: called for each row; may raise.
    """
    width, height, _ = _open(files[0], 0)
    lines = np.empty((len(files), height, width + 1), np.uint8)
    for number, data in enumerate(files):
        *size, packed = _open(data, number)
        if size != [width, height]:
            raise Rejected(f"picture {number}: expected {width} x {height} pixels, found {size[0]} x {size[1]}")
        raw = zlib.decompress(packed)
        if len(raw) != height * (width + 1):
            raise Rejected(f"picture {number}: its pixels are {len(raw)} bytes, expected {height * (width + 1)}")
        lines[number] = np.frombuffer(raw, np.uint8).reshape(height, width + 1)
    if int(lines[:, :, 0].max()) >= _FILTERS:
        raise Rejected("a picture names a filter that PNG does not have")
    pixels = np.empty((len(files), height, width), np.uint8)
    above = np.zeros((len(files), width), np.uint8)
    for row in range(height):
        check_wanted()
        above = pixels[:, row] = _unfilter(lines[:, row, 0], lines[:, row, 1:], above)
    return pixels


def _open(data: bytes, number: int) -> tuple[int, int, bytes]:
    """Return width, height and the compressed lines of a file."""
    if not data.startswith(_SIGNATURE):
        raise Rejected(f"picture {number} is no PNG")
    chunks = list(_chunks(data))
    width, height, *kind = _HEAD.unpack(chunks[0][1])
    if chunks[0][0] != b"IHDR" or tuple(kind) != _GREY_8:
        raise Rejected(f"picture {number}: expected 8 bits of grey, not interlaced")
    return width, height, b"".join(body for name, body in chunks if name == b"IDAT")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    offset = len(_SIGNATURE)
    while offset + 12 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        yield data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        offset += 12 + length


def _unfilter(filters: Pixels, line: Pixels, above: Pixels) -> Pixels:
    """Return one row of every picture; each has a filter of its own (section 9)."""
    found = line.copy()
    is_sub, is_up = filters == _SUB, filters == _UP
    found[is_sub] = np.cumsum(line[is_sub], axis=1, dtype=np.uint8)
    found[is_up] = line[is_up] + above[is_up]
    for kind, predict in ((_AVERAGE, _average), (_PAETH, _paeth)):
        which = filters == kind
        if which.any():
            found[which] = _along(line[which], above[which], predict)
    return found


Signed = NDArray[np.int16]


def _along(line: Pixels, above: Pixels, predict: Callable[[Signed, Signed, Signed], Signed]) -> Pixels:
    """Undo a filter that looks at the pixel to the left, column by column for all pictures."""
    given, up = line.T.astype(np.int16), above.T.astype(np.int16)
    found = np.empty_like(given)
    left = corner = np.zeros(given.shape[1], np.int16)
    for column in range(len(given)):
        left = found[column] = (given[column] + predict(left, up[column], corner)) & 0xFF
        corner = up[column]
    return found.T.astype(np.uint8)


def _average(left: Signed, up: Signed, _corner: Signed) -> Signed:
    return (left + up) >> 1


def _paeth(left: Signed, up: Signed, corner: Signed) -> Signed:
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    other = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, other)
