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
FRAME_BYTES_MAX = _HEAD.size + RECORD_BYTES_MAX
"""The longest that a whole record can be, head included."""
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


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes between whole records that are none: `offset` counts from the start of what was scanned."""

    offset: int
    size_bytes: int


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """What a stretch of a segment holds.

    Attributes:
        events: of every whole record, in order.
        used_bytes: how far the stretch is settled; what follows is being written, or is a torn tail.
        gaps: damaged places among the settled bytes.
    """

    events: tuple[UsageEvent, ...]
    used_bytes: int
    gaps: tuple[Gap, ...]


def scan_records(data: bytes, *, is_end: bool) -> Scan:
    """Return every whole record in `data`, also those behind a damaged place; never raises.

    A damaged place is known as one only when a whole record follows it, or when it is longer than any record; until
    then it may be a record that is still being written. Linear in `data`, and slow (about 0.5 us a byte) only
    across damage.

    Args:
        data: a stretch of a segment that starts at a record, without the magic.
        is_end: nothing more will be written after `data`.
    """
    events: list[UsageEvent] = []
    gaps: list[Gap] = []
    offset = 0
    while offset < len(data):
        found = _read_record(data, offset)
        if found is None:
            start = _find_record(data, offset, is_end=is_end)
            if start is None:
                break
            gaps.append(Gap(offset=offset, size_bytes=start - offset))
            offset = start
            continue
        event, offset = found
        events.append(event)
    return Scan(events=tuple(events), used_bytes=offset, gaps=tuple(gaps))


def _read_record(data: bytes, offset: int) -> tuple[UsageEvent, int] | None:
    """Return the event of a whole record at `offset` and where it ends, or None when there is none."""
    if offset + _HEAD.size > len(data):
        return None
    length, crc = _HEAD.unpack_from(data, offset)
    end = offset + _HEAD.size + length
    # No event is empty: the zeros that a power loss leaves behind must not pass for records.
    if not 0 < length <= RECORD_BYTES_MAX or end > len(data):
        return None
    payload = data[offset + _HEAD.size : end]
    if zlib.crc32(payload) != crc:
        return None
    try:
        return _decoder.decode(payload), end
    except msgspec.MsgspecError:
        return None


def _find_record(data: bytes, offset: int, *, is_end: bool) -> int | None:
    """Return where the damage at `offset` ends: at the next whole record, or past all that can hold none."""
    if not is_end and _may_grow(data, offset):
        return None
    for start in range(offset + 1, len(data) - _HEAD.size):
        if _read_record(data, start) is not None:
            return start
    # A record that begins earlier than this would be whole by now.
    hopeless = len(data) - FRAME_BYTES_MAX
    return hopeless if hopeless > offset else None


def _may_grow(data: bytes, offset: int) -> bool:
    """Return whether what lies at `offset` may be a record that is still being written."""
    if offset + _HEAD.size > len(data):
        return True
    length: int = _HEAD.unpack_from(data, offset)[0]
    return 0 < length <= RECORD_BYTES_MAX and offset + _HEAD.size + length >= len(data)
