"""Two and three sites on real sockets: spilling over, passes that lie, peers that are silent, residency on the way."""

import asyncio
import hashlib
import json
import time
from contextlib import closing

import msgspec
import pytest
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.lab import (
    CHAT,
    CITY,
    CLINIC,
    EMBED,
    PARTS,
    Lab,
    LabSite,
    LabTenant,
    residency,
    session_between,
    wait_until,
)
from tests.gateway.raw import RawAnswer, RawClient, chat_body, post

from madang.core import KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.model import Outcome
from madang.wire.bus import ServiceLoad
from madang.wire.passes import PASS_HEADER, Pass, seal_pass

LOAD = (ServiceLoad(service=CHAT, replicas_ready=1, slots=4, in_flight=0),)


@pytest.fixture
def sites(lab: Lab) -> list[LabSite]:
    """Entry `daegu` without replicas, peers `gumi` (same region) and `gwangju` with one engine each."""
    found = [lab.site("daegu"), lab.site("gumi"), lab.site("gwangju", "honam")]
    for site in found[1:]:
        site.add_replica(lab.engine())
        site.add_replica(lab.engine(), EMBED)
    for site in found:
        site.peers = [other.name for other in found if other is not site]
    for site in found:
        lab.start(site)
    return found


def all_events(sites: list[LabSite]) -> list[tuple[str, int, Outcome, str]]:
    return [(site.name, event.attempt, event.outcome, event.entry_site) for site in sites for event in site.events()]


def test_a_peer_serves_what_the_entry_cannot(lab: Lab, sites: list[LabSite]) -> None:
    entry, gumi, _ = sites
    answer = entry.chat(PARTS)
    assert answer.status == 200
    assert answer.json["choices"][0]["message"]["content"] == "안녕하세요!"
    assert answer.headers["x-madang-site"] == "gumi"
    assert answer.headers["x-request-id"].startswith("daegu-")
    assert answer.headers["x-madang-receipt"] == answer.headers["x-request-id"] + ".1"
    (event,) = gumi.events()
    assert (event.entry_site, event.site, event.hops, event.attempt) == ("daegu", "gumi", 1, 1)
    assert (event.tenant_id, event.key_id) == ("parts", "parts")
    assert entry.events() == []
    stream = entry.chat(PARTS, stream=True)
    assert stream.events[-1] == "[DONE]"
    assert all(json.loads(one)["model"] == CHAT for one in stream.events[:-1])
    embeddings = entry.request("POST", "/v1/embeddings", {"model": EMBED, "input": "진동"}, key=PARTS.key)
    assert embeddings.json["data"][0]["embedding"] == [1.0] * 4
    assert [card["id"] for card in entry.request("GET", "/v1/models", key=PARTS.key).json["data"]] == [EMBED, CHAT]


def test_peer_connections_are_reused(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    for _ in range(20):
        assert entry.chat(PARTS).status == 200
    assert entry.worker is not None
    assert (entry.worker.meter.upstream_opened, entry.worker.meter.upstream_reused) == (1, 19)


def test_residency_is_kept_whatever_fails(lab: Lab, sites: list[LabSite]) -> None:
    entry, gumi, gwangju = sites
    # The clinic may only be served at daegu, which has no replica: nobody else is asked.
    answer = entry.chat(CLINIC)
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "no_replica", "5")
    # Elsewhere it is refused, with the place to go, before its body is parsed.
    for site in (gumi, gwangju):
        with closing(RawClient(site.connect())) as client:
            client.send(post(b"{ this is never parsed", CLINIC.key))
            refusal = client.answer()
            assert (refusal.status, refusal.error["code"]) == (403, "residency_violation")
            assert refusal.error["madang"] == {"sites": [{"name": "daegu", "url": entry.url}]}
            assert entry.url in refusal.error["message"]
            assert refusal.headers["connection"] == "close"
            client.sock.shutdown(1)
            assert client.rest() == b""
    # The region's tenant never reaches honam, though gumi is gone and gwangju is free.
    for engine in lab.engines[:2]:
        lab.run(engine.stop())
    assert entry.chat(PARTS).error["code"] == "no_replica"
    assert entry.chat(CITY).headers["x-madang-site"] == "gwangju"
    assert all(not engine.requests for engine in lab.engines[3:])
    assert [event.tenant_id for event in gwangju.events()] == ["city"]


def test_the_refusal_comes_before_the_body(lab: Lab, sites: list[LabSite]) -> None:
    with closing(RawClient(sites[2].connect())) as client:
        head = post(b"x" * 1000, CLINIC.key, b"expect: 100-continue")[:-1000]
        client.send(head)
        assert client.answer().status == 403


def test_an_entry_without_chips(lab: Lab, sites: list[LabSite]) -> None:
    national = lab.site("national", "", is_entry_only=True)
    national.peers = ["daegu", "gumi", "gwangju"]
    for site in sites:
        site.peers.append("national")
        site.refresh()
    lab.start(national)
    answer = national.chat(CITY)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    refusal = national.chat(PARTS)
    assert refusal.status == 403
    assert [site["name"] for site in refusal.error["madang"]["sites"]] == ["daegu", "gumi"]


def test_transit_passes_the_body_unread(lab: Lab, sites: list[LabSite]) -> None:
    _, gumi, gwangju = sites
    guest = LabTenant("guest", residency("site", "gumi", transit=True))
    lab.tenants.append(guest)
    for site in sites:
        site.refresh()
    answer = gwangju.chat(guest)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    assert lab.engines[2].requests == [], "never served where it may only pass"
    (event,) = gumi.events()
    assert (event.entry_site, event.service, event.hops) == ("gwangju", CHAT, 1)
    # What is wrong with the body is said by the site that may read it.
    bad = gwangju.request("POST", "/v1/chat/completions", b"{", key=guest.key)
    assert (bad.status, bad.error["code"]) == (400, "invalid_request")
    unknown = gwangju.request("POST", "/v1/chat/completions", chat_body(model="nobody"), key=guest.key)
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")


def test_the_peer_is_left_when_the_client_goes(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    engine = lab.engines[0]
    engine.mode = "endless"
    with closing(RawClient(entry.connect())) as client:
        client.send(post(chat_body(stream=True), PARTS.key))
        client.recv_until("토큰".encode())
    began = time.monotonic()
    wait_until(lambda: engine.left == 1, "the engine behind the peer is left")
    assert time.monotonic() - began < 0.1
    wait_until(lambda: all_events(sites) == [("gumi", 1, Outcome.CLIENT_GONE, "daegu")], "one event, at the peer")


def test_a_slow_prefill_is_not_a_hole(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    engine = lab.engines[0]
    engine.mode = "wait"
    with closing(RawClient(entry.connect())) as client:
        client.send(post(chat_body(), CITY.key))
        wait_until(lambda: engine.active == 1, "the engine works")
        # Longer than a peer may stay silent: its signs keep the entry patient.
        lab.run(asyncio.sleep(3.5))
        lab.loop.call_soon_threadsafe(engine.gate.set)
        answer = client.answer()
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gumi")
    assert all_events(sites) == [("gumi", 1, Outcome.COMPLETED, "daegu")]


def test_an_explicit_refusal_moves_on_at_once(lab: Lab, sites: list[LabSite]) -> None:
    entry, gumi, _ = sites
    gumi.loads = LOAD  # the digest still says it serves
    gumi.replicas.clear()
    gumi.refresh()
    entry.refresh()
    began = time.monotonic()
    answer = entry.chat(CITY)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gwangju")
    assert time.monotonic() - began < 0.5
    assert answer.headers["x-madang-receipt"].endswith(".2")
    assert all_events(sites) == [("gwangju", 2, Outcome.COMPLETED, "daegu")]


class Hole:
    """A fake peer: takes connections and says what it is told to say, by default nothing."""

    def __init__(self, words: bytes = b"") -> None:
        self.words = words
        self.taken = 0
        self.port = 0

    async def start(self) -> "Hole":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        writer.write(self.words)
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()


def dig(lab: Lab, entry: LabSite, peer: str, words: bytes = b"") -> Hole:
    hole = lab.run(Hole(words).start())
    lab.engines.append(hole)  # stopped with the engines
    entry.peer_urls[peer] = f"http://127.0.0.1:{hole.port}"
    entry.refresh()
    return hole


@pytest.mark.parametrize(
    ("words", "low_s", "high_s"),
    [(b"", 0.9, 2.5), (b"HTTP/1.1 102 Processing\r\n\r\n", 2.9, 4.5)],
    ids=["no word", "accepts, then silence"],
)
def test_a_hole_in_the_wan(lab: Lab, sites: list[LabSite], words: bytes, low_s: float, high_s: float) -> None:
    entry = sites[0]
    hole = dig(lab, entry, "gumi", words)
    began = time.monotonic()
    answer = entry.chat(CITY)
    assert (answer.status, answer.headers["x-madang-site"]) == (200, "gwangju")
    assert low_s < time.monotonic() - began < high_s
    assert hole.taken == 1
    # The next one does not pay again: who was silent stands behind the others.
    began = time.monotonic()
    assert entry.chat(CITY).status == 200
    assert time.monotonic() - began < 0.5
    assert [event[:2] for event in all_events(sites)] == [("gwangju", 2), ("gwangju", 1)]


def test_giving_up_supersedes_an_attempt_of_unknown_fate(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    dig(lab, entry, "gumi")
    answer = entry.chat(PARTS)
    assert (answer.status, answer.error["code"]) == (503, "no_replica")
    (event,) = entry.events()
    assert (event.outcome, event.attempt, event.prompt_tokens, event.completion_tokens) == (Outcome.ABANDONED, 2, 0, 0)


class Fickle(Hole):
    """A fake peer that answers the first request it gets, takes the second one whole, and is gone without a word."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            self.taken += 1
            if self.taken > 1:
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        self._server.close()
        writer.close()


def test_a_request_sent_again_on_a_new_connection_may_have_run_the_first_time(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    peer = lab.run(Fickle().start())
    lab.engines.append(peer)  # stopped with the engines
    entry.peer_urls["gumi"] = f"http://127.0.0.1:{peer.port}"
    entry.refresh()
    assert entry.chat(PARTS).json == {}
    answer = entry.chat(PARTS)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert peer.taken == 2
    assert entry.worker is not None
    assert entry.worker.meter.upstream_stale == 1, "it is counted"
    (event,) = entry.events()
    assert (event.outcome, event.attempt, event.completion_tokens) == (Outcome.ABANDONED, 2, 0)


def test_a_peer_that_breaks_in_mid_stream(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    lab.engines[0].mode = "die_middle"
    with closing(RawClient(entry.connect())) as client:
        client.send(post(chat_body(stream=True), PARTS.key))
        assert client.head()[0] == 200
        rest = client.rest()
    assert rest.count(b'"code":"upstream_failed"') == 1
    assert b"[DONE]" not in rest
    wait_until(lambda: all_events(sites) == [("gumi", 1, Outcome.UPSTREAM_FAILED, "daegu")], "the event")


def test_a_peer_whose_object_breaks_off(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    hole = dig(lab, entry, "gumi", half)
    with closing(RawClient(entry.connect())) as client:
        client.send(post(chat_body(), PARTS.key))
        wait_until(lambda: hole.taken == 1, "the peer answers half")
        lab.run(hole.stop())
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.head()  # half an object is never shown


def test_stale_digests_are_not_believed(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    entry.digest_age_s = 1.6
    entry.refresh()
    assert entry.chat(CITY).error["code"] == "no_replica"
    assert entry.request("GET", "/v1/models", key=CITY.key).json["data"] == []
    entry.digest_age_s = -1.0
    entry.refresh()
    assert entry.chat(CITY).error["code"] == "no_replica"


def test_a_full_site_spills_over(lab: Lab, sites: list[LabSite]) -> None:
    entry = sites[0]
    busy = lab.engine(mode="wait")
    entry.add_replica(busy, slots=1)
    entry.refresh()
    with closing(RawClient(entry.connect())) as client:
        client.send(post(chat_body(), CITY.key))
        wait_until(lambda: busy.active == 1, "the local slot is taken")
        assert entry.chat(CITY).headers["x-madang-site"] == "gumi"
        lab.loop.call_soon_threadsafe(busy.gate.set)
        assert client.answer().headers["x-madang-site"] == "daegu"


# --- passes


def make_pass(body: bytes, **changes: object) -> Pass:
    good = Pass(
        request_id=RequestId("daegu-" + "a" * 32),
        attempt=1,
        tenant_id=TenantId("parts"),
        key_id=KeyId("parts"),
        service=ServiceName(CHAT),
        residency=PARTS.residency,
        data_class="sensitive",
        entry_site=SiteId("daegu"),
        serving_site=SiteId("gumi"),
        hops=1,
        issued_at_s=time.time(),
        deadline_s=time.time() + 10,
        path="/v1/chat/completions",
        is_stream=False,
        body_sha256=hashlib.sha256(body).digest(),
        kid=session_between("daegu", "gumi").kid,
    )
    return msgspec.structs.replace(good, **changes)


def hand_over(site: LabSite, body: bytes, header: str | None) -> RawAnswer:
    """A peer's request on a connection of its own; signs of life before the answer are skipped."""
    line = b"" if header is None else f"{PASS_HEADER}: {header}\r\n".encode("latin-1")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (line, len(body))
    with closing(RawClient(site.connect("peer"))) as client:
        client.send(head + body)
        return client.answer()


@pytest.fixture
def gumi(sites: list[LabSite]) -> LabSite:
    return sites[1]


BODY = chat_body()
KEY = session_between("daegu", "gumi").key


def test_a_good_pass_is_accepted_before_the_body_and_used_once(lab: Lab, gumi: LabSite) -> None:
    header = seal_pass(make_pass(BODY), KEY)
    with closing(RawClient(gumi.connect("peer"))) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{PASS_HEADER}: {header}\r\n"
        client.send(head.encode() + b"content-length: %d\r\n\r\n" % len(BODY))
        assert client.recv_until(b"\r\n\r\n") == b"HTTP/1.1 102 Processing\r\n\r\n"
        client.send(BODY)
        assert client.answer().status == 200
    again = hand_over(gumi, BODY, header)
    assert (again.headers["x-madang-refused"], "used before" in again.error["message"]) == ("invalid_key", True)
    assert len(lab.engines[0].requests) == 1
    assert len(gumi.events()) == 1


LIES: dict[str, tuple[dict[str, object], bytes]] = {
    "another key": ({}, b"k" * 32),
    "an unknown session": ({"kid": "nobody"}, KEY),
    "another entry": ({"entry_site": SiteId("gwangju"), "request_id": RequestId("gwangju-" + "a" * 32)}, KEY),
    "another entry's request": ({"request_id": RequestId("gwangju-" + "a" * 32)}, KEY),
    "a malformed request id": ({"request_id": RequestId("../../etc")}, KEY),
    "another serving site": ({"serving_site": SiteId("gwangju")}, KEY),
    "another path": ({"path": "/v1/embeddings"}, KEY),
    "too many hops": ({"hops": 2}, KEY),
    "no hop": ({"hops": 0}, KEY),
    "attempt 0": ({"attempt": 0}, KEY),
    "attempt 100": ({"attempt": 100}, KEY),
    "expired": ({"deadline_s": time.time() - 60}, KEY),
    "from the future": ({"issued_at_s": time.time() + 7200, "deadline_s": time.time() + 7210}, KEY),
    "a long life": ({"deadline_s": time.time() + 3600}, KEY),
    "an unknown version": ({"version": 2}, KEY),
    "an unknown data class": ({"data_class": "secret"}, KEY),
    "a residency that forbids this site": ({"residency": residency("site", "daegu")}, KEY),
    "a residency the key does not have": ({"key_id": KeyId("clinic"), "residency": residency("any")}, KEY),
    "a service that is not here": ({"service": ServiceName("other")}, KEY),
}


@pytest.mark.parametrize("name", LIES)
def test_a_pass_that_lies_is_refused(lab: Lab, gumi: LabSite, name: str) -> None:
    changes, key = LIES[name]
    answer = hand_over(gumi, BODY, seal_pass(make_pass(BODY, **changes), key))
    assert answer.status in (401, 403, 503), name
    assert "x-madang-refused" in answer.headers
    assert lab.engines[0].requests == []
    assert gumi.events() == []


def test_a_pass_covers_the_body(lab: Lab, gumi: LabSite) -> None:
    answer = hand_over(gumi, chat_body(seed=1), seal_pass(make_pass(BODY), KEY))
    assert answer.status == 400
    assert lab.engines[0].requests == []


def test_no_pass_no_service(lab: Lab, gumi: LabSite) -> None:
    for header in (None, "", "nonsense", "a.b", "é.ü"):
        answer = hand_over(gumi, BODY, header)
        assert answer.status == 401
    answer = gumi.request("POST", "/v1/chat/completions", BODY, key=PARTS.key, port="peer")
    assert answer.status == 401, "a tenant's key is nothing here"
    assert gumi.request("GET", "/v1/models", key=PARTS.key, port="peer").status == 401


def test_a_session_of_another_pair_vouches_for_nobody_else(lab: Lab, gumi: LabSite) -> None:
    session = session_between("gumi", "gwangju")
    answer = hand_over(gumi, BODY, seal_pass(make_pass(BODY, kid=session.kid), session.key))
    assert answer.status == 401
    assert lab.engines[0].requests == []


def test_a_peer_hands_nothing_on(lab: Lab, gumi: LabSite) -> None:
    engine: FakeEngine = lab.engines[0]
    lab.run(engine.stop())
    answer = hand_over(gumi, BODY, seal_pass(make_pass(BODY, residency=residency("any")), KEY))
    assert (answer.status, answer.headers["x-madang-refused"]) == (503, "no_replica")
    assert lab.engines[2].requests == []
