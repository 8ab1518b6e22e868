"""Reading access records back: listing them, and verifying that none was changed, added or removed.

Owns the search and the verification, each in bounded steps, over a folder that may as well be a copy elsewhere. Refuses
to write. Blocking; called on a thread by the admin API, and by the command line on a copied folder.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from madang.core import Rejected, Unavailable
from madang.site.access_chain import SEALED_FOLDER, SealedSegment
from madang.wire.access_log import (
    GENESIS_SHA256,
    RETENTION_DAYS_MIN,
    SEALS_FILE,
    SEGMENT_NAME,
    AccessRecord,
    SealLine,
    SignatureCheck,
    decode_line,
    decode_segment,
    encode_line,
    hash_line,
    seal_bytes,
    sealed_name,
)

SCAN_BYTES_MAX = 64 * 1024 * 1024
"""Of records, uncompressed, that one call reads: about half a million, a second's work."""
SEALS_PER_CALL_MAX = 2000
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
PROBLEMS_MAX = 100
BOUNDS_SLACK_MS = 15 * 60 * 1000
"""A segment's times are those of its first and last chunk; a request may have come so long before it was noted."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which records are wanted; None for any."""

    since_ms: int | None = None
    until_ms: int | None = None
    tenant: str | None = None
    key: str | None = None
    address: str | None = None
    request: str | None = None
    status: int | None = None

    def takes(self, record: AccessRecord) -> bool:
        """Return whether a record is wanted."""
        last_ms = max(record.at_ms, record.last_at_ms)
        return (
            (self.since_ms is None or last_ms >= self.since_ms)
            and (self.until_ms is None or record.at_ms < self.until_ms)
            and self.tenant in (None, record.tenant_id)
            and self.key in (None, record.key_id)
            and self.address in (None, record.address)
            and self.request in (None, record.request_id)
            and self.status in (None, record.status)
        )

    def may_hold(self, segment: SealedSegment) -> bool:
        """Return whether a segment's times overlap with what is wanted."""
        return (self.since_ms is None or segment.last_at_ms + BOUNDS_SLACK_MS >= self.since_ms) and (
            self.until_ms is None or segment.first_at_ms - BOUNDS_SLACK_MS < self.until_ms
        )


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Records, newest first.

    Attributes:
        before: ask again with this to see older ones; None when there are none.
        unreadable: sealed segments that could not be read; `verify` says more.
    """

    records: list[AccessRecord]
    before: int | None
    unreadable: list[str]


def list_records(folder: Path, entries: list[SealedSegment], wanted: Filter, *, limit: int, before: int | None) -> Page:
    """Return up to about `limit` records.

    Args:
        folder: the access folder.
        entries: its sealed segments.
        wanted: which records.
        limit: no further segment is read once so many are found, and the newest so many are given.
        before: of an earlier page: only sealed segments of lower numbers are read; None begins with those that workers
            still write.
    """
    found: list[AccessRecord] = []
    unreadable: list[str] = []
    read_bytes = 0
    if before is None:
        for data in _read_open(folder):
            found += filter(wanted.takes, decode_segment(data).records)
    due = [one for one in reversed(entries) if (before is None or one.number < before) and wanted.may_hold(one)]
    following: int | None = None
    for entry in due:
        if len(found) >= limit or read_bytes >= SCAN_BYTES_MAX:
            following = entry.number + 1
            break
        try:
            data = read_sealed(folder, entry.number)
        except Rejected as error:
            unreadable.append(error.message)
            continue
        read_bytes += len(data)
        found += filter(wanted.takes, decode_segment(data).records)
    found.sort(key=lambda record: record.at_ms, reverse=True)
    return Page(records=found, before=following, unreadable=unreadable)


def _read_open(folder: Path) -> Iterator[bytes]:
    for name in filter(SEGMENT_NAME.match, os.listdir(folder)):
        # One that is sealed in this moment is seen the next time.
        with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as file:
            yield file.read(SEGMENT_BYTES_MAX)


def read_sealed(folder: Path, number: int) -> bytes:
    """Return the content of a sealed segment; raises Rejected, naming it, when it is missing or damaged."""
    path = folder / SEALED_FOLDER / sealed_name(number)
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(path.read_bytes(), SEGMENT_BYTES_MAX)
    except FileNotFoundError as error:
        raise Rejected(f"segment {number} is gone: {path} is missing") from error
    except (OSError, zlib.error) as error:
        raise Rejected(f"segment {number} cannot be read: {path}: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise Rejected(f"segment {number} is damaged: {path} does not end where it should")
    return data


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What one step of a verification found.

    Attributes:
        checked: number of the last seal that was checked.
        following: ask again with this as `after`; None at the end.
        records: that were found intact in this step.
        problems: in words, at most PROBLEMS_MAX; a broken chain ends the verification.
        head_sha256: hash of the last seal that was checked.
        unknown_keys: kids of keys that signed and are not known here, a problem each: anybody could have signed.
    """

    checked: int
    following: int | None
    records: int
    problems: list[str]
    head_sha256: str
    unknown_keys: list[str]


def verify_records(
    folder: Path, site: str, is_signed: SignatureCheck, known_kids: set[str], after: int
) -> Verification:
    """Check seals and sealed segments behind seal `after`, up to SEALS_PER_CALL_MAX or SCAN_BYTES_MAX.

    Args:
        folder: the access folder, or a copy of it.
        site: whose records they must be.
        is_signed: whether the key of a kid made a signature.
        known_kids: keys that `is_signed` knows.
        after: seals up to it were checked by an earlier step.

    Raises:
        Unavailable: the seals' file cannot be read.
    """
    path = folder / SEALS_FILE
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    check = _Check(folder, site, is_signed, known_kids)
    if lines.pop():
        check.problems.append(f"the last line of {path.name} is torn")
    expired = _list_expired(lines)
    for number, text in enumerate(lines, 1):
        if number <= after:
            check.prev, check.number = hash_line(text), number
            continue
        is_full = number - after > SEALS_PER_CALL_MAX or check.read_bytes >= SCAN_BYTES_MAX
        if is_full or not check.take(number, text, expired):
            break
    is_over = check.is_broken or check.number >= len(lines)
    return Verification(
        checked=check.number,
        following=None if is_over else check.number,
        records=check.records,
        problems=check.problems[:PROBLEMS_MAX],
        head_sha256=check.prev,
        unknown_keys=sorted(check.unknown),
    )


def _list_expired(lines: list[bytes]) -> set[int]:
    """Return the seals whose segments were removed, as the chain says; each such line is checked in its turn."""
    found = set()
    for text in lines:
        if b'"kind":"expired"' in text:
            with contextlib.suppress(Rejected):
                found.add(decode_line(text).seal.of)
    return found


class _Check:
    """A verification under way."""

    def __init__(self, folder: Path, site: str, is_signed: SignatureCheck, known_kids: set[str]) -> None:
        self._folder = folder
        self._site = site
        self._is_signed = is_signed
        self._known_kids = known_kids
        self.number = 0
        self.prev = GENESIS_SHA256
        self.records = 0
        self.read_bytes = 0
        self.problems: list[str] = []
        self.unknown: set[str] = set()
        self.is_broken = False

    def take(self, number: int, text: bytes, expired: set[int]) -> bool:
        """Check one line and what it seals; return whether the chain holds."""
        try:
            line = decode_line(text)
            self._check_link(number, text, line)
        except (Rejected, ValueError) as error:
            self.problems.append(f"seal {number}: {error}")
            self.is_broken = True
            return False
        self.number, self.prev = number, hash_line(text)
        seal = line.seal
        if seal.kind == "expired" and seal.sealed_at_ms - seal.last_at_ms < RETENTION_DAYS_MIN * 86_400_000:
            self.problems.append(f"segment {seal.of} was removed before its time, says seal {number}")
        if seal.kind == "sealed" and number not in expired:
            try:
                data = read_sealed(self._folder, number)
                self.read_bytes += len(data)
                if hashlib.sha256(data).hexdigest() != seal.sha256:
                    raise Rejected(f"segment {number} was changed: its content is not the one that was sealed")
                self.records += seal.records
            except Rejected as error:
                self.problems.append(error.message)
        return True

    def _check_link(self, number: int, text: bytes, line: SealLine) -> None:
        seal, signature = line.seal, bytes.fromhex(line.signature)
        if encode_line(seal, signature) != text:
            raise Rejected("it is not written as this program writes it")
        if (seal.number, seal.prev_sha256, seal.site) != (number, self.prev, self._site):
            raise Rejected("it does not follow the one before it: a seal was changed, added or removed")
        if seal.kid not in self._known_kids:
            if seal.kid not in self.unknown:
                self.problems.append(f"seal {number} is signed with key {seal.kid}, which is not known here")
            self.unknown.add(seal.kid)
        elif not self._is_signed(seal.kid, signature, seal_bytes(seal)):
            raise Rejected(f"site {self._site} did not sign it")
