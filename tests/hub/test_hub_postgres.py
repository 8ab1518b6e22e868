"""What several hubs over one PostgreSQL rely on: writers take turns, readers see one commit, lost servers come back."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from tests.hub.hub_harness import running_hub, until
from tests.hub.test_hub_convergence import TENANT, make_key
from tests.hub.test_hub_ingest import repeats

from madang.core import Conflict, MadangError, Rejected, Unavailable
from madang.hub.tables import METADATA, SITE_GENERATION
from madang.runtime import store as stores
from madang.runtime.store import Store

pytestmark = pytest.mark.peer

GENERATION = SITE_GENERATION.c.generation


@pytest.fixture
def url(postgres):
    with postgres.database() as url:
        yield url


@pytest.fixture
def two(url):
    """Two hubs' stores over one database, in which daegu's generation is 0."""
    made = [Store(url), Store(url)]
    made[0].write_now(lambda c: c.execute(SITE_GENERATION.insert(), {"site": "daegu", "generation": 0}))
    yield made
    for one in made:
        one.close()


def read_generation(connection):
    return connection.scalar(sa.select(GENERATION))


def set_generation(connection, value):
    connection.execute(SITE_GENERATION.update().values(generation=value))


def test_migrations_and_tables_agree(two):
    assert two[0].write_now(lambda c: compare_metadata(MigrationContext.configure(c), METADATA)) == []


@pytest.mark.parametrize("statement", ["DELETE FROM audit", "UPDATE audit SET actor = 'x'", "TRUNCATE audit"])
def test_the_audit_chain_is_only_ever_added_to(two, statement):
    with pytest.raises(Conflict, match="append-only"):
        two[0].write_now(lambda c: c.execute(sa.text(statement)))


def test_writers_read_decide_and_write_one_after_the_other(two):
    def increment(connection):
        value = read_generation(connection)
        time.sleep(0.002)  # no wait: time for another to do the same, if it may
        set_generation(connection, value + 1)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(two[number % 2].write_now, increment) for number in range(60)]:
            future.result()
    assert two[0].write_now(read_generation) == 60


def test_a_reader_sees_one_commit_throughout_and_cannot_write(two):
    def read_around_a_write(connection):
        before = read_generation(connection)
        two[1].write_now(lambda c: set_generation(c, 7))
        return before, read_generation(connection)

    assert asyncio.run(two[0].read(read_around_a_write)) == (0, 0)
    assert asyncio.run(two[0].read(read_generation)) == 7
    with pytest.raises(MadangError, match="read-only transaction"):
        asyncio.run(two[0].read(lambda c: set_generation(c, 8)))


def test_a_writer_that_hangs_is_ended_by_the_server_and_the_others_go_on(monkeypatch, url):
    monkeypatch.setattr(stores, "_IDLE_TIMEOUT_MS", 200)
    hanging, waiting = Store(url), Store(url)
    has_turn, is_over = threading.Event(), threading.Event()

    def hang(connection):
        connection.execute(SITE_GENERATION.insert(), {"site": "daegu", "generation": 1})
        has_turn.set()
        assert is_over.wait(60)

    try:
        with ThreadPoolExecutor(1) as pool:
            hung = pool.submit(hanging.write_now, hang)
            try:
                assert has_turn.wait(60)
                waiting.write_now(lambda c: c.execute(SITE_GENERATION.insert(), {"site": "daegu", "generation": 2}))
            finally:
                is_over.set()
            with pytest.raises(Unavailable):
                hung.result()
        assert hanging.write_now(read_generation) == 2, "what hung was rolled back, and its hub goes on"
    finally:
        hanging.close()
        waiting.close()


def test_who_waits_too_long_for_its_turn_is_told_whom_to_look_for(monkeypatch, url):
    monkeypatch.setattr(stores, "_LOCK_TIMEOUT_MS", 100)
    holding, waiting = Store(url), Store(url)
    try:
        with pytest.raises(Unavailable, match="lock timeout") as caught:
            holding.write_now(lambda _: waiting.write_now(lambda c: c.scalar(sa.text("SELECT 1"))))
        assert "pg_stat_activity" in caught.value.next_step
    finally:
        holding.close()
        waiting.close()


def test_a_hub_over_it_survives_its_crash_and_loses_nothing_that_was_confirmed(postgres, url, tmp_path):
    async def play():
        async with running_hub(tmp_path, database_url=url) as hub:
            await hub.call("POST", "/api/v1/tenants", TENANT)
            await make_key(hub, "k1")
            await asyncio.to_thread(postgres.crash)
            answer = await hub.client.get("/api/v1/tenants")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), answer.text
            await asyncio.to_thread(postgres.start)

            async def answers():
                return (await hub.client.get("/api/v1/tenants")).status_code == 200

            await until(answers, "the hub uses the database again")
            await make_key(hub, "k2")
            assert {key["key_id"] for key in await hub.call("GET", "/api/v1/keys")} == {"k1", "k2"}
            await until(hub.is_ready, "the hub is ready again")

    asyncio.run(asyncio.wait_for(play(), 110))


def test_usage_is_entered_once_over_it_too(url, tmp_path):
    asyncio.run(asyncio.wait_for(repeats(tmp_path, database_url=url), 110))


@pytest.mark.parametrize(
    "url",
    ["postgresql://madang:hunter2@db.example/madang", "postgresql://madang@/madang?host=db.example&password=hunter2"],
)
def test_a_password_in_the_url_is_refused_and_never_said(url):
    with pytest.raises(Rejected, match="holds a password") as caught:
        Store(url)
    assert "passfile" in caught.value.next_step
    assert "hunter2" not in f"{caught.value} {caught.value.next_step}"
