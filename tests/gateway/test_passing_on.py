"""What a relay does wrong unseen: fields that leak, pieces that wait, connections opened anew, retries, floods."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import psutil
import pytest
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.lab import CHAT, CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.worker_process import WorkerProcess

from madang.model import Outcome

KEY = CITY.key
ENGINE_FIELDS = {"host", "authorization", "content-type", "content-length"}
ANSWER_FIELDS = {"date", "content-type", "x-request-id", "x-madang-site", "x-madang-chip", "x-madang-receipt"}
TRICKS = (
    b"connection: x-a, te",
    b"x-a: nominated",
    b"te: trailers",
    b"keep-alive: timeout=5",
    b"proxy-connection: keep-alive",
    b"proxy-authorization: Basic eDp5",
    b"upgrade: h2c",
    b"trailer: x-b",
    b"cookie: a=b",
    b"x-forwarded-for: 10.0.0.1",
    b"x-madang-tenant: clinic",
    b"x-madang-site: gumi",
    b"x-request-id: mine",
    b"accept-encoding: gzip",
)


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(site)
    return site


@pytest.fixture
def entry(lab: Lab) -> LabSite:
    """A site without replicas whose peer has one."""
    entry, peer = lab.site("daegu"), lab.site("gumi")
    peer.add_replica(lab.engine())
    entry.peers, peer.peers = ["gumi"], ["daegu"]
    lab.start(entry)
    lab.start(peer)
    return entry


@pytest.fixture(params=["here", "at a peer"])
def way(request: pytest.FixtureRequest) -> LabSite:
    """A site that has the engine, or one that must ask another."""
    return request.getfixturevalue("site" if request.param == "here" else "entry")


@pytest.fixture
def client(way: LabSite) -> Iterator[RawClient]:
    with closing(RawClient(way.connect())) as one:
        yield one


@pytest.mark.parametrize("is_stream", [False, True])
def test_only_fields_of_ours_pass_either_way(lab: Lab, client: RawClient, is_stream: bool) -> None:
    """The engine's own fields (the fake one allows every origin) are nobody's business here, nor are the client's."""
    client.send(post(chat_body(stream=is_stream), KEY, *TRICKS))
    answer = client.answer()
    assert answer.status == 200
    framing = {"transfer-encoding", "cache-control"} if is_stream else {"content-length"}
    assert set(answer.headers) == ANSWER_FIELDS | framing
    (sent,) = lab.engines[0].requests
    assert set(sent.headers) == ENGINE_FIELDS
    assert sent.headers["authorization"] == "Bearer engine-secret"


def test_each_token_is_here_before_the_next_is_made(lab: Lab, client: RawClient) -> None:
    engine = lab.engines[0]
    engine.mode = "steps"
    engine.tokens = [f"<{number}>" for number in range(20)]
    client.send(post(chat_body(stream=True), KEY))
    assert client.head()[0] == 200
    for token in engine.tokens:
        lab.loop.call_soon_threadsafe(engine.step.release)
        client.recv_until(token.encode())  # a token that were kept back for company would never come
    client.recv_until(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("piece_bytes", [997, 16_384, 1 << 20])
def test_bodies_of_32_kb_pass_whole(lab: Lab, client: RawClient, piece_bytes: int, is_chunked: bool) -> None:
    question = "".join(f"{number} 가나다 " for number in range(2400))[:20_000]
    body = chat_body(messages=[{"role": "user", "content": question}])
    assert len(body) > 32 * 1024
    data = post(body, KEY)
    if is_chunked:
        head = data[: -len(body)].replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
        pieces = (body[at : at + piece_bytes] for at in range(0, len(body), piece_bytes))
        data = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    for at in range(0, len(data), piece_bytes):
        client.send(data[at : at + piece_bytes])
    assert client.answer().status == 200
    assert lab.engines[0].requests[0].body["messages"][0]["content"] == question


ASKED = 1100


def check_reuse(site: LabSite, engine: FakeEngine) -> None:
    with closing(RawClient(site.connect())) as client:
        for number in range(ASKED):
            client.send(post(chat_body(stream=number % 2 == 1), KEY))
            assert client.answer().status == 200
    for _ in range(20):  # clients that come anew share what is open
        assert site.chat(CITY).status == 200
    asked = ASKED + 20
    assert site.worker is not None
    meter = site.worker.meter
    assert meter.upstream_opened + meter.upstream_reused == asked
    assert meter.upstream_reused / asked >= 0.999
    assert engine.connections <= asked * 0.001
    text = site.request("GET", "/metrics", port="admin").body.decode()
    assert f'madang_gateway_upstream_connections_total{{kind="reused"}} {meter.upstream_reused}.0' in text
    assert f'madang_gateway_upstream_connections_total{{kind="opened"}} {meter.upstream_opened}.0' in text


def test_connections_to_engines_are_reused_for_all_but_one_in_a_thousand(lab: Lab, site: LabSite) -> None:
    check_reuse(site, lab.engines[0])


@pytest.mark.deep
def test_connections_to_peers_are_reused_for_all_but_one_in_a_thousand(lab: Lab, entry: LabSite) -> None:
    check_reuse(entry, lab.engines[0])


# --- retries after the body was sent


def test_a_retry_is_counted_bounded_and_metered_once(lab: Lab, site: LabSite) -> None:
    broken = [lab.engine(mode="die_first") for _ in range(2)]
    for engine in broken:
        site.add_replica(engine, slots=64)  # more free slots: chosen first
    site.refresh()
    answer = site.chat(CITY)
    assert answer.status == 200
    assert site.worker is not None
    assert site.worker.meter.retries == {(CHAT, "closed"): 2}
    assert [len(engine.requests) for engine in (lab.engines[0], *broken)] == [1, 1, 1]
    (event,) = site.events()
    assert (event.attempt, event.outcome) == (3, Outcome.COMPLETED)
    assert (event.prompt_tokens, event.completion_tokens) == (7, 3)
    text = site.request("GET", "/metrics", port="admin").body.decode()
    assert f'madang_gateway_retries_total{{reason="closed",service="{CHAT}"}} 2.0' in text


def test_retries_that_lead_nowhere_are_counted_and_cost_nothing(lab: Lab, site: LabSite) -> None:
    lab.engines[0].mode = "die_first"
    for _ in range(4):
        site.add_replica(lab.engine(mode="die_first"))
    site.refresh()
    assert site.chat(CITY).status == 502
    assert sum(len(engine.requests) for engine in lab.engines) == 3
    assert site.worker is not None
    assert site.worker.meter.retries == {(CHAT, "closed"): 3}
    assert site.events() == []


# --- clients that never end and clients that never read


def test_a_body_without_end_is_refused_and_then_cut(lab: Lab, way: LabSite, client: RawClient) -> None:
    """It is told 413 while it still sends, and what it goes on sending is neither kept nor read for ever."""
    head = post(b"", KEY).replace(b"content-length: 0", b"transfer-encoding: chunked")
    piece = b"10000\r\n%b\r\n" % (b"x" * 0x10000)
    client.send(head)
    sent, began, is_cut = 0, time.monotonic(), False
    while not is_cut and time.monotonic() - began < 20:
        try:
            client.send(piece)
            sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            is_cut = True
    assert is_cut
    assert sent > 10 * 1024 * 1024
    assert way.worker is not None
    wait_until(lambda: way.worker.ports["tenant"].connections == 0, "it is gone")
    assert way.worker.bodies.bytes_held == 0
    assert way.worker.meter.rejects == {413: 1}
    assert lab.engines[0].requests == []


NEVER_READING = 24


@pytest.mark.deep
@pytest.mark.peer
def test_many_clients_that_never_read_take_little_memory(lab: Lab) -> None:
    """Each may fill the buffers on its way once: ours towards the client, and one read from the engine."""
    engine: FakeEngine = lab.engine(mode="flood")
    site = lab.site()
    site.add_replica(engine, slots=NEVER_READING)
    site.write_feed()
    worker = WorkerProcess(site, stall_timeout_s=60.0)
    try:
        worker.wait_ready()
        process = psutil.Process(worker.process.pid)
        engine.mode = "ok"
        assert site.chat(CITY).status == 200
        engine.mode = "flood"
        before = process.memory_info().rss
        with ExitStack() as held:
            for _ in range(NEVER_READING):
                client = held.enter_context(closing(RawClient(site.connect())))
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
                client.send(post(chat_body(stream=True), KEY))
            wait_until(lambda: engine.active == NEVER_READING, "all of them are being answered", 60)
            polls: list[int] = []

            def is_held_back() -> bool:
                polls.append(engine.sent_bytes)
                return len(polls) > 100 and polls[-100] == polls[-1]

            wait_until(is_held_back, "the engine is held back", 60)
            grown = process.memory_info().rss - before
        assert grown < NEVER_READING * 512 * 1024, f"{grown / NEVER_READING / 1024:.0f} KiB each"
        wait_until(lambda: engine.active == 0, "the engine is left")
    finally:
        worker.kill()
