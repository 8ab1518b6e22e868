"""Access records: who asked for what, when and from where; how they lie in files, and how files are sealed.

Owns the record, the framing of a worker's segment and the chain of seals. Refuses prompt text by having no field for
it, and refuses to open files: gateway workers append, the site process seals, lists and verifies.

A segment is an 8-byte magic, then chunks of `length u32 LE, crc32 u32 LE, payload`; a payload is a msgpack array of
records. A seal names a segment's SHA-256 and the hash of the seal before it, and is signed by the site: a record that
is changed, added or removed later shows, and so does a segment or a seal that is gone.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from madang.core import Rejected

MAGIC = b"MDGACC1\n"
RETENTION_DAYS_MIN = 365
"""What the law asks for at least; who removes records earlier is told so by a verification."""
CHUNK_BYTES_MAX = 4 * 1024 * 1024
RECORDS_PER_CHUNK_MAX = 8192
SEGMENT_NAME = re.compile(r"w[0-9]{1,3}-[0-9a-f]{1,32}-[0-9]{1,12}\.acc\Z")
ACCESS_FOLDER = "access"
"""Beside the usage folder, unless the settings say otherwise."""
SEALS_FILE = "seals.jsonl"
GENESIS_SHA256 = "0" * 64
_HEAD = struct.Struct("<II")
_SEAL_TAG = b"madang-access-seal-v1\n"


class AccessRecord(msgspec.Struct, frozen=True, array_like=True):
    """One request of a tenant, or several refusals alike.

    Attributes:
        at_ms: wall time at which the request came, milliseconds.
        request_id: ours; of the first of several.
        tenant_id, project_id, key_id: who; empty where a refusal came before that was known.
        data_class: of the tenant's data; empty where the tenant is not known here.
        address: of the client; `site:<name>` for what another site's gateway handed over.
        endpoint: what was asked for: a path of the API, with a file's or a batch's id, never with a query.
        service: model that was asked for, where it was found to exist.
        status: of the answer; 499 when the client left before one.
        count: how many refusals alike this stands for, the last of them at `last_at_ms`.
    """

    at_ms: int
    request_id: str
    tenant_id: str
    project_id: str
    key_id: str
    data_class: str
    address: str
    endpoint: str
    service: str
    status: int
    count: int = 1
    last_at_ms: int = 0


RecordTuple = tuple[int, str, str, str, str, str, str, str, str, int, int, int]
"""The fields of a record, as a worker's hot path makes them."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AccessRecord])


def encode_chunk(records: Sequence[RecordTuple]) -> bytes:
    """Return the framed chunk of up to RECORDS_PER_CHUNK_MAX records."""
    assert len(records) <= RECORDS_PER_CHUNK_MAX
    payload = _encoder.encode(records)
    assert len(payload) <= CHUNK_BYTES_MAX
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


class Contents(NamedTuple):
    """What a segment holds; `torn_bytes` at its end are what a crash cut off, or what is being written."""

    records: list[AccessRecord]
    torn_bytes: int


def decode_segment(data: bytes) -> Contents:
    """Return the records of a segment up to the first place that is no whole chunk; never raises."""
    records: list[AccessRecord] = []
    offset = len(MAGIC)
    if data[:offset] != MAGIC:
        return Contents(records, len(data))
    while offset + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, offset)
        end = offset + _HEAD.size + length
        payload = data[offset + _HEAD.size : end]
        if not 0 < length <= CHUNK_BYTES_MAX or end > len(data) or zlib.crc32(payload) != crc:
            break
        try:
            records += _decoder.decode(payload)
        except msgspec.MsgspecError:
            break
        offset = end
    return Contents(records, len(data) - offset)


class Survey(NamedTuple):
    """What a segment holds, without its records; times are those of its first and last chunk, 0 without any."""

    records: int
    first_at_ms: int
    last_at_ms: int
    torn_bytes: int


def survey_segment(data: bytes) -> Survey:
    """Return how many records a segment holds, and about when they were made; never raises.

    Some 0.1 us a record, where decoding them costs twenty times that.
    """
    chunks: list[tuple[int, int]] = []
    count, offset = 0, len(MAGIC)
    if data[:offset] != MAGIC:
        return Survey(0, 0, 0, len(data))
    while offset + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, offset)
        start, end = offset + _HEAD.size, offset + _HEAD.size + length
        if not 0 < length <= CHUNK_BYTES_MAX or end > len(data) or zlib.crc32(data[start:end]) != crc:
            break
        chunks.append((start, end))
        count += _count_of(data, start)
        offset = end
    ends = [data[start:end] for start, end in (chunks[:1] + chunks[-1:])]
    times = [time for payload in ends for time in _times_of(payload)] or [0]
    return Survey(count, min(times), max(times), len(data) - offset)


def _times_of(payload: bytes) -> list[int]:
    try:
        return [time for one in _decoder.decode(payload) for time in (one.at_ms, one.last_at_ms) if time]
    except msgspec.MsgspecError:
        return []  # whoever reads the records finds it out; a seal is made over the bytes as they are


def _count_of(data: bytes, start: int) -> int:
    """Return the length of the msgpack array at `start`."""
    head = data[start]
    if head == 0xDC:
        return int.from_bytes(data[start + 1 : start + 3], "big")
    return int.from_bytes(data[start + 1 : start + 5], "big") if head == 0xDD else head & 0x0F


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link of the chain.

    Attributes:
        first_at_ms, last_at_ms: times of the earliest and the latest record.
        kind: `sealed`, or `expired` once the segment was removed after its time.
        kid: names the site's key.
        number: counts from 1 without gaps.
        of: the number of the seal whose segment this is about; its own for `sealed`.
        prev_sha256: hash of the line before, 64 zeros for the first.
        records: how many it holds.
        sealed_at_ms: wall time.
        segment: name of the worker's segment.
        sha256: of the segment's content.
        size_bytes: of the segment's content.
    """

    first_at_ms: int
    kid: str
    kind: Literal["sealed", "expired"]
    last_at_ms: int
    number: int
    of: int
    prev_sha256: str
    records: int
    sealed_at_ms: int
    segment: str
    sha256: str
    site: str
    size_bytes: int
    version: Literal[1] = 1


class SealLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the seals' file; `alg` names the signature's kind."""

    alg: str = "ed25519"
    seal: Seal
    signature: str


_json = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(SealLine)


def seal_bytes(seal: Seal) -> bytes:
    """Return what the signature of a seal covers."""
    return _SEAL_TAG + _json.encode(seal)


def encode_line(seal: Seal, signature: bytes) -> bytes:
    """Return a line of the seals' file, without its end."""
    return _json.encode(SealLine(seal=seal, signature=signature.hex()))


def decode_line(line: bytes) -> SealLine:
    """Return a line of the seals' file; raises Rejected."""
    try:
        return _line_decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise Rejected(f"a line of {SEALS_FILE} is no seal: {error}") from error


def hash_line(line: bytes) -> str:
    """Return what the next seal calls `prev_sha256`."""
    return hashlib.sha256(line).hexdigest()


def sealed_name(number: int) -> str:
    """Return the file name of a sealed segment."""
    return f"{number:08d}.acc.z"


SignatureCheck = Callable[[str, bytes, bytes], bool]
"""Whether the key that a kid names made a signature over a message."""
