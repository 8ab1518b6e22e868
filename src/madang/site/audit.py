"""The site's audit log: append-only, each row hashed over the one before; works with the hub out of reach.

Owns the chain. Refuses to decide what is worth a row: whoever acts adds it in the same transaction. Fields and
hash are those of the hub's log, so that the hub can check and merge it.
"""

import hashlib

import msgspec
import sqlalchemy as sa

from madang.site.tables import AUDIT

GENESIS_HASH = "0" * 64
ROWS_PER_PAGE_MAX = 1000


def append_audit(
    connection: sa.Connection, *, at_s: float, actor: str, action: str, target: str, detail: object
) -> None:
    """Add a row in the caller's transaction; `detail` must hold no secret."""
    last = connection.execute(sa.select(AUDIT.c.seq, AUDIT.c.hash).order_by(AUDIT.c.seq.desc()).limit(1)).first()
    seq, prev_hash = (1, GENESIS_HASH) if last is None else (last.seq + 1, last.hash)
    text = msgspec.json.encode(detail, order="deterministic").decode()
    row = {
        "seq": seq,
        "at_s": at_s,
        "actor": actor,
        "action": action,
        "target": target,
        "detail": text,
        "prev_hash": prev_hash,
    }
    connection.execute(AUDIT.insert().values(**row, hash=_hash_row(*row.values())))


def _hash_row(*fields: object) -> str:
    """Return SHA-256 over the JSON array of the fields, so that no two rows can have the same bytes."""
    return hashlib.sha256(msgspec.json.encode(list(fields))).hexdigest()


def read_audit(connection: sa.Connection, *, after: int, limit: int) -> list[dict[str, object]]:
    """Return rows with a higher `seq` than `after`, oldest first, at most ROWS_PER_PAGE_MAX."""
    query = sa.select(AUDIT).where(AUDIT.c.seq > after).order_by(AUDIT.c.seq).limit(min(limit, ROWS_PER_PAGE_MAX))
    return [{**row._mapping, "detail": msgspec.json.decode(row.detail)} for row in connection.execute(query)]


def find_break(connection: sa.Connection) -> int | None:
    """Return the first `seq` at which the chain does not hold, or None; one pass over the table."""
    expected, prev_hash = 1, GENESIS_HASH
    for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq)):
        found = _hash_row(row.seq, row.at_s, row.actor, row.action, row.target, row.detail, prev_hash)
        if (row.seq, row.prev_hash, row.hash) != (expected, prev_hash, found):
            return expected
        expected, prev_hash = expected + 1, row.hash
    return None
