"""Databases: migrations and their refusals, one writer, bounded waiting."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from madang.core import Conflict, Fault, Rejected, Unavailable
from madang.runtime.store import Store, open_engine, sqlite_url, upgrade_schema

LOCATION = "madang.hub:migrations"
AUDIT_COUNT = sa.text("SELECT count(*) FROM audit")


@pytest.fixture
def store(tmp_path):
    made = Store(sqlite_url(tmp_path / "x.db"), writes_pending_max=4, reads_pending_max=4)
    yield made
    made.close()


def test_an_empty_database_is_brought_up_to_date_and_again_changes_nothing(store):
    first = upgrade_schema(store.engine, LOCATION)
    assert upgrade_schema(store.engine, LOCATION) == first
    assert store.write_now(lambda c: c.execute(AUDIT_COUNT).scalar()) == 0


def test_a_program_whose_database_is_up_to_date_imports_no_alembic_and_no_websockets(store):
    upgrade_schema(store.engine, LOCATION)
    words = (
        "import sys, madang.runtime.bus\n"
        "from madang.runtime.store import open_engine, upgrade_schema\n"
        f"upgrade_schema(open_engine({str(store.engine.url)!r}), {LOCATION!r})\n"
        "print(*(name for name in ('alembic', 'aiohttp', 'nats') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("nats\n", "")


def test_a_database_of_a_newer_release_is_refused_naming_both_and_left_alone(store):
    head = upgrade_schema(store.engine, LOCATION)
    store.write_now(lambda c: c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(Rejected, match=f"schema 9999, newer than this release, which knows up to {head}"):
        upgrade_schema(store.engine, LOCATION)
    assert store.write_now(lambda c: c.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()) == "9999"


def test_a_migration_that_fails_half_way_leaves_nothing(store):
    store.write_now(lambda c: c.execute(sa.text("CREATE TABLE ledger (x INTEGER)")))
    with pytest.raises(Unavailable, match="already exists"):
        upgrade_schema(store.engine, LOCATION)
    tables = store.write_now(lambda c: sa.inspect(c).get_table_names())
    assert tables == ["ledger"]


def test_a_file_that_is_no_database_is_a_fault_that_names_it(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"this is not a database at all, really not" * 100)
    store = Store(sqlite_url(path))
    with pytest.raises(Fault, match=r"x\.db is damaged"):
        upgrade_schema(store.engine, LOCATION)
    store.close()


def test_a_missing_folder_is_named(tmp_path):
    store = Store(sqlite_url(tmp_path / "no" / "x.db"))
    with pytest.raises(Unavailable, match=r"no/x\.db") as caught:
        upgrade_schema(store.engine, LOCATION)
    assert "folder" in caught.value.next_step
    store.close()


def test_a_full_disk_is_said_and_nothing_is_half_written(store):
    upgrade_schema(store.engine, LOCATION)

    def fill(connection):
        pages = connection.execute(sa.text("PRAGMA page_count")).scalar()
        connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
        connection.execute(sa.text("INSERT INTO tenant VALUES ('small', 'x', 0)"))
        connection.execute(sa.text("INSERT INTO tenant VALUES ('t', hex(randomblob(1000000)), 0)"))

    with pytest.raises(Unavailable, match="full") as caught:
        store.write_now(fill)
    assert "free space" in caught.value.next_step
    assert store.write_now(lambda c: c.execute(sa.text("SELECT count(*) FROM tenant")).scalar()) == 0


@pytest.mark.parametrize("url", ["nonsense", "mysql+none://x/y", "://"])
def test_an_unusable_url_is_refused(url):
    with pytest.raises(Rejected, match="not usable"):
        open_engine(url)


def test_the_settings_of_a_connection_are_those_that_survive_a_power_loss(store):
    pragmas = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for name, value in pragmas.items():
        assert store.write_now(lambda c, n=name: c.execute(sa.text(f"PRAGMA {n}")).scalar()) == value


def test_what_raises_is_rolled_back(store):
    upgrade_schema(store.engine, LOCATION)

    def half(connection):
        connection.execute(sa.text("INSERT INTO tenant VALUES ('t', '{}', 0)"))
        raise Rejected("no")

    async def run():
        with pytest.raises(Rejected, match="no"):
            await store.write(half)
        with pytest.raises(Conflict):
            await store.write(lambda c: [c.execute(sa.text("INSERT INTO tenant VALUES ('t', '{}', 0)")) for _ in "ab"])
        return await store.read(lambda c: c.execute(sa.text("SELECT count(*) FROM tenant")).scalar())

    assert asyncio.run(run()) == 0


def test_a_reader_cannot_write_and_does_not_wait_for_the_writer(store):
    upgrade_schema(store.engine, LOCATION)
    may_end = threading.Event()

    def hold(connection):
        connection.execute(sa.text("INSERT INTO tenant VALUES ('t', '{}', 0)"))
        assert may_end.wait(10)

    async def run():
        writing = asyncio.create_task(store.write(hold))
        count = await store.read(lambda c: c.execute(sa.text("SELECT count(*) FROM tenant")).scalar())
        assert count == 0
        with pytest.raises(Unavailable, match="readonly"):
            await store.read(lambda c: c.execute(sa.text("INSERT INTO tenant VALUES ('u', '{}', 0)")))
        may_end.set()
        await writing

    asyncio.run(run())


def test_too_many_waiting_writes_are_refused_at_once_and_order_is_kept(store):
    order = []
    may_end = threading.Event()

    async def run():
        tasks = [asyncio.create_task(store.write(lambda c: order.append(may_end.wait(10) and 0)))]
        tasks += [asyncio.create_task(store.write(lambda c, n=n: order.append(n))) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="4 writes already wait"):
            await store.write(lambda c: order.append(99))
        may_end.set()
        await asyncio.gather(*tasks)
        await store.write(lambda c: order.append(4))

    asyncio.run(run())
    assert order == [0, 1, 2, 3, 4]


def test_a_second_process_that_holds_the_lock_is_named_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("madang.runtime.store._BUSY_TIMEOUT_S", 0.05)
    store = Store(sqlite_url(tmp_path / "x.db"))
    upgrade_schema(store.engine, LOCATION)
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked") as caught:
        store.write_now(lambda c: c.execute(AUDIT_COUNT))
    assert "other process" in caught.value.next_step
    other.close()
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_missing_permission_is_named(tmp_path):
    path = tmp_path / "x.db"
    Store(sqlite_url(path)).close()
    path.touch()
    path.chmod(0o400)
    store = Store(sqlite_url(path))
    with pytest.raises(Unavailable, match=r"x\.db"):
        upgrade_schema(store.engine, LOCATION)
    store.close()


def test_only_their_owner_can_read_a_databases_files(tmp_path):
    before = os.umask(0)
    try:
        path = tmp_path / "x.db"
        store = Store(sqlite_url(path))
        store.write_now(lambda connection: connection.exec_driver_sql("CREATE TABLE t (a)"))
        asyncio.run(store.read(lambda connection: connection.exec_driver_sql("SELECT * FROM t").all()))
        modes = {one.name: one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
        assert modes == {"x.db": 0o600, "x.db-wal": 0o600, "x.db-shm": 0o600}
        for one in tmp_path.iterdir():
            one.chmod(0o644)
        other = Store(sqlite_url(path))  # as after an upgrade, and while somebody still has it open
        other.write_now(lambda connection: connection.exec_driver_sql("INSERT INTO t VALUES (1)"))
        assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o600}
        other.close()
        store.close()
    finally:
        os.umask(before)
