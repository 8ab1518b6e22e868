"""The hub's audit log: append-only, each row hashed over the one before.

Owns the chain. Refuses to decide what is worth a row: whoever changes a fact adds it in the same transaction, so
there is no change without a row and no row without a change.
"""

import hashlib
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.hub.tables import AUDIT

GENESIS_HASH = "0" * 64
ROWS_PER_PAGE_MAX = 1000


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done.

    Attributes:
        seq: counts from 1 without gaps.
        at_s: wall time.
        actor: who did it: `admin` or `hub`.
        action: noun and verb, such as `tenant.put`.
        target: id of what it was done to.
        detail: JSON, never a secret.
        prev_hash: hash of the row before, 64 zeros for the first.
        hash: SHA-256 over all the others.
    """

    seq: int
    at_s: float
    actor: str
    action: str
    target: str
    detail: Any
    prev_hash: str
    hash: str


class ChainVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the chain holds; `broken_at_seq` is the first row that does not fit, `head_hash` the last's hash."""

    is_intact: bool
    rows: int
    head_hash: str
    broken_at_seq: int | None = None


def append_audit(
    connection: sa.Connection, *, at_s: float, actor: str, action: str, target: str, detail: object
) -> None:
    """Add a row in the caller's transaction."""
    last = connection.execute(sa.select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)).first()
    seq, prev_hash = (1, GENESIS_HASH) if last is None else (last.seq + 1, last.hash)
    text = msgspec.json.encode(detail, order="deterministic").decode()
    connection.execute(
        AUDIT.insert().values(
            seq=seq,
            at_s=at_s,
            actor=actor,
            action=action,
            target=target,
            detail=text,
            prev_hash=prev_hash,
            hash=_hash_row(seq, at_s, actor, action, target, text, prev_hash),
        )
    )


def _hash_row(seq: int, at_s: float, actor: str, action: str, target: str, detail: str, prev_hash: str) -> str:
    """Return SHA-256 over the JSON array of the fields, so that no two rows can have the same bytes."""
    fields = msgspec.json.encode([seq, at_s, actor, action, target, detail, prev_hash])
    return hashlib.sha256(fields).hexdigest()


def read_audit(connection: sa.Connection, *, after: int, limit: int) -> list[AuditRow]:
    """Return rows with a higher `seq` than `after`, oldest first."""
    query = sa.select(AUDIT).where(AUDIT.c.seq > after).order_by(AUDIT.c.seq).limit(min(limit, ROWS_PER_PAGE_MAX))
    return [
        AuditRow(**{**row._mapping, "detail": msgspec.json.decode(row.detail)}) for row in connection.execute(query)
    ]


def verify_audit(connection: sa.Connection) -> ChainVerdict:
    """Walk the whole chain; costs one pass over the table, a page at a time."""
    expected_seq, prev_hash = 1, GENESIS_HASH
    while True:
        query = sa.select(AUDIT).where(AUDIT.c.seq >= expected_seq).order_by(AUDIT.c.seq).limit(ROWS_PER_PAGE_MAX)
        rows = connection.execute(query).all()
        for row in rows:
            found = _hash_row(row.seq, row.at_s, row.actor, row.action, row.target, row.detail, prev_hash)
            if row.seq != expected_seq or row.prev_hash != prev_hash or row.hash != found:
                return ChainVerdict(
                    is_intact=False, rows=expected_seq - 1, head_hash=prev_hash, broken_at_seq=expected_seq
                )
            expected_seq, prev_hash = row.seq + 1, row.hash
        if len(rows) < ROWS_PER_PAGE_MAX:
            return ChainVerdict(is_intact=True, rows=expected_seq - 1, head_hash=prev_hash)
