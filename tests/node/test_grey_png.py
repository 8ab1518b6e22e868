"""Grey pictures in PNG: every filter of the standard, undone for many pictures at once."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected

np = pytest.importorskip("numpy")
from madang.node.grey_png import read_greys  # noqa: E402 - needs numpy


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def encode(pixels, filters, kind=(8, 0, 0, 0, 0)):
    """Write a picture, one byte at a time, by the formulas of the standard's section 9."""
    height, width = len(pixels), len(pixels[0])
    lines = bytearray()
    for row, (line, name) in enumerate(zip(pixels, filters, strict=True)):
        lines.append(name)
        for column, value in enumerate(line):
            left = line[column - 1] if column else 0
            up = pixels[row - 1][column] if row else 0
            corner = pixels[row - 1][column - 1] if row and column else 0
            guess = left + up - corner
            nearest = min((left, up, corner), key=lambda one: abs(guess - one))
            lines.append((value - (0, left, up, (left + up) // 2, nearest)[name]) % 256)
    head = struct.pack(">IIBBBBB", width, height, *kind)
    packed = zlib.compress(bytes(lines))
    middle = len(packed) // 2
    pieces = chunk(b"IDAT", packed[:middle]) + chunk(b"tEXt", b"a comment") + chunk(b"IDAT", packed[middle:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pieces + chunk(b"IEND", b"")


@st.composite
def pictures(draw):
    height, width, count = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    line = st.lists(st.integers(0, 255), min_size=width, max_size=width)
    picture = st.lists(line, min_size=height, max_size=height)
    filters = st.lists(st.integers(0, 4), min_size=height, max_size=height)
    return [(draw(picture), draw(filters)) for _ in range(count)]


@given(pictures())
def test_every_filter_is_undone_whatever_the_others_have(made):
    found = read_greys([encode(pixels, filters) for pixels, filters in made])
    assert found.tolist() == [pixels for pixels, _ in made]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (b"GIF89a", "picture 1 is no PNG"),
        (encode([[1, 2]], [0]), "expected 1 x 1 pixels, found 2 x 1"),
        (encode([[1]], [0], kind=(8, 2, 0, 0, 0)), "expected 8 bits of grey"),
        (encode([[1]], [0], kind=(8, 0, 0, 0, 1)), "not interlaced"),
    ],
)
def test_what_is_no_grey_picture_of_that_size_is_named(second, said):
    with pytest.raises(Rejected, match=said):
        read_greys([encode([[7]], [0]), second])
