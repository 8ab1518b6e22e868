"""The audit chain: its rows, how each is hashed over the one before, and whether rows that were read hang together.

Owns these. Refuses to know databases and to decide what is worth a row. Hub, sites and the command that verifies an
exported copy use the same functions, so that nobody has to believe a program's word for its own log.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from madang.core import Rejected

GENESIS_HASH = "0" * 64
LINE_BYTES_MAX = 1024 * 1024


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done.

    Attributes:
        seq: counts from 1 without gaps.
        at_s: wall time.
        actor: who did it, such as `admin`, `hub` or a person's name.
        action: noun and verb, such as `tenant.put`.
        target: id of what it was done to.
        detail: JSON as it was written and hashed, byte for byte; never a secret.
        prev_hash: hash of the row before, GENESIS_HASH for the first.
        hash: SHA-256 over all the others.
    """

    seq: int
    at_s: float
    actor: str
    action: str
    target: str
    detail: msgspec.Raw
    prev_hash: str
    hash: str

    @property
    def facts(self) -> Any:
        """The detail, read."""
        return msgspec.json.decode(self.detail)


class ChainHead(msgspec.Struct, frozen=True):
    """The last row of a chain as far as it was read; before the first one, none."""

    seq: int = 0
    hash: str = GENESIS_HASH


class ChainVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a chain holds.

    Attributes:
        rows: how many fit, from the first on.
        head_hash: the last of them's hash.
        broken_at_seq: where the first row that does not fit stands, or is missing; None in a whole chain.
    """

    is_intact: bool
    rows: int
    head_hash: str
    broken_at_seq: int | None = None


def next_row(
    head: ChainHead, *, at_s: float, actor: str, action: str, target: str, detail: object
) -> dict[str, int | float | str]:
    """Return the fields of the row that follows `head`, with `detail` as text."""
    text = msgspec.json.encode(detail, order="deterministic").decode()
    fields = (head.seq + 1, float(at_s), actor, action, target, text, head.hash)
    names = ("seq", "at_s", "actor", "action", "target", "detail", "prev_hash")
    return {**dict(zip(names, fields, strict=True)), "hash": _hash(fields)}


def follow(head: ChainHead, rows: Iterable[AuditRow]) -> tuple[ChainHead, int | None]:
    """Follow a chain over the rows behind `head`.

    Returns:
        The last row that fits, and the place of the first that does not, or None.
    """
    for row in rows:
        if row.seq != head.seq + 1 or row.prev_hash != head.hash or row.hash != _hash_of(row):
            return head, head.seq + 1
        head = ChainHead(row.seq, row.hash)
    return head, None


def verdict_of(head: ChainHead, broken_at_seq: int | None) -> ChainVerdict:
    """Return what `follow` found as a verdict over the whole chain."""
    return ChainVerdict(
        is_intact=broken_at_seq is None, rows=head.seq, head_hash=head.hash, broken_at_seq=broken_at_seq
    )


def decode_line(line: bytes, number: int) -> AuditRow:
    """Return the row of one line of an exported chain.

    Raises:
        Rejected: it is none, naming the line by its number.
    """
    if len(line) > LINE_BYTES_MAX:
        raise Rejected(f"line {number} is over {LINE_BYTES_MAX} bytes: this is no exported audit chain")
    try:
        return msgspec.json.decode(line, type=AuditRow)
    except msgspec.MsgspecError as error:
        raise Rejected(
            f"line {number} is no row of an audit chain: {error}", next_step="make a copy with: madang audit export"
        ) from error


def _hash_of(row: AuditRow) -> str:
    """Return the hash that a row should have; empty for a detail that is no text, which nobody ever wrote."""
    try:
        text = bytes(row.detail).decode()
    except UnicodeDecodeError:
        return ""
    return _hash((row.seq, row.at_s, row.actor, row.action, row.target, text, row.prev_hash))


def _hash(fields: tuple[int | float | str, ...]) -> str:
    """Return SHA-256 over the JSON array of the fields, so that no two rows can have the same bytes."""
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()
