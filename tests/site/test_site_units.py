"""Parts of the site that need no process: peers, sessions, the link, the feed's content, plans, and bounds."""

import asyncio
import io
import json

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from madang.core import ChipId, KeyId, NodeId, ReplicaId, ServiceName, SiteId, TenantId
from madang.machine.forward import Trouble
from madang.model import (
    ApiKey,
    Artifact,
    CatalogEntry,
    ReplicaSpec,
    Residency,
    ResidencyScope,
    Service,
    Site,
    Task,
)
from madang.runtime.bus import Bus, BusLogin, BusMessage
from madang.runtime.clock import SystemEntropy
from madang.runtime.telemetry import EventLog
from madang.site.desired import Applied, DesiredView, StoredItem
from madang.site.feed import make_snapshot
from madang.site.forwarder import judge_answer
from madang.site.guard import GuardedStore
from madang.site.intake import OutboxGauge
from madang.site.kex import EPOCH_ROTATE_S, identity_hex
from madang.site.link import LINK_LOST_AFTER_S, HubLink
from madang.site.nodes import LOST_AFTER_S, NodeBook, make_plan
from madang.site.parts import find_closed_reason
from madang.site.peers import Peers
from madang.site.sessions import SessionBook
from madang.site.settings import SiteSettings
from madang.site.signal import Signal
from madang.wire.bus import Digest as BusDigest
from madang.wire.bus import ServiceLoad, encode
from madang.wire.node_api import NodeObserved

ANYWHERE = Residency(scope=ResidencyScope.ANY)


class FakeClock:
    def __init__(self):
        self.now_s = 1_000_000.0

    def monotonic_ns(self):
        return int(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


def make_log():
    text = io.StringIO()
    return EventLog(FakeClock(), text), lambda: [json.loads(line)["event"] for line in text.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("data", "trouble"),
    [
        (b'{"stream":"USAGE_ALL","seq":7,"domain":"hub"}', Trouble.NONE),
        (b'{"stream":"USAGE_ALL","seq":7,"duplicate":true}', Trouble.NONE),
        (b'{"error":{"code":400,"err_code":10158,"description":"in process"}}', Trouble.IN_PROCESS),
        (b'{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}', Trouble.STREAM_FULL),
        (b'{"error":{"code":503,"err_code":10047,"description":"insufficient storage"}}', Trouble.STREAM_FULL),
        (b'{"error":{"code":503,"description":"jetstream not enabled"}}', Trouble.REFUSED),
        (b'{"stream":"","seq":0}', Trouble.REFUSED),
        (b"{}", Trouble.REFUSED),
        (b"", Trouble.REFUSED),
        (b"[1]", Trouble.REFUSED),
        (b"\xff", Trouble.REFUSED),
    ],
)
def test_only_an_acknowledgement_of_the_stream_lets_rows_go(data, trouble):
    assert judge_answer(data)[0] is trouble


class PeerSite:
    """One side of the key agreement, without a bus that runs."""

    def __init__(self, name, folder, clock, seed):
        self.name, self.clock = name, clock
        self.identity = Ed25519PrivateKey.from_private_bytes(seed * 32)
        self.path = folder / f"{name}.json"
        self.view = DesiredView()
        self.log, self.events = make_log()
        self.boots = 0
        self.start()

    def start(self):
        self.boots += 1
        self.book = SessionBook(
            site=self.name,
            path=self.path,
            identity=self.identity,
            boot_id=f"boot{self.boots}",
            clock=self.clock,
            entropy=SystemEntropy(),
            log=self.log,
        )
        bus = Bus(
            url="nats://127.0.0.1:1",
            name=self.name,
            inbox_prefix="_INBOX.x",
            login=BusLogin,
            clock=self.clock,
            entropy=SystemEntropy(),
            log=self.log,
        )
        self.peers = Peers(
            site=self.name,
            boot_id=f"boot{self.boots}",
            bus=bus,
            view=self.view,
            sessions=self.book,
            overrides={"gumi": "http://relay:1"},
            encrypted_links=("gumi",),
            find_loads=lambda: (ServiceLoad(service="chat", replicas_ready=1, slots=4, in_flight=0),),
            clock=self.clock,
            log=self.log,
        )
        self.seq = 0

    def know(self, *others):
        for other in others:
            fact = Site(
                name=SiteId(other.name),
                region="r",
                peer_url=f"http://{other.name}:1",
                identity_ed25519=identity_hex(other.identity),
            )
            self.view.sites[other.name] = fact

    def digest(self, **changes):
        self.seq += 1
        made = BusDigest(
            site=SiteId(self.name),
            boot_id=f"boot{self.boots}",
            seq=self.seq,
            sent_at_s=0.0,
            services=(ServiceLoad(service="chat", replicas_ready=1, slots=4, in_flight=2),),
            offers=self.book.offers(),
        )
        return encode(msgspec.structs.replace(made, **changes))

    def hear(self, data, subject):
        self.peers.take(BusMessage(subject=subject, data=data))

    def peer(self, name):
        return next(peer for peer in self.peers.list_peers() if peer.site == name)

    def keys(self, name):
        return {session.kid: session.key for session in self.peer(name).sessions}


@pytest.fixture
def pair(tmp_path):
    clock = FakeClock()
    daegu, gumi = PeerSite("daegu", tmp_path, clock, b"d"), PeerSite("gumi", tmp_path, clock, b"g")
    for site in (daegu, gumi):
        site.know(daegu, gumi)
    return daegu, gumi


def exchange(daegu, gumi):
    daegu.hear(gumi.digest(), "digest.gumi")
    gumi.hear(daegu.digest(), "digest.daegu")


def test_two_sites_agree_over_digests_alone(pair):
    daegu, gumi = pair
    assert daegu.peer("gumi").digest_age_s == -1
    assert daegu.peer("gumi").sessions == ()
    exchange(daegu, gumi)
    assert daegu.keys("gumi") == gumi.keys("daegu") != {}
    assert daegu.peer("gumi").url == "http://relay:1", "the local way is dialled"
    assert gumi.peer("daegu").url == "http://daegu:1"
    assert (daegu.peer("gumi").is_link_encrypted, gumi.peer("daegu").is_link_encrypted) == (True, False)
    assert daegu.peer("gumi").services[0].in_flight == 2
    daegu.clock.now_s += 2.5
    assert daegu.peer("gumi").digest_age_s == pytest.approx(2.5)


def test_a_restart_keeps_the_sessions_and_a_lost_ring_makes_new_ones(pair):
    daegu, gumi = pair
    exchange(daegu, gumi)
    before = gumi.keys("daegu")
    daegu.start()
    exchange(daegu, gumi)
    assert gumi.keys("daegu") == daegu.keys("gumi") == before
    daegu.path.write_text("junk")
    daegu.start()
    exchange(daegu, gumi)
    assert "key_ring_lost" in daegu.events()
    assert gumi.keys("daegu") == daegu.keys("gumi")
    assert not set(gumi.keys("daegu")) & set(before)
    assert daegu.path.stat().st_mode & 0o077 == 0


def test_rotation_never_leaves_two_linked_sites_without_a_common_key(pair):
    daegu, gumi = pair
    for _ in range(9):
        exchange(daegu, gumi)
        common = daegu.keys("gumi").items() & gumi.keys("daegu").items()
        first = daegu.peer("gumi").sessions[0]
        assert (first.kid, first.key) in common
        daegu.clock.now_s += EPOCH_ROTATE_S / 2
        daegu.book.offers()
        # Daegu has rotated and gumi has not heard of it: what daegu signs with must still be known to gumi.
        first = daegu.peer("gumi").sessions[0]
        assert gumi.keys("daegu").get(first.kid) == first.key


def test_forged_and_foreign_digests_change_nothing(pair, tmp_path):
    daegu, gumi = pair
    (tmp_path / "m").mkdir()
    mallory = PeerSite("gumi", tmp_path / "m", daegu.clock, b"m")
    daegu.hear(mallory.digest(), "digest.gumi")
    assert daegu.peer("gumi").sessions == (), "signed by another identity"
    assert daegu.events().count("kex_offer_refused") == 1
    for data, subject in (
        (gumi.digest(), "digest.gwangju"),
        (b"junk", "digest.gumi"),
        (gumi.digest(site=SiteId("seoul")), "digest.seoul"),
        (daegu.digest(), "digest.daegu"),
    ):
        daegu.hear(data, subject)
    assert {peer.site for peer in daegu.peers.list_peers()} == {"gumi"}
    assert daegu.peers.refused_total == 2


def test_many_offers_of_one_peer_are_bounded(pair):
    daegu, gumi = pair
    offer = gumi.book.offers()[0]
    flood = tuple(msgspec.structs.replace(offer, epoch=f"e{number}") for number in range(1000))
    daegu.hear(gumi.digest(offers=flood), "digest.gumi")
    assert daegu.peer("gumi").sessions == ()
    assert len(daegu.book._verified) <= 4
    daegu.book.keep_only({})
    assert not daegu.book._verified


def test_the_link_is_judged_by_what_came(pair):
    clock = FakeClock()
    log, events = make_log()
    link = HubLink(clock, log)
    assert (link.state, link.contact_age_s(), link.linked_s()) == ("never_seen", None, 0.0)
    link.contact_wall_s = clock.now_s - 60
    assert (link.state, link.contact_age_s()) == ("unreachable", 60.0)
    link.note_contact()
    clock.now_s += LINK_LOST_AFTER_S - 0.5
    link.note_contact()
    assert link.state == "connected"
    assert link.linked_s() == pytest.approx(LINK_LOST_AFTER_S - 0.5)
    clock.now_s += LINK_LOST_AFTER_S + 1
    assert link.state == "unreachable"
    assert link.linked_s() == 0.0
    link.note_contact()
    assert events() == ["hub_linked", "hub_unlinked", "hub_linked"]


def test_the_snapshot_holds_what_the_site_holds_in_order():
    view = DesiredView()
    residency = ANYWHERE
    facts = {
        "model": [CatalogEntry(name=name, task=Task.CHAT, title=name, licence="x") for name in ("used", "unused")],
        "service": [Service(name=ServiceName(name), model="used") for name in ("b", "a")],
        "key": [
            ApiKey(key_id=KeyId(name), sha256="0" * 64, tenant_id=TenantId("t"), residency=residency)
            for name in ("k2", "k1")
        ],
        "site": [Site(name=SiteId("daegu"), region="r")],
    }
    ids = {"model": "name", "service": "name", "key": "key_id", "site": "name"}
    items = tuple(
        StoredItem(
            kind=kind,
            item_id=getattr(fact, ids[kind]),
            generation=3,
            spec=msgspec.json.encode(fact),
            sha256="0",
            is_deleted=False,
        )
        for kind, made in facts.items()
        for fact in made
    )
    view.take(Applied(items=items, generation=3, snapshot_generation=0))
    snapshot = make_snapshot("daegu", view)
    assert snapshot.generation == 3
    assert [service.name for service in snapshot.services] == ["a", "b"]
    assert [key.key_id for key in snapshot.keys] == ["k1", "k2"]
    assert [model.name for model in snapshot.models] == ["used"], "only what services name"


def make_spec(name="chat-1"):
    artifact = Artifact(artifact_id="a", engine="e", chip_kinds=("cpu",), files=(), memory_bytes=1)
    return ReplicaSpec(
        replica_id=ReplicaId(name),
        service=ServiceName("chat"),
        model="m",
        task=Task.CHAT,
        artifact=artifact,
        chip_ids=(ChipId("c"),),
        context_tokens=1,
        slots=1,
    )


def observe(generation=0, boot="b", seq=1):
    return NodeObserved(
        node=NodeId("n1"),
        boot_id=boot,
        seq=seq,
        plan_generation=generation,
        observed_at_s=0.0,
        chips=(),
        replicas=(),
    )


def test_a_plan_is_made_only_when_it_differs_and_always_above_the_nodes():
    book = NodeBook(("n1",), FakeClock())
    node = book.nodes["n1"]
    book.hear(NodeId("n1"), observe())
    first = make_plan(SiteId("daegu"), node, (make_spec(),))
    assert first.generation == 1
    node.plan = first
    assert make_plan(SiteId("daegu"), node, (make_spec(),)) is None
    assert make_plan(SiteId("daegu"), node, ()).generation == 2
    book.hear(NodeId("n1"), observe(generation=9, seq=2))
    assert make_plan(SiteId("daegu"), node, (make_spec(),)).generation == 10


def test_a_node_is_lost_only_after_it_was_heard_and_fell_silent():
    clock = FakeClock()
    book = NodeBook(("n1",), clock)
    clock.now_s += 10 * LOST_AFTER_S
    assert not book.views()[0].is_lost, "a site that just started waits for its nodes"
    assert not book.views()[0].is_observed
    book.hear(NodeId("n1"), observe())
    assert not book.views()[0].is_lost
    clock.now_s += LOST_AFTER_S + 1
    assert book.views()[0].is_lost
    assert book.offered() == ()


def test_readings_wake_nobody_and_changes_do():
    book = NodeBook(("n1",), FakeClock())
    book.hear(NodeId("n1"), observe(seq=1))
    level = book.changed.level
    book.hear(NodeId("n1"), observe(seq=2))
    assert book.changed.level == level
    book.hear(NodeId("n1"), observe(seq=3, generation=1))
    assert book.changed.level == level + 1


def test_admission_closes_at_the_bound_and_on_a_broken_database(tmp_path):
    settings = SiteSettings(
        name="daegu", region="r", state_dir=tmp_path, feed_dir=tmp_path, usage_dir=tmp_path, outbox_rows_max=10
    )
    log, _ = make_log()
    gauge, store = OutboxGauge(), GuardedStore(None, log)
    gauge.add(9, 1.0)
    assert find_closed_reason(settings, gauge, store) == ""
    gauge.add(1, 2.0)
    assert "10 are the most allowed" in find_closed_reason(settings, gauge, store)
    assert gauge.oldest_age_s(11.0) == 10.0
    gauge.remove(10, None)
    assert gauge.oldest_age_s(11.0) == 0.0
    store.trouble = "disk is full"
    assert find_closed_reason(settings, gauge, store) == "disk is full"


def test_a_signal_wakes_everybody_once_and_nobody_misses_it():
    async def play():
        signal = Signal()
        waiters = [asyncio.create_task(signal.wait(0)) for _ in range(3)]
        await asyncio.sleep(0)
        signal.rise()
        assert await asyncio.gather(*waiters) == [1, 1, 1]
        signal.rise()
        assert await signal.wait(1) == 2, "a rise before the wait is seen"
        assert await signal.wait(2, 0.001) == 2, "and a wait has an end"

    asyncio.run(play())
