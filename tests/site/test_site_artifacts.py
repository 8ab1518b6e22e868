"""A site's cache: what it wants, whom it serves, and bytes that go hub, site, other site, node."""

import asyncio
import contextlib
import os
import secrets

import httpx
import pytest
from tests import loopback
from tests.gateway.certificates import Root
from tests.hub.hub_harness import until
from tests.node.artifact_sources import file_of
from tests.runtime.artifact_lab import CHUNK, cut
from tests.runtime.test_artifact_serving import PRIVATE, PUBLIC, fill

from madang.core import ChipId, NodeId, Rejected, ServiceName, SiteId
from madang.model import Artifact, Assignment, CatalogEntry, Chip, Service, Site, Task
from madang.node.artifacts import ArtifactFetcher
from madang.node.fetching import make_fetcher
from madang.node.settings import NodeSettings
from madang.runtime.artifacts.manifests import write_manifest
from madang.runtime.artifacts.serving import ArtifactServer
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.files import write_secret
from madang.runtime.telemetry import EventLog
from madang.site.artifacts import SiteArtifacts, choose_wanted
from madang.site.nodes import NodeBook
from madang.site.settings import NodeLink, SiteSettings
from madang.testing.ports import free_port
from madang.wire.artifacts import Manifest, sign_manifest
from madang.wire.feed import Peer, PeerSession
from madang.wire.node_api import NodeObserved

DATA = os.urandom(5 * CHUNK + 9)
FILE = file_of(DATA)
SESSION = PeerSession(kid="daegu-0/gumi-0", key=secrets.token_bytes(32), expires_at_s=4e9)


def artifact(name, kind, file=FILE):
    return Artifact(artifact_id=name, engine="llama_cpp", chip_kinds=(kind,), files=(file,), memory_bytes=1)


ENTRY = CatalogEntry(
    name="qwen",
    task=Task.CHAT,
    title="x",
    licence="x",
    artifacts=(artifact("cpu", "cpu"), artifact("npu", "furiosa", file_of(b"other"))),
)
CHIP = Chip(chip_id=ChipId("c0"), node=NodeId("n1"), kind="cpu", model="x", memory_bytes=1)
SERVICE = Service(name=ServiceName("chat"), model="qwen")


class FakeView:
    """What a site has applied, as far as artifacts go; sites announce what `urls` says."""

    def __init__(self, urls):
        self.generation = 1
        self.sites = {name: Site(name=SiteId(name), region="r", artifact_url=url) for name, url in urls.items()}
        self.assignments = {"chat": Assignment(service=ServiceName("chat"), replicas=1)}
        self.services = {"chat": SERVICE}
        self.models = {"qwen": ENTRY}


class FakePeers:
    """Other sites, with a session that both hold."""

    def __init__(self, *names):
        self._names = names

    def list_peers(self):
        return tuple(
            Peer(site=SiteId(name), url="", digest_age_s=0.1, services=(), sessions=(SESSION,)) for name in self._names
        )


def settings(tmp_path, name, **changes):
    token = tmp_path / name / "token"
    token.parent.mkdir(parents=True, exist_ok=True)
    write_secret(token, f"token-{name}".encode())
    return SiteSettings(
        name=name,
        region="yeongnam",
        state_dir=tmp_path / name,
        feed_dir=tmp_path / name,
        usage_dir=tmp_path / name,
        artifact_dir=tmp_path / name / "artifacts",
        artifact_port=free_port(),
        artifact_keys=(PUBLIC.hex(),),
        nodes=(NodeLink(name="n1", url="http://127.0.0.1:9", token_file=token),),
        **changes,
    )


def make_site(chosen, peers, log, urls=None):
    clock = SystemClock()
    book = NodeBook(("n1",), clock)
    observed = NodeObserved(
        node=NodeId("n1"), boot_id="b", seq=1, plan_generation=0, observed_at_s=0.0, chips=(CHIP,), replicas=()
    )
    book.hear(NodeId("n1"), observed)
    return SiteArtifacts(
        settings=chosen,
        view=FakeView(urls or {}),
        book=book,
        peers=peers,
        clock=clock,
        entropy=SystemEntropy(),
        log=log,
    )


@contextlib.asynccontextmanager
async def running(*sites):
    tasks = [asyncio.create_task(site.run()) for site in sites]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "events.jsonl").open("w") as stream:
        yield EventLog(SystemClock(), stream)


@pytest.fixture
def hub(tmp_path):
    fill(tmp_path / "hub", DATA)
    write_manifest(tmp_path / "hub", FILE.sha256, sign_manifest(Manifest(files=(cut(DATA),)), PUBLIC, PRIVATE.sign))
    server = ArtifactServer(tmp_path / "hub", lambda path, headers: None, lambda sha256: None, "127.0.0.1", 0)
    server.start()
    yield f"http://127.0.0.1:{server.port}"
    server.stop()


def test_a_site_wants_what_its_chips_can_run_of_what_is_assigned_to_it():
    view = FakeView({})

    def wanted(assignments=view.assignments, services=view.services, models=view.models, chips=(CHIP,)):
        return choose_wanted(assignments.values(), services, models, chips)

    assert wanted() == (FILE,)
    assert wanted(chips=()) == ()
    assert wanted(services={}) == ()
    assert wanted(models={}) == ()
    assert wanted({"chat": Assignment(service=ServiceName("chat"), replicas=0)}) == ()


def url_of(chosen):
    return f"http://127.0.0.1:{chosen.artifact_port}"


def has_it(chosen):
    return (chosen.artifact_dir / FILE.sha256[:2] / f"{FILE.sha256}.ok").exists


def test_over_the_wan_once_then_from_site_to_site_to_node(tmp_path, hub, log):
    daegu, gumi = settings(tmp_path, "daegu", artifact_stores=(hub,)), settings(tmp_path, "gumi")
    giver = make_site(daegu, FakePeers("gumi"), log)
    # Its settings name no way to anybody: where daegu is asked, daegu said itself.
    taker = make_site(gumi, FakePeers("daegu"), log, {"daegu": url_of(daegu)})

    async def go():
        async with running(giver):
            await until(has_it(daegu), "daegu has it")
            async with running(taker):
                await until(has_it(gumi), "gumi has it")
                await asyncio.to_thread(ask_as_strangers, f"{url_of(gumi)}/artifacts/{FILE.sha256}")
                return await asyncio.to_thread(fetch_as_node, tmp_path, gumi, log)

    assert asyncio.run(go()).read_bytes() == DATA
    assert taker.room.read_pins()["site-gumi"].sha256s == (FILE.sha256,)
    sources = taker.transfers.counts().sources
    assert {name: counts.fetched_bytes for name, counts in sources.items()} == {"site daegu": len(DATA)}
    requests, sent = giver.served.read()
    assert sent == {"site": len(DATA)}
    assert requests["site", "manifest"] == 1
    requests, sent = taker.served.read()
    assert sent == {"node": len(DATA)}
    assert requests["anybody", "invalid_token"] == 4


def test_where_a_site_has_tls_what_it_gives_to_another_is_hidden(tmp_path, hub, log):
    root = Root(tmp_path / "root")
    certificate, key = root.issue(tmp_path / "pair")
    daegu = settings(
        tmp_path,
        "daegu",
        artifact_stores=(hub,),
        artifact_tls_port=free_port(),
        artifact_tls_certificate_file=certificate,
        artifact_tls_key_file=key,
    )
    announced = {"daegu": f"https://localhost:{daegu.artifact_tls_port}"}
    gumi = settings(tmp_path, "gumi", artifact_ca_file=root.file)
    # pohang believes the system's roots, and none of those vouched for daegu.
    pohang = settings(tmp_path, "pohang")
    giver = make_site(daegu, FakePeers("gumi", "pohang"), log)

    async def go():
        async with running(giver):
            await until(has_it(daegu), "daegu has it")
            taker = make_site(gumi, FakePeers("daegu"), log, announced)
            doubter = make_site(pohang, FakePeers("daegu"), log, announced)
            async with running(taker, doubter):
                await until(has_it(gumi), "gumi has it")
                await until(lambda: any(row["reason"] for row in doubter.list_transfers()), "pohang gave up")
                await asyncio.to_thread(ask_in_plain, daegu.artifact_tls_port)
                return taker.transfers.counts().sources, doubter.list_transfers()

    sources, (row,) = asyncio.run(go())
    assert sources["site daegu"].fetched_bytes == len(DATA)
    assert (row["where"], row["model"], row["artifact_id"], row["state"]) == ("site cache", "qwen", "cpu", "failed")
    assert giver.served.read()[1] == {"site": len(DATA)}
    assert giver.served.read()[0]["anybody", "no_tls"] >= 2


def ask_in_plain(port):
    with pytest.raises(httpx.TransportError):
        loopback.get(f"http://127.0.0.1:{port}/artifacts/{FILE.sha256}", trust_env=False)


def test_a_tls_port_without_a_certificate_is_no_settings(tmp_path, log):
    with pytest.raises(Rejected, match="its certificate is not"):
        make_site(settings(tmp_path, "daegu", artifact_tls_port=free_port()), FakePeers(), log)
    with pytest.raises(Rejected, match="artifact_ca_file"):
        make_site(settings(tmp_path, "daegu", artifact_ca_file=tmp_path / "none.pem"), FakePeers(), log)


def ask_as_strangers(url):
    for headers in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer token-daegu"},
        {"x-madang-artifact-pass": "x.y"},
    ):
        assert loopback.get(url, headers=headers, trust_env=False).status_code == 401


def fetch_as_node(tmp_path, chosen, log):
    node = NodeSettings(
        name="n1",
        site=chosen.name,
        state_dir=tmp_path / "node",
        token_file=chosen.nodes[0].token_file,
        cache_dir=tmp_path / "node" / "cache",
        site_store=url_of(chosen),
        artifact_keys=(PUBLIC.hex(),),
    )
    fetcher = make_fetcher(node, SystemClock(), SystemEntropy(), log)
    assert isinstance(fetcher, ArtifactFetcher)
    return fetcher.ensure(FILE)


def test_what_no_store_has_is_said_once_and_the_site_goes_on(tmp_path, log):
    chosen = settings(tmp_path, "daegu")

    async def go():
        async with running(make_site(chosen, FakePeers(), log)):
            await until(lambda: "artifact_not_fetched" in (tmp_path / "events.jsonl").read_text(), "it is said")
            async with httpx.AsyncClient(trust_env=False, verify=loopback.NOBODY) as client:
                headers = {"authorization": "Bearer token-daegu"}
                answer = await client.get(f"{url_of(chosen)}/artifacts/{FILE.sha256}", headers=headers)
                assert answer.status_code == 404

    asyncio.run(go())


def test_a_site_without_a_cache_serves_nothing(tmp_path, log):
    chosen = SiteSettings(
        name="daegu", region="x", state_dir=tmp_path, feed_dir=tmp_path, usage_dir=tmp_path, artifact_dir=None
    )

    async def go():
        site = make_site(chosen, FakePeers(), log)
        task = asyncio.create_task(site.run())
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
