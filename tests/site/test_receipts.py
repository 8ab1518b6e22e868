"""Receipts at a site: made with the import, there when the outbox forgot, killed between steps, ended in time."""

import asyncio
import io
import os

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.site.fresh_database import open_database
from tests.site.usage_files import Worker, make_event
from tests.wire.receipt_documents import check_independently

from madang.core import Fault
from madang.runtime.clock import SystemEntropy
from madang.runtime.signing import is_signed_by
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.intake import Importer, OutboxGauge
from madang.site.internal import make_internal_app
from madang.site.outbox import forget_batch, read_batch
from madang.site.receipt_api import PATIENCE_S, ReceiptApi
from madang.site.receipt_book import TREES_PER_PRUNE, ReceiptBook, place_of
from madang.site.segments import SegmentFolder
from madang.site.tables import RECEIPT_INDEX, RECEIPT_TREE
from madang.wire.receipts import SiteKey, make_kid, verify_receipt
from madang.wire.usage_log import encode_record

TOKEN = b"gateway-token"
DAY_S = 86_400.0


class FakeClock:
    def __init__(self):
        self.now_s = 1_790_000_000.0

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


class Site:
    """A usage folder, a database, importer, book and route; `restart` is what remains after kill -9."""

    def __init__(self, folder):
        self.usage = folder / "usage"
        self.usage.mkdir(parents=True)
        self.database = folder / "site.db"
        self.clock = FakeClock()
        self.log = EventLog(self.clock, io.StringIO())
        self.identity = Ed25519PrivateKey.generate()
        self.start()

    def start(self):
        self.store = open_database(self.database)
        guard = GuardedStore(self.store, self.log)
        self.book = ReceiptBook(
            site="daegu",
            identity=self.identity,
            store=guard,
            retention_s=90 * DAY_S,
            clock=self.clock,
            log=self.log,
        )
        self.importer = Importer(
            folder=SegmentFolder(self.usage),
            store=guard,
            gauge=OutboxGauge(),
            clock=self.clock,
            entropy=SystemEntropy(),
            log=self.log,
            on_added=self.book.add,
        )
        asyncio.run(self.importer.load())
        api = ReceiptApi("daegu", self.book, self.clock, lambda: self.importer.is_behind)
        self.app = make_internal_app(api.routes(), TOKEN, self.log)

    def restart(self):
        self.store.close()
        self.start()

    def settle(self):
        while asyncio.run(self.importer.step()):
            pass
        self.importer._has_caught_up = True

    def ask(self, receipt_id, tenant="t1"):
        async def call():
            fields = {
                "authorization": f"Bearer {TOKEN.decode()}",
                "x-madang-tenant": tenant,
                "x-madang-key": "k1",
                "x-madang-request-id": f"daegu-{1:032x}",
                "x-madang-data-class": "sensitive",
            }
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
                return await client.get(f"/internal/v1/receipts/{receipt_id}", headers=fields)

        return asyncio.run(call())

    def keys(self):
        public_key = self.identity.public_key().public_bytes_raw()
        return [
            SiteKey(site="daegu", public_key=public_key.hex(), kid=make_kid(public_key), valid_from_s=self.clock.now_s)
        ]

    def verified(self, receipt_id):
        answer = self.ask(receipt_id)
        assert answer.status_code == 200, answer.text
        check_independently(answer.text, self.keys()[0].public_key)
        return verify_receipt(answer.content, self.keys(), is_signed_by)

    def now_event(self, number, **changes):
        """Return an event of a request that entered now."""
        ms = int(self.clock.now_s * 1000)
        request_id = f"daegu-{ms:012x}{number:020x}"
        attempt = changes.get("attempt", 1)
        return make_event(number, **{"request_id": request_id, "event_id": f"{request_id}.{attempt}", **changes})

    def count(self, table):
        with self.store.engine.begin() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table))


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.store.close()


def write(worker, *events):
    worker.write(b"".join(encode_record(event) for event in events))


def test_a_receipt_is_there_with_the_import_and_verifies(site):
    worker = Worker(site.usage)
    events = [site.now_event(number) for number in range(7)]
    write(worker, *events)
    assert site.ask(events[0].event_id).json()["error"]["code"] == "not_yet"
    site.settle()
    for number, event in enumerate(events):
        verdict = site.verified(event.event_id)
        assert verdict.event.completion_tokens == number
        assert verdict.receipt.root.size == 7
        assert site.ask(event.request_id).content == site.ask(event.event_id).content
    assert site.count(RECEIPT_TREE) == 1


def test_an_import_is_one_tree_and_an_event_is_once_in_it(site):
    worker = Worker(site.usage)
    write(worker, site.now_event(1))
    site.settle()
    write(worker, site.now_event(2), site.now_event(2))
    site.settle()
    assert site.count(RECEIPT_TREE) == 2
    assert site.verified(site.now_event(2).event_id).receipt.root.size == 1
    write(worker, site.now_event(2))  # a segment that somebody put back
    site.settle()
    assert site.verified(site.now_event(2).event_id).event.completion_tokens == 2


def test_a_receipt_outlives_the_outbox_and_the_process(site):
    worker = Worker(site.usage)
    event = site.now_event(1)
    write(worker, event)
    site.restart()
    site.settle()
    with site.store.engine.begin() as connection:
        batch = read_batch(connection, "daegu")
        forget_batch(connection, batch)
    before = site.ask(event.event_id).content
    site.restart()
    assert site.ask(event.event_id).content == before
    site.verified(event.event_id)


def test_a_death_within_the_import_leaves_neither_offset_nor_tree(site):
    worker = Worker(site.usage)
    event = site.now_event(1)
    write(worker, event)

    def die(connection, events, now_s):
        ReceiptBook.add(site.book, connection, events, now_s)
        raise OSError("killed")

    site.importer._on_added = die
    with pytest.raises(OSError, match="killed"):
        asyncio.run(site.importer.step())
    assert site.count(RECEIPT_TREE) == 0
    site.restart()
    site.settle()
    site.verified(event.event_id)


def test_the_last_attempt_answers_for_the_request(site):
    worker = Worker(site.usage)
    events = [site.now_event(1, attempt=attempt) for attempt in (2, 1, 3)]
    for event in events:
        write(worker, event)
        site.settle()
    assert site.verified(events[0].request_id).event.attempt == 3
    assert site.verified(events[1].event_id).event.attempt == 1


def test_another_tenants_receipt_is_told_apart_from_none_by_nobody(site):
    event = site.now_event(1)
    write(Worker(site.usage), event)
    site.settle()
    site.clock.now_s += PATIENCE_S + 1
    foreign, missing = site.ask(event.event_id, "t2"), site.ask(site.now_event(9).event_id.replace("daegu", "gumi"))
    assert foreign.status_code == 404
    assert "retry-after" not in foreign.headers
    assert foreign.json()["error"]["code"] == "invalid_request"
    assert missing.status_code == 404


def test_not_yet_ends_when_the_request_is_old_and_the_importer_is_not_behind(site):
    event = site.now_event(1)
    site.clock.now_s += PATIENCE_S + 1
    assert site.ask(event.event_id).json()["error"]["code"] == "not_yet"  # has not looked since its start
    site.settle()
    late = site.ask(event.event_id)
    assert (late.status_code, late.json()["error"]["code"]) == (404, "invalid_request")
    young = site.ask(site.now_event(2).event_id)
    assert (young.status_code, young.json()["error"]["code"], young.headers["retry-after"]) == (404, "not_yet", "1")


@pytest.mark.parametrize("receipt_id", ["x", "daegu-12.1", "daegu-" + "0" * 32 + ".0", "%2e%2e", "a" * 3000])
def test_what_is_no_id_is_not_found(site, receipt_id):
    answer = site.ask(receipt_id)
    assert answer.status_code == 404
    assert len(answer.content) < 500


def test_requests_that_share_a_place_are_told_apart(site):
    """The index has 12 bits of chance beside the time; the rest of the id decides."""
    ms = int(site.clock.now_s * 1000)
    requests = [f"daegu-{ms:012x}abc{number:017x}" for number in range(3)]
    assert len({place_of(one) for one in requests}) == 1
    for number, one in enumerate(requests):
        write(Worker(site.usage, boot=f"b{number}"), make_event(number, request_id=one, event_id=f"{one}.1"))
        site.settle()
    for number, one in enumerate(requests):
        assert site.verified(one).event.completion_tokens == number


def test_receipts_end_in_time_and_in_bounded_steps(site):
    worker = Worker(site.usage)
    for number in range(TREES_PER_PRUNE + 3):
        write(worker, site.now_event(number), site.now_event(number + 1000))
        site.settle()
    site.clock.now_s += 89 * DAY_S
    assert asyncio.run(site.book.prune()) == 0
    write(worker, site.now_event(9999))
    site.settle()
    site.clock.now_s += 2 * DAY_S
    assert asyncio.run(site.book.prune()) == TREES_PER_PRUNE
    assert asyncio.run(site.book.prune()) == 3
    assert asyncio.run(site.book.prune()) == 0
    assert (site.count(RECEIPT_TREE), site.count(RECEIPT_INDEX)) == (1, 1)
    # Numbers of trees are never used again.
    site.restart()
    site.clock.now_s += 91 * DAY_S
    assert asyncio.run(site.book.prune()) == 1
    write(worker, site.now_event(1))
    site.settle()
    assert site.verified(site.now_event(1).event_id).receipt.root.tree_id == TREES_PER_PRUNE + 5


def test_receipts_of_an_earlier_identity_stay_under_its_key(site):
    """A site that was revoked and enrolled anew gives out what it signed before, as it was signed."""
    worker = Worker(site.usage)
    write(worker, site.now_event(1))
    site.settle()
    before = site.ask(site.now_event(1).event_id).content
    earlier = site.keys()
    site.identity = Ed25519PrivateKey.generate()
    site.restart()
    write(worker, site.now_event(2))
    site.settle()
    assert site.ask(site.now_event(1).event_id).content == before
    verify_receipt(before, earlier, is_signed_by)
    assert site.verified(site.now_event(2).event_id).key == site.keys()[0]


def test_a_damaged_tree_is_named_and_not_given_out(site):
    event = site.now_event(1)
    write(Worker(site.usage), event, site.now_event(2))
    site.settle()
    with site.store.engine.begin() as connection:
        connection.execute(RECEIPT_TREE.update().values(root=os.urandom(32)))
    with pytest.raises(Fault, match="receipt tree 1 is damaged"):
        asyncio.run(site.book.find(event.request_id, 1, "t1"))
    assert site.ask(event.event_id).status_code == 500
    with site.store.engine.begin() as connection:
        connection.execute(RECEIPT_TREE.update().values(events=b"not zlib"))
    with pytest.raises(Fault, match="receipt tree 1 is damaged"):
        asyncio.run(site.book.find(event.request_id, 1, "t1"))
    # What nobody can read is forgotten in time like all else.
    site.clock.now_s += 91 * DAY_S
    assert asyncio.run(site.book.prune()) == 1


def test_odd_numbers_cost_no_batch(site):
    odd = site.now_event(1, started_at_s=float("nan"), ttft_s=float("inf"), duration_s=-1e300)
    write(Worker(site.usage), odd, site.now_event(2))
    site.settle()
    assert site.verified(odd.event_id).event.started_at_us == 0
    assert msgspec.json.decode(site.ask(odd.event_id).content)["event"]["ttft_us"] == 0
