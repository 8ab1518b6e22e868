"""Writes a GGUF file anew with its 5-bit tensors in 8 bits: the same weights in another artifact, or spoilt ones.

A block of 32 weights is a scale (FP16) and whole numbers: Q5_0 from -16 to 15, Q8_0 from -128 to 127. The numbers of
the one fit into the other, so that nothing is lost; `spoil` may change them on the way. Formats by ggml's own
`block_q5_0` and `block_q8_0`, and docs/gguf.md.
"""

import struct

import numpy as np

Q5_0, Q8_0 = 6, 8
BLOCK = 32
BYTES_OF_BLOCK = {Q5_0: 22, Q8_0: 34}
ALIGNMENT = 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9
_BLOCKS_AT_ONCE = 1 << 18


def requantise(source, target, spoil=lambda numbers: numbers):
    """Write `target`; returns how many weights were written in 8 bits."""
    data = np.memmap(source, dtype=np.uint8, mode="r")
    head = _Head(memoryview(data))
    starts = [head.data_at + offset for *_, offset in head.tensors]
    ends = [*sorted(starts)[1:], len(data)]
    end_of = dict(zip(sorted(starts), ends, strict=True))
    weights = 0
    with open(target, "wb") as output:
        output.write(bytes(head.view[: head.tensors_at]))
        output.write(_tensor_table(head, end_of, starts))
        for (_, shape, kind, _), start in zip(head.tensors, starts, strict=True):
            output.write(bytes(-output.tell() % ALIGNMENT))
            if kind != Q5_0:
                output.write(data[start : end_of[start]])
                continue
            count = int(np.prod(shape))
            weights += count
            blocks = data[start : start + count // BLOCK * BYTES_OF_BLOCK[Q5_0]].reshape(-1, BYTES_OF_BLOCK[Q5_0])
            firsts = range(0, len(blocks), _BLOCKS_AT_ONCE)
            output.writelines(_to_8_bits(blocks[first : first + _BLOCKS_AT_ONCE], spoil) for first in firsts)
        output.write(bytes(-output.tell() % ALIGNMENT))
    return weights


def _to_8_bits(blocks, spoil):
    highs = blocks[:, 2:6].copy().view("<u4")
    fifth = ((highs >> np.arange(BLOCK, dtype=np.uint32)) & 1).astype(np.uint8) << 4
    fours = np.concatenate([blocks[:, 6:] & 15, blocks[:, 6:] >> 4], axis=1)
    numbers = (fours | fifth).astype(np.int8) - np.int8(16)
    return np.concatenate([blocks[:, :2], spoil(numbers).astype(np.int8).view(np.uint8)], axis=1).tobytes()


def _tensor_table(head, end_of, starts):
    """Return names, shapes, kinds and new places, and the padding before the data."""
    table = b""
    place = 0
    for (name, shape, kind, _), start in zip(head.tensors, starts, strict=True):
        size = end_of[start] - start
        if kind == Q5_0:
            kind, size = Q8_0, int(np.prod(shape)) // BLOCK * BYTES_OF_BLOCK[Q8_0]
        place += -place % ALIGNMENT
        table += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        table += struct.pack("<IQ", kind, place)
        place += size
    return table + bytes(-(head.tensors_at + len(table)) % ALIGNMENT)


class _Head:
    """Where the table of tensors begins, what stands in it, and where the data begins."""

    def __init__(self, view):
        self.view = view
        magic, version, tensors, keys = struct.unpack_from("<4sIQQ", view, 0)
        assert (magic, version) == (b"GGUF", 3)
        self._at = 24
        for _ in range(keys):
            assert self._text() != b"general.alignment", "the usual alignment"
            self._skip(self._number("<I"))
        self.tensors_at = self._at
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.data_at = self._at + -self._at % ALIGNMENT

    def _tensor(self):
        name = self._text()
        shape = tuple(self._number("<Q") for _ in range(self._number("<I")))
        return name, shape, self._number("<I"), self._number("<Q")

    def _number(self, form):
        (value,) = struct.unpack_from(form, self.view, self._at)
        self._at += struct.calcsize(form)
        return value

    def _text(self):
        size = self._number("<Q")
        self._at += size
        return bytes(self.view[self._at - size : self._at])

    def _skip(self, kind):
        if kind == _TEXT:
            self._text()
        elif kind == _LIST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _SIZES:
                self._at += count * _SIZES[inner]
            else:
                for _ in range(count):
                    self._skip(inner)
        else:
            self._at += _SIZES[kind]
