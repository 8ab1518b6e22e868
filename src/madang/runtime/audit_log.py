"""An audit chain in a table: how it is written and read.

Owns that. Refuses to decide what is worth a row (whoever acts adds one in the same transaction, so that there is no
change without a row and no row without a change) and to know how rows are hashed: `madang.wire.audit` does. Hub and
site have one each.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from madang.wire.audit import AuditRow, ChainHead, ChainVerdict, follow, next_row, verdict_of

ROWS_PER_PAGE_MAX = 1000


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows; what is empty asks for nothing.

    Attributes:
        actor, target: exactly these.
        action: how it begins, such as `tenant.`.
    """

    actor: str = ""
    action: str = ""
    target: str = ""


EVERYTHING = AuditFilter()


class AuditLog:
    """One chain."""

    def __init__(self, table: sa.Table) -> None:
        """Use a table with the fields of AuditRow, `detail` as text."""
        self._table = table

    def append(
        self, connection: sa.Connection, *, at_s: float, actor: str, action: str, target: str, detail: object
    ) -> None:
        """Add a row in the caller's transaction; `detail` must hold no secret."""
        columns = self._table.c
        last = connection.execute(sa.select(columns.seq, columns.hash).order_by(columns.seq.desc()).limit(1)).first()
        head = ChainHead() if last is None else ChainHead(last.seq, last.hash)
        row = next_row(head, at_s=at_s, actor=actor, action=action, target=target, detail=detail)
        connection.execute(self._table.insert().values(**row))

    def read(
        self,
        connection: sa.Connection,
        *,
        after: int = 0,
        limit: int = ROWS_PER_PAGE_MAX,
        is_newest: bool = False,
        only: AuditFilter = EVERYTHING,
    ) -> list[AuditRow]:
        """Return rows, oldest first, at most ROWS_PER_PAGE_MAX.

        Args:
            connection: a snapshot.
            after: only rows with a higher `seq`.
            limit: at most so many.
            is_newest: the last so many of those that fit, instead of the first.
            only: what they must have.
        """
        columns = self._table.c
        query = sa.select(self._table).where(columns.seq > after).limit(min(limit, ROWS_PER_PAGE_MAX))
        if only.actor:
            query = query.where(columns.actor == only.actor)
        if only.action:
            query = query.where(columns.action.startswith(only.action, autoescape=True))
        if only.target:
            query = query.where(columns.target == only.target)
        query = query.order_by(columns.seq.desc() if is_newest else columns.seq)
        rows = [_row(found) for found in connection.execute(query)]
        return rows[::-1] if is_newest else rows

    def verify(self, connection: sa.Connection) -> ChainVerdict:
        """Walk the whole chain; costs one pass over the table, a page at a time."""
        head = ChainHead()
        while True:
            rows = self.read(connection, after=head.seq)
            head, broken_at = follow(head, rows)
            if broken_at is not None or len(rows) < ROWS_PER_PAGE_MAX:
                return verdict_of(head, broken_at)


def _row(found: sa.Row[Any]) -> AuditRow:
    return AuditRow(**{**found._mapping, "detail": _raw(found.detail)})


def _raw(text: str) -> msgspec.Raw:
    """Return a detail as it stands in JSON of others, byte for byte.

    What is no JSON, or has white space around it, was not written by us and would not come through: it becomes a string
    that says it, which does not fit the row's hash.
    """
    data = text.encode()
    try:
        is_ours = bytes(msgspec.json.decode(data, type=msgspec.Raw)) == data
    except msgspec.MsgspecError:
        is_ours = False
    return msgspec.Raw(data if is_ours else msgspec.json.encode(text))
