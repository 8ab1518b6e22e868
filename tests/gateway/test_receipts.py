"""A request, its event, the import, and the receipt that the same tenant fetches: a real worker, a real book."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.gateway.lab import CITY, PARTS, Answer, Lab, LabSite, LabTenant, wait_until
from tests.site.fresh_database import open_database
from tests.wire.receipt_documents import check_independently

from madang.core import SiteId
from madang.model import ApiKey, Site
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.files import write_secret
from madang.runtime.signing import is_signed_by
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.intake import Importer, OutboxGauge
from madang.site.internal import Doors, make_internal_app
from madang.site.receipt_api import ReceiptApi
from madang.site.receipt_book import ReceiptBook
from madang.site.receipt_peers import PeerReceipts
from madang.site.segments import SegmentFolder
from madang.wire.feed import LIVE_FILE, decode_live
from madang.wire.receipts import SiteKey, Verdict, make_kid, verify_receipt

TOKEN = b"gateway-token-of-the-test"


class _Facts(dict[str, Site]):
    """The sites of a lab, as they are when somebody asks."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def get(self, name: str, default: Any = None) -> Any:
        return self._lab.sites[name].fact if name in self._lab.sites else default


@dataclass
class SiteProcess:
    """What the site process does for receipts: imports, signs, answers."""

    lab: Lab
    site: LabSite
    folder: Path

    def __post_init__(self) -> None:
        clock, log = SystemClock(), EventLog(SystemClock(), io.StringIO())
        self.identity = Ed25519PrivateKey.generate()
        self.public_key = self.identity.public_key().public_bytes_raw()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.site.usage_dir.mkdir(parents=True, exist_ok=True)
        self.store = open_database(self.folder / "site.db")
        guard = GuardedStore(self.store, log)
        self.book = ReceiptBook(
            site=self.site.name, identity=self.identity, store=guard, retention_s=1e6, clock=clock, log=log
        )
        self.importer = Importer(
            folder=SegmentFolder(self.site.usage_dir),
            store=guard,
            gauge=OutboxGauge(),
            clock=clock,
            entropy=SystemEntropy(),
            log=log,
            on_added=self.book.add,
        )
        others = PeerReceipts(
            site=self.site.name,
            list_peers=lambda: decode_live((self.site.feed_dir / LIVE_FILE).read_bytes()).peers,
            sites=_Facts(self.lab),
            keys={
                tenant.name: ApiKey(
                    key_id=tenant.name, sha256="0" * 64, tenant_id=tenant.name, residency=tenant.residency
                )
                for tenant in self.lab.tenants
            },
            clock=clock,
            log=log,
        )
        api = ReceiptApi(self.site.name, self.book, clock, lambda: False, others)
        app = make_internal_app(api.routes(), TOKEN, log)
        self.server = AdminServer(Doors(app, app), "127.0.0.1", 0)

    async def serve(self) -> str:
        await self.importer.load()
        return f"http://127.0.0.1:{await self.server.start()}"

    def settle(self) -> None:
        async def go() -> None:
            while await self.importer.step():
                pass

        self.lab.run(go())

    def verified(self, answer: Answer) -> Verdict:
        assert answer.status == 200, answer.body
        check_independently(answer.body, self.public_key.hex())
        key = SiteKey(
            site=SiteId(self.site.name), public_key=self.public_key.hex(), kid=make_kid(self.public_key), valid_from_s=0
        )
        return verify_receipt(answer.body, [key], is_signed_by)

    def close(self) -> None:
        self.lab.run(self.server.stop())
        self.store.close()


def open_site(
    lab: Lab, tmp_path: Path, name: str = "daegu", peers: tuple[str, ...] = (), has_engine: bool = True
) -> SiteProcess:
    site = lab.sites.get(name) or lab.site(name)
    site.peers = list(peers)
    process = SiteProcess(lab, site, tmp_path / name / "state")
    url = lab.run(process.serve())
    write_secret(process.folder / "token", TOKEN)
    if has_engine:
        site.add_replica(lab.engine())
    lab.start(site, site_api_url=url, site_api_token_file=process.folder / "token")
    return process


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


@pytest.fixture
def process(lab: Lab, tmp_path: Path) -> Iterator[SiteProcess]:
    made = open_site(lab, tmp_path)
    yield made
    made.close()


def fetch(site: LabSite, receipt_id: str, tenant: LabTenant) -> Answer:
    return site.request("GET", f"/v1/receipts/{receipt_id}", key=tenant.key)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_completed_request_has_a_receipt_that_verifies(process: SiteProcess, is_stream: bool) -> None:
    site = process.site
    answer = site.chat(PARTS, stream=is_stream)
    receipt_id = answer.headers["x-madang-receipt"]
    early = fetch(site, receipt_id, PARTS)
    assert (early.status, early.error["code"], early.headers["retry-after"]) == (404, "not_yet", "1")
    process.settle()
    event = process.verified(fetch(site, receipt_id, PARTS)).event
    (used,) = site.events()
    assert (event.tenant_id, event.site, event.outcome) == (PARTS.name, "daegu", "completed")
    assert (event.prompt_tokens, event.completion_tokens) == (used.prompt_tokens, used.completion_tokens)
    assert event.request_id == answer.headers["x-request-id"]
    assert event.is_streamed is is_stream
    by_request = fetch(site, answer.headers["x-request-id"], PARTS)
    assert by_request.json == fetch(site, receipt_id, PARTS).json
    assert by_request.headers["x-madang-site"] == "daegu"


def test_another_tenant_finds_nothing(process: SiteProcess) -> None:
    receipt_id = process.site.chat(PARTS).headers["x-madang-receipt"]
    process.settle()
    answer = fetch(process.site, receipt_id, CITY)
    assert answer.status == 404
    assert answer.error["code"] == "not_yet"  # as for any id of this minute that is nobody's
    assert fetch(process.site, receipt_id.replace("daegu", "gumi"), PARTS).status == 404
    assert process.site.request("GET", f"/v1/receipts/{receipt_id}").status == 401
    assert process.site.request("POST", f"/v1/receipts/{receipt_id}", {}, key=PARTS.key).status == 405
    assert process.site.request("GET", "/v1/receipts", key=PARTS.key).status == 404


def test_an_answer_that_broke_off_has_a_receipt_too(lab: Lab, process: SiteProcess) -> None:
    """What was produced before an engine failed is used, so there is a receipt, and the error names it."""
    site = process.site
    lab.engines[0].mode = "die_middle"
    answer = site.chat(PARTS)
    assert answer.status == 502
    receipt_id = answer.headers["x-madang-receipt"]
    wait_until(site.events, "the event is written")
    process.settle()
    assert process.verified(fetch(site, receipt_id, PARTS)).event.outcome == "upstream_failed"


@pytest.fixture
def pair(lab: Lab, tmp_path: Path) -> Iterator[tuple[SiteProcess, SiteProcess]]:
    """Entry daegu without an engine, and gumi that serves."""
    for name in ("daegu", "gumi"):
        lab.site(name)
    gumi = open_site(lab, tmp_path, "gumi", ("daegu",))
    daegu = open_site(lab, tmp_path, "daegu", ("gumi",), has_engine=False)
    yield daegu, gumi
    daegu.close()
    gumi.close()


def test_what_a_peer_served_is_fetched_where_it_entered(pair: tuple[SiteProcess, SiteProcess]) -> None:
    daegu, gumi = pair
    answer = daegu.site.chat(PARTS)
    assert answer.headers["x-madang-site"] == "gumi"
    receipt_id = answer.headers["x-madang-receipt"]
    assert fetch(daegu.site, receipt_id, PARTS).error["code"] == "not_yet"
    gumi.settle()
    event = gumi.verified(fetch(daegu.site, receipt_id, PARTS)).event
    assert (event.site, event.entry_site, event.hops) == ("gumi", "daegu", 1)
    assert fetch(daegu.site, receipt_id, PARTS).body == fetch(gumi.site, receipt_id, PARTS).body
    # Nobody else gets it by this way either, and a site answers only from its own when a peer asks.
    assert fetch(daegu.site, receipt_id, CITY).status == 404
    assert daegu.site.request("GET", f"/v1/receipts/{receipt_id}?local=1", key=PARTS.key).status == 404


def test_a_peer_that_is_away_costs_a_clear_answer(lab: Lab, pair: tuple[SiteProcess, SiteProcess]) -> None:
    daegu, gumi = pair
    answer = daegu.site.chat(PARTS)
    gumi.settle()
    lab.stop(gumi.site)
    gumi.site.sockets.pop("peer").close()  # else its queue takes the question, and the answer waits for its end
    refused = fetch(daegu.site, answer.headers["x-madang-receipt"], PARTS)
    assert refused.status == 404
    assert "x-madang-site names that site" in refused.error["message"]


def test_a_receipt_is_not_had_from_a_peer_port_without_a_pass(pair: tuple[SiteProcess, SiteProcess]) -> None:
    daegu, gumi = pair
    receipt_id = daegu.site.chat(PARTS).headers["x-madang-receipt"]
    gumi.settle()
    for headers in ({}, {"x-madang-pass": "x.y"}, {"authorization": f"Bearer {PARTS.key}"}):
        answer = gumi.site.request("GET", f"/v1/receipts/{receipt_id}", headers=headers, port="peer")
        assert answer.status == 401
