"""The audit chain: whole when untouched, broken where it was touched, and not writable by accident."""

import pytest
import sqlalchemy as sa

from madang.core import Conflict
from madang.hub.audit import AUDIT_LOG
from madang.hub.tables import AUDIT
from madang.runtime.audit_log import ROWS_PER_PAGE_MAX


def fill(store, count):
    def act(connection):
        for number in range(count):
            AUDIT_LOG.append(
                connection, at_s=number + 0.1, actor="admin", action="x.y", target=f"t{number}", detail={"n": number}
            )

    store.write_now(act)


def tamper(store, statement):
    """Change rows the way somebody with the file would."""

    def act(connection):
        for verb in ("update", "delete"):
            table = "" if connection.dialect.name == "sqlite" else "ON audit"
            connection.execute(sa.text(f"DROP TRIGGER audit_no_{verb} {table}"))
        connection.execute(statement)

    store.write_now(act)


def test_an_empty_and_a_long_chain_are_intact(store):
    assert store.write_now(AUDIT_LOG.verify).is_intact
    fill(store, ROWS_PER_PAGE_MAX + 5)
    verdict = store.write_now(AUDIT_LOG.verify)
    assert (verdict.is_intact, verdict.rows) == (True, ROWS_PER_PAGE_MAX + 5)
    rows = store.write_now(lambda c: AUDIT_LOG.read(c, after=ROWS_PER_PAGE_MAX + 3, limit=10))
    assert [row.seq for row in rows] == [ROWS_PER_PAGE_MAX + 4, ROWS_PER_PAGE_MAX + 5]
    assert rows[-1].facts == {"n": ROWS_PER_PAGE_MAX + 4}
    assert rows[-1].hash == verdict.head_hash


@pytest.mark.parametrize(
    "statement",
    [
        AUDIT.update().where(AUDIT.c.seq == 3).values(detail='{"n":9}'),
        AUDIT.update().where(AUDIT.c.seq == 3).values(at_s=7.0),
        AUDIT.update().where(AUDIT.c.seq == 3).values(actor="somebody"),
        AUDIT.delete().where(AUDIT.c.seq == 3),
    ],
)
def test_a_changed_or_missing_row_breaks_the_chain_there(store, statement):
    fill(store, 5)
    tamper(store, statement)
    verdict = store.write_now(AUDIT_LOG.verify)
    assert (verdict.is_intact, verdict.broken_at_seq) == (False, 3)


def test_a_row_that_was_rehashed_breaks_the_next(store):
    fill(store, 5)
    last = store.write_now(lambda c: AUDIT_LOG.read(c, after=1, limit=1))[0]
    forged = AUDIT.update().where(AUDIT.c.seq == 2).values(hash="f" * 64)
    tamper(store, forged)
    assert store.write_now(AUDIT_LOG.verify).broken_at_seq == 2
    assert last.seq == 2


@pytest.mark.parametrize("statement", [AUDIT.delete(), AUDIT.update().values(actor="x")])
def test_the_database_refuses_to_change_a_row(store, statement):
    fill(store, 2)
    with pytest.raises(Conflict, match="append-only"):
        store.write_now(lambda c: c.execute(statement))
    assert store.write_now(AUDIT_LOG.verify).is_intact
