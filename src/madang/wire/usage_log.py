"""Framing of the usage log: how events lie in a segment file, and how a torn tail is told from a whole record.

Owns the format: an 8-byte magic, then records of `length u32 LE, crc32 u32 LE, payload`. The payload is one
UsageEvent in msgpack. Refuses to open files: the gateway worker appends, the site process imports.
"""

import struct
import zlib

import msgspec

from madang.core import Rejected
from madang.model import UsageEvent

MAGIC = b"MDGUSE1\n"
RECORD_BYTES_MAX = 64 * 1024
_HEAD = struct.Struct("<II")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UsageEvent)


def encode_record(event: UsageEvent) -> bytes:
    """Return the framed record of an event."""
    payload = _encoder.encode(event)
    assert len(payload) <= RECORD_BYTES_MAX
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def decode_records(data: bytes) -> tuple[list[UsageEvent], int]:
    """Return the whole records at the start of `data` and how many bytes they take.

    What follows is a record that is still being written, or the torn tail of a crash. Raises Rejected when a
    record is complete in length and wrong in content, which no crash of the writer explains.
    """
    events: list[UsageEvent] = []
    offset = 0
    while offset + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, offset)
        end = offset + _HEAD.size + length
        if length > RECORD_BYTES_MAX:
            raise Rejected(f"usage record at byte {offset} claims {length} bytes, over {RECORD_BYTES_MAX}")
        if end > len(data):
            break
        payload = data[offset + _HEAD.size : end]
        if zlib.crc32(payload) != crc:
            if end == len(data):
                break
            raise Rejected(f"usage record at byte {offset} fails its checksum")
        try:
            events.append(_decoder.decode(payload))
        except msgspec.MsgspecError as error:
            raise Rejected(f"usage record at byte {offset} is not a usage event: {error}") from error
        offset = end
    return events, offset
