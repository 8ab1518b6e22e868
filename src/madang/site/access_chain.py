"""The chain of seals over access records, as a file: `seals.jsonl`, one line a seal, each over the one before.

Owns that file and what is known of it. Refuses to judge signatures (`madang.site.access_query` does) and to make them.
Blocking, and used by one thread at a time.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from madang.core import Rejected, Unavailable
from madang.runtime.files import sync_folder
from madang.wire.access_log import (
    GENESIS_SHA256,
    SEALS_FILE,
    SEGMENT_NAME,
    Seal,
    Survey,
    decode_line,
    encode_line,
    hash_line,
    sealed_name,
)

SEALED_FOLDER = "sealed"


class ChainHead(NamedTuple):
    """The newest link: its number and its hash; number 0 for none."""

    number: int
    sha256: str

    def to_text(self) -> str:
        """Return it as one word, for the database."""
        return f"{self.number}:{self.sha256}"

    @classmethod
    def from_text(cls, text: str) -> "ChainHead":
        """Return what `to_text` made; none for an empty text."""
        number, _, sha256 = text.partition(":")
        return cls(int(number), sha256) if number else cls(0, "")


class SealedSegment(NamedTuple):
    """A sealed segment that is kept."""

    number: int
    first_at_ms: int
    last_at_ms: int
    records: int
    stored_bytes: int
    line_offset: int


class Loaded(NamedTuple):
    """What reading the file showed: whether it holds the expected link, and what was dropped of a torn last line."""

    has_expected: bool
    torn_bytes: int


class Chain:
    """The chain of one site."""

    def __init__(self, folder: Path) -> None:
        """Make a chain; `load` reads it.

        Attributes:
            head: the newest link.
            entries: sealed segments that are kept, by number, oldest first.
            fresh: names of workers' segments that are sealed and were not removed yet.
        """
        self.folder = folder
        self.head = ChainHead(0, GENESIS_SHA256)
        self.entries: dict[int, SealedSegment] = {}
        self.fresh: set[str] = set()
        self.size_bytes = 0
        self._end = 0

    @property
    def path(self) -> Path:
        """The seals' file."""
        return self.folder / SEALS_FILE

    def load(self, expected: ChainHead) -> "Loaded":
        """Read the file.

        Args:
            expected: a link that was once the newest, and must be there.

        Raises:
            Unavailable: it cannot be read or is damaged; it is left as it is.
        """
        try:
            names = set(filter(SEGMENT_NAME.match, os.listdir(self.folder)))
            data = self.path.read_bytes() if self.path.exists() else b""
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(self.path, whole)
        except OSError as error:
            raise Unavailable(f"cannot read {self.path}: {error.strerror}") from error
        has_expected = expected.number == 0
        for line in data[:whole].splitlines():
            try:
                seal = decode_line(line).seal
            except Rejected as error:
                raise Unavailable(
                    f"{self.path}: {error.message}", next_step="restore it; madang access-log verify tells what is left"
                ) from error
            if seal.segment in names and seal.kind == "sealed":
                self.fresh.add(seal.segment)
            self._take(seal, line, self._stored_bytes(seal))
            has_expected = has_expected or self.head == expected
        return Loaded(has_expected, len(data) - whole)

    def _stored_bytes(self, seal: Seal) -> int:
        path = self.folder / SEALED_FOLDER / sealed_name(seal.of)
        if seal.kind == "expired":
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # a crash came between its line and its removal
            return 0
        return path.stat().st_size if path.exists() else 0

    def _take(self, seal: Seal, line: bytes, stored_bytes: int) -> None:
        self.head = ChainHead(seal.number, hash_line(line))
        if seal.kind == "sealed":
            self.entries[seal.number] = SealedSegment(
                seal.number, seal.first_at_ms, seal.last_at_ms, seal.records, stored_bytes, self._end
            )
            self.size_bytes += stored_bytes
        else:
            gone = self.entries.pop(seal.of, None)
            self.size_bytes -= 0 if gone is None else gone.stored_bytes
        self._end += len(line) + 1

    def next_seal(
        self,
        *,
        site: str,
        kid: str,
        kind: Literal["sealed", "expired"],
        sealed_at_ms: int,
        segment: str,
        data: bytes,
        survey: Survey,
    ) -> Seal:
        """Return the seal of a segment, to be signed and appended."""
        return Seal(
            first_at_ms=survey.first_at_ms,
            kid=kid,
            kind=kind,
            last_at_ms=survey.last_at_ms or sealed_at_ms,
            number=self.head.number + 1,
            of=self.head.number + 1,
            prev_sha256=self.head.sha256,
            records=survey.records,
            sealed_at_ms=sealed_at_ms,
            segment=segment,
            sha256=hashlib.sha256(data).hexdigest(),
            site=site,
            size_bytes=len(data),
        )

    def next_expiry(self, number: int, kid: str, now_ms: int) -> Seal:
        """Return the link that says that a sealed segment was removed, its time being over."""
        with self.path.open("rb") as file:
            file.seek(self.entries[number].line_offset)
            sealed = decode_line(file.readline().removesuffix(b"\n")).seal
        return msgspec.structs.replace(
            sealed,
            kind="expired",
            kid=kid,
            number=self.head.number + 1,
            prev_sha256=self.head.sha256,
            sealed_at_ms=now_ms,
        )

    def append(self, seal: Seal, signature: bytes, stored_bytes: int) -> None:
        """Write a link, durably; raises OSError."""
        line = encode_line(seal, signature)
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            try:
                os.write(descriptor, line + b"\n")
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(self.folder)
        self._take(seal, line, stored_bytes)
