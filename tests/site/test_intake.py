"""The importer on real files and a real database: torn, damaged, repeated, killed between any two steps."""

import asyncio
import fcntl
import io
import json
import os

import msgspec
import pytest
from alembic import command
from alembic.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import depth
from tests.site.fresh_database import open_database
from tests.site.usage_files import Worker, make_event, records

from madang.core import Unavailable
from madang.model import UsageEvent
from madang.runtime.clock import SystemEntropy
from madang.runtime.store import Store, sqlite_url, upgrade_schema
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.intake import READS_MAX, Importer, OutboxGauge
from madang.site.outbox import (
    forget_batch,
    read_batch,
    read_outbox_state,
    read_segments,
    read_totals,
)
from madang.site.segments import EMPTY_KEPT_S, SegmentFolder, sum_in_flight
from madang.site.tables import OUTBOX
from madang.wire.bus import BATCH_BYTES_MAX, USAGE_EVENTS_PER_BATCH_MAX, UsageBatch, decode
from madang.wire.usage_log import MAGIC, encode_record


class FakeClock:
    def __init__(self):
        self.now_s = 1_800_000_000.0

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


class Site:
    """Usage folder, database and importer; `restart` is what remains after kill -9."""

    def __init__(self, folder):
        self.usage = folder / "usage"
        self.usage.mkdir(parents=True)
        self.database = folder / "site.db"
        self.clock = FakeClock()
        self.text = io.StringIO()
        self.log = EventLog(self.clock, self.text)
        self.start()

    def start(self):
        self.store = open_database(self.database)
        self.guard = GuardedStore(self.store, self.log)
        self.gauge = OutboxGauge()
        self.importer = Importer(
            folder=SegmentFolder(self.usage),
            store=self.guard,
            gauge=self.gauge,
            clock=self.clock,
            entropy=SystemEntropy(),
            log=self.log,
        )
        self.run(self.importer.load())

    def restart(self):
        self.store.close()
        self.start()

    def run(self, awaitable):
        return asyncio.run(awaitable)

    def settle(self):
        """Import until nothing is new, and once more after the period in which finished segments are looked for."""

        async def go():
            for _ in range(2):
                while await self.importer.step():
                    pass
                self.clock.now_s += 1.5
            await self.importer.step()

        self.run(go())

    def outbox(self):
        query = OUTBOX.select().order_by(OUTBOX.c.seq)
        rows = self.run(self.store.read(lambda connection: connection.execute(query).all()))
        events = [event for row in rows for event in msgspec.json.decode(b"[%b]" % row.payload, type=list[UsageEvent])]
        assert len(events) == sum(row.events for row in rows)
        return [event.completion_tokens for event in events]

    def files(self):
        return sorted(str(path.relative_to(self.usage)) for path in self.usage.rglob("*.log"))

    def events(self):
        return [json.loads(line)["event"] for line in self.text.getvalue().splitlines()]


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path)
    yield found
    found.store.close()


def test_events_are_imported_as_they_are_written_and_the_open_segment_stays(site):
    worker = Worker(site.usage)
    worker.write(records(1, 2))
    site.settle()
    assert site.outbox() == [1, 2]
    worker.write(records(3))
    site.settle()
    assert site.outbox() == [1, 2, 3]
    assert site.files() == [worker.path.name]
    assert site.gauge.rows == 3
    worker.die()


def test_a_finished_segment_goes_while_events_come_without_end(site):
    worker = Worker(site.usage)
    worker.write(records(1))
    finished = worker.path.name
    worker.rotate()
    for number in range(2, 5):
        worker.write(records(number))
        assert site.run(site.importer.step()), "there is something new each time"
        site.clock.now_s += 1.5
    assert finished not in site.files()
    assert site.outbox() == [1, 2, 3, 4]
    worker.die()


def test_a_record_that_is_being_written_is_waited_for(site):
    worker = Worker(site.usage)
    first, second = records(1), records(2)
    worker.write(first + second[:30])
    site.settle()
    assert site.outbox() == [1]
    worker.write(second[30:])
    site.settle()
    assert site.outbox() == [1, 2]
    assert site.importer.counts.damaged == 0
    worker.die()


def test_a_segment_goes_when_its_worker_rotated_or_died(site):
    worker = Worker(site.usage)
    worker.write(records(1))
    worker.rotate()
    worker.write(records(2))
    site.settle()
    assert site.files() == [worker.path.name]
    worker.die()
    site.settle()
    assert site.files() == []
    assert site.outbox() == [1, 2]
    site.settle()
    assert site.run(site.store.read(read_segments)) == {}, "rows of removed segments are forgotten"


def test_a_segment_that_is_still_written_stays_also_beside_a_newer_one(site):
    old = Worker(site.usage, boot="a0")
    new = Worker(site.usage, boot="b0")
    old.write(records(1))
    site.settle()
    old.write(records(2))
    site.settle()
    assert site.outbox() == [1, 2]
    assert old.path.name in site.files()
    old.die()
    new.die()


def test_a_torn_tail_of_a_dead_worker_is_told_and_dropped(site):
    worker = Worker(site.usage)
    worker.write(records(1) + records(2)[:-5])
    site.settle()
    assert site.files() == [worker.path.name]
    worker.die()
    site.settle()
    assert site.outbox() == [1]
    assert site.files() == []
    assert site.importer.counts.tails == 1
    assert "usage_tail_dropped" in site.events()


def test_a_damaged_record_costs_itself_and_the_file_is_kept_for_people(site):
    worker = Worker(site.usage)
    bad = bytearray(records(2))
    bad[40] ^= 0xFF
    worker.write(records(1) + bytes(bad) + records(3))
    site.settle()
    assert site.outbox() == [1, 3]
    assert site.importer.counts.damaged == 1
    assert "usage_segment_damaged" in site.events()
    worker.write(records(4))
    site.settle()
    assert site.outbox() == [1, 3, 4], "the worker that lives goes on writing to it"
    site.restart()
    worker.die()
    site.settle()
    assert site.files() == [f"quarantine/{worker.path.name}"], "also when the damage was met in an earlier life"
    assert "usage_segment_quarantined" in site.events()


@pytest.mark.parametrize("head", [b"MDGUSE2\n", b"\x00" * 8, MAGIC[:-1] + b"?"])
def test_a_segment_of_another_format_is_kept_for_people(site, head):
    (site.usage / "w0-b0-1.log").write_bytes(head + b"\x01" * 100)
    site.settle()
    assert site.outbox() == []
    assert site.files() == ["quarantine/w0-b0-1.log"]


def test_a_damaged_magic_does_not_cost_the_events(site):
    (site.usage / "w0-b0-1.log").write_bytes(b"\x00" * 8 + records(1, 2))
    site.settle()
    assert site.outbox() == [1, 2]
    assert site.files() == ["quarantine/w0-b0-1.log"]


def test_an_empty_segment_is_left_to_the_worker_that_is_about_to_lock_it(site):
    path = site.usage / "w0-b0-1.log"
    path.write_bytes(b"")
    os.utime(path, (site.clock.now_s, site.clock.now_s))
    site.settle()
    assert site.files() == ["w0-b0-1.log"]
    site.clock.now_s += EMPTY_KEPT_S
    site.settle()
    assert site.files() == []


def test_files_of_others_are_left_alone(site):
    for name in ("notes.txt", "w0-b0-1.log.tmp", "w0-xyz-1.log"):
        (site.usage / name).write_bytes(b"x")
    site.settle()
    assert len(list(site.usage.iterdir())) == 3


def test_an_event_that_comes_twice_is_one_row_and_counted_once(site):
    for boot in ("a0", "b0"):
        worker = Worker(site.usage, boot=boot)
        worker.write(records(1, 1, 2))
        worker.die()
    site.settle()
    assert site.outbox() == [1, 2]
    assert site.importer.counts.repeated == 4
    (total,) = site.run(site.store.read(read_totals))
    assert (total["events"], total["completion_tokens"], total["prompt_tokens"]) == (2, 3, 20)


def test_totals_count_every_unit(site):
    worker = Worker(site.usage, boot="a0")
    counted = ({"audio_ms": 1}, {"audio_ms": 2_000}, {"images": 3}, {"samples": 4}, {"samples": 5})
    worker.write(b"".join(records(number, **fields) for number, fields in enumerate(counted)))
    worker.die()
    site.settle()
    (total,) = site.run(site.store.read(read_totals))
    assert (total["audio_s"], total["images"], total["samples"]) == (1 + 2, 3, 9), "sound by the begun second"


@settings(max_examples=depth(20, 500))
@given(
    st.lists(st.sampled_from(["write", "torn", "rotate", "die", "import", "crash", "unstored", "finish"]), max_size=25)
)
def test_no_order_of_crashes_loses_or_doubles_an_event(tmp_path_factory, steps):
    site = Site(tmp_path_factory.mktemp("intake"))
    written, boots = 0, 0
    worker = Worker(site.usage, boot=f"{boots:02x}")
    for step in steps:
        if step == "write":
            written += 1
            worker.write(records(written))
        elif step == "rotate":
            worker.rotate()
        elif step in ("die", "torn"):
            if step == "torn":
                worker.write(records(9999)[:20])
            worker.die()
            boots += 1
            worker = Worker(site.usage, boot=f"{boots:02x}")
        elif step == "import":
            site.run(site.importer.step())
        elif step == "finish":
            site.settle()
        elif step == "unstored":
            site.importer._read()  # killed after reading, before the transaction
            site.restart()
        else:
            site.restart()
    worker.die()
    site.settle()
    # Segments of two lives of a worker may be read in either order: what counts is that nothing is lost or doubled.
    assert sorted(site.outbox()) == list(range(1, written + 1))
    assert site.gauge.rows == written
    assert site.files() == []
    assert sum(row["events"] for row in site.run(site.store.read(read_totals))) == written
    site.store.close()


def test_a_full_disk_stops_importing_says_so_and_loses_nothing(site):
    worker = Worker(site.usage)
    worker.write(records(1))
    site.settle()
    bound(site, is_full=True)
    worker.write(records(*range(2, 400)))
    with pytest.raises(Unavailable, match="disk is full"):
        site.settle()
    assert "disk is full" in site.guard.trouble
    assert site.outbox() == [1]
    bound(site, is_full=False)
    site.settle()
    assert site.outbox() == list(range(1, 400))
    assert site.guard.trouble == ""
    assert [name for name in site.events() if name.startswith("site_store")] == [
        "site_store_unwritable",
        "site_store_writable",
    ]
    worker.die()


def bound(site, *, is_full):
    """Make SQLite itself say that the disk is full, or not."""

    def change(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages if is_full else 1_000_000}")

    site.run(site.store.write(change))


def test_a_folder_that_cannot_be_read_is_named(site, tmp_path):
    site.importer._folder = SegmentFolder(tmp_path / "nowhere")
    with pytest.raises(Unavailable, match="nowhere"):
        site.run(site.importer.step())


def test_a_busy_worker_holds_no_other_up(site):
    busy = [Worker(site.usage, worker=number) for number in range(READS_MAX)]
    quiet = Worker(site.usage, worker=9)
    quiet.write(records(1))
    for round_ in range(2):
        for number, worker in enumerate(busy):
            worker.write(records(100 + 10 * round_ + number))
        site.run(site.importer.step())
    assert 1 in site.outbox()
    for worker in (*busy, quiet):
        worker.die()


def test_a_batch_holds_the_oldest_events_and_at_most_its_bounds(site):
    worker = Worker(site.usage)
    worker.write(records(*range(USAGE_EVENTS_PER_BATCH_MAX + 10)))
    worker.die()
    site.settle()
    batch = site.run(site.store.read(lambda connection: read_batch(connection, "daegu")))
    message = decode(batch.payload, UsageBatch)
    assert message.batch_id == batch.batch_id
    assert message.site == "daegu"
    assert message.events == tuple(make_event(n) for n in range(USAGE_EVENTS_PER_BATCH_MAX))
    again = site.run(site.store.read(lambda connection: read_batch(connection, "daegu")))
    assert again == batch
    site.run(site.store.write(lambda connection: forget_batch(connection, batch)))
    rest = site.run(site.store.read(lambda connection: read_batch(connection, "daegu")))
    assert rest.events == 10
    assert rest.batch_id != batch.batch_id
    assert site.run(site.store.read(read_outbox_state)).events == 10


def test_a_batch_of_large_events_fits_into_one_message(site):
    worker = Worker(site.usage)
    for number in range(40):
        worker.write(encode_record(make_event(number, model="m" * 60_000)))
    worker.die()
    site.settle()
    batch = site.run(site.store.read(lambda connection: read_batch(connection, "daegu")))
    assert 1 < batch.events < 40
    assert len(batch.payload) <= BATCH_BYTES_MAX


def test_an_impossible_time_does_not_stop_the_totals(site):
    worker = Worker(site.usage)
    for number, at_s in enumerate([float("inf"), float("nan"), 1e300, -1e300]):
        worker.write(encode_record(make_event(number, started_at_s=at_s)))
    worker.die()
    site.settle()
    assert len(site.outbox()) == 4


def test_only_live_workers_counters_are_summed(tmp_path):
    def table(counts):
        return b"".join(counts.get(slot, 0).to_bytes(4, "little") for slot in range(256))

    (tmp_path / "inflight-0.bin").write_bytes(table({0: 2, 255: 7}))
    (tmp_path / "inflight-1.bin").write_bytes(table({0: 3}))
    (tmp_path / "inflight-2.bin").write_bytes(table({0: 50}))
    (tmp_path / "inflight-3.bin").write_bytes(b"\xff" * 10)
    (tmp_path / "other.bin").write_bytes(table({0: 99}))
    held = [os.open(tmp_path / f"inflight-{worker}.bin", os.O_RDONLY) for worker in (0, 1, 3)]
    for descriptor in held:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    totals = sum_in_flight(tmp_path)
    assert totals[0] == 5
    assert totals[255] == 7
    assert sum(totals) == 12
    for descriptor in held:
        os.close(descriptor)
    assert sum_in_flight(tmp_path) == [0] * 256
    assert sum_in_flight(tmp_path / "nowhere") == [0] * 256


def test_what_waited_before_bundles_waits_in_them(tmp_path):
    """A database of the release before: each row becomes a bundle of one event, in the same order."""
    store = Store(sqlite_url(tmp_path / "site.db"))
    config = Config()
    config.set_main_option("script_location", "madang.site:migrations")
    config.set_main_option("path_separator", "os")
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for number in (3, 1, 2):
            event = make_event(number)
            connection.exec_driver_sql(
                "INSERT INTO outbox (event_id, payload, appended_at_s) VALUES (?, ?, 5.0)",
                (event.event_id, msgspec.json.encode(event)),
            )
    upgrade_schema(store.engine, "madang.site:migrations")
    batch = store.write_now(lambda connection: read_batch(connection, "daegu"))
    assert decode(batch.payload, UsageBatch).events == tuple(make_event(n) for n in (3, 1, 2))
    assert store.write_now(read_outbox_state).events == 3
    store.close()
