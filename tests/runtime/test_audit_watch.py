"""The walk over an audit chain: it finds what was changed meanwhile, and what was cut off the end."""

import asyncio
import io
import json

import msgspec
import pytest
import sqlalchemy as sa

from madang.core import Unavailable
from madang.runtime.audit_log import ROWS_PER_PAGE_MAX, AuditFilter, AuditLog
from madang.runtime.audit_watch import AuditCollector, AuditWatch
from madang.runtime.clock import SystemClock
from madang.runtime.store import Store, sqlite_url
from madang.runtime.telemetry import EventLog
from madang.wire.audit import AuditRow, ChainHead, follow

METADATA = sa.MetaData()
TABLE = sa.Table(
    "audit",
    METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float, nullable=False),
    *(sa.Column(name, sa.Text, nullable=False) for name in ("actor", "action", "target", "detail")),
    *(sa.Column(name, sa.String(64), nullable=False) for name in ("prev_hash", "hash")),
)
AUDIT = AuditLog(TABLE)


class Bench:
    """A database with a chain and a walk over it."""

    def __init__(self, folder):
        self.store = Store(sqlite_url(folder / "x.db"))
        self.store.write_now(METADATA.create_all)
        self.clock = SystemClock()
        self.events = io.StringIO()
        self.watch = AuditWatch(AUDIT, self.store, self.clock, EventLog(self.clock, self.events))

    def add(self, count, actor="admin"):
        def write(connection):
            for number in range(count):
                AUDIT.append(
                    connection, at_s=number, actor=actor, action="key.put", target=f"k{number}", detail={"n": number}
                )

        self.store.write_now(write)

    def change(self, statement):
        self.store.write_now(lambda connection: connection.execute(statement))

    def walk(self):
        """Walk to the end of this walk; returns how many pages that took."""

        async def steps():
            for number in range(1, 10):
                if await self.watch.step():
                    return number
            raise AssertionError("it never ends")

        return asyncio.run(steps())

    def metrics(self):
        return {
            one.name.removeprefix("madang_hub_audit_"): one.samples[0].value
            for one in AuditCollector("madang_hub", self.watch).collect()
        }

    def said(self):
        return [json.loads(line)["event"] for line in self.events.getvalue().splitlines()]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_an_empty_chain_and_one_of_several_pages_are_walked_to_their_end(bench):
    assert bench.walk() == 1
    bench.add(2 * ROWS_PER_PAGE_MAX + 3)
    assert bench.walk() == 3
    found = bench.metrics()
    assert (found["rows"], found["broken_at_row"]) == (2 * ROWS_PER_PAGE_MAX + 3, 0)
    assert 0 <= bench.clock.wall_s() - found["checked_timestamp_seconds"] < 60
    assert bench.said() == []


def test_a_row_that_was_changed_is_told_once_and_until_it_is_as_it_was(bench):
    bench.add(ROWS_PER_PAGE_MAX + 10)
    bench.walk()
    row = ROWS_PER_PAGE_MAX + 5
    bench.change(TABLE.update().where(TABLE.c.seq == row).values(actor="nobody"))
    bench.walk()
    bench.walk()
    assert bench.metrics()["broken_at_row"] == row
    assert bench.said() == ["audit_chain_broken"]
    bench.change(TABLE.update().where(TABLE.c.seq == row).values(actor="admin"))
    bench.walk()
    assert bench.metrics()["broken_at_row"] == 0


@pytest.mark.parametrize("left", [0, 1, 7])
def test_an_end_that_was_cut_off_is_found_though_what_is_left_holds(bench, left):
    bench.add(10)
    bench.walk()
    bench.change(TABLE.delete().where(TABLE.c.seq > left))
    bench.walk()
    assert bench.metrics()["broken_at_row"] == left + 1
    bench.add(20, actor="forger")
    bench.walk()
    assert bench.metrics()["broken_at_row"] == 10, "longer than it was, and not what it was"


def test_a_chain_that_was_written_anew_is_found_though_it_holds(bench):
    bench.add(10)
    bench.walk()
    bench.change(TABLE.delete())
    bench.add(10, actor="forger")
    assert bench.store.write_now(AUDIT.verify).is_intact
    bench.walk()
    assert bench.metrics()["broken_at_row"] == 10


def test_a_database_that_cannot_be_read_ends_nothing(bench, monkeypatch):
    monkeypatch.setattr("madang.runtime.audit_watch.PAGE_PERIOD_S", 0.001)

    class Broken:
        async def read(self, _):
            raise Unavailable("no disk")

    bench.watch._store = Broken()

    async def run():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.watch.run(), 0.1)

    asyncio.run(run())
    assert set(bench.said()) == {"audit_not_read"}


def test_rows_are_found_by_who_did_what_to_whom(bench):
    bench.add(3)
    bench.add(2, actor="kim")
    read = lambda **asked: bench.store.write_now(lambda c: [row.seq for row in AUDIT.read(c, **asked)])  # noqa: E731
    assert read(is_newest=True, limit=2) == [4, 5]
    assert read(after=1, limit=2) == [2, 3]
    assert read(only=AuditFilter(actor="kim")) == [4, 5]
    assert read(only=AuditFilter(action="key.", target="k1")) == [2, 5]
    assert read(only=AuditFilter(action="key_")) == [], "no wildcard of the database"


@pytest.mark.parametrize("detail", ["garbage", '{"n":1} ', "", '{"n":1}{}'])
def test_a_detail_that_is_no_json_any_more_is_a_changed_row_for_whoever_reads_it_over_the_api(bench, detail):
    bench.add(5)
    bench.change(TABLE.update().where(TABLE.c.seq == 2).values(detail=detail))
    sent = msgspec.json.encode(bench.store.write_now(AUDIT.read))
    assert follow(ChainHead(), msgspec.json.decode(sent, type=list[AuditRow]))[1] == 2
    assert bench.store.write_now(AUDIT.verify).broken_at_seq == 2
