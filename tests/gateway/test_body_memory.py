"""What a worker holds of bodies and of answers, those on their way included, whatever clients do."""

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.gateway.lab import CITY, EMBED, Answer, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.wire_bench import LIMITS, FakeClock, FakeLoop, FakeTransport, Recorder

from madang.gateway.body_pool import BodyPool
from madang.gateway.http1 import ServerConnection
from madang.gateway.port import Port
from madang.model import Outcome, UsageEvent

KEY = CITY.key
POOL_BYTES, BODY_BYTES_MAX = 100_000, 60_000
BIG = chat_body(user="x" * 50_000)
CHUNKED_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ntransfer-encoding: chunked\r\n\r\n"
    % KEY.encode()
)


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(site, body_memory_bytes_max=POOL_BYTES, body_bytes_max=BODY_BYTES_MAX)
    return site


@pytest.fixture
def clients(site: LabSite) -> Iterator[list[RawClient]]:
    made = [RawClient(site.connect()) for _ in range(4)]
    yield made
    for client in made:
        client.close()


def held(site: LabSite) -> int:
    assert site.worker is not None
    return site.worker.bodies.bytes_held


def hold_one(lab: Lab, site: LabSite, client: RawClient) -> None:
    """Have one body held until the engine is let go."""
    lab.engines[0].mode = "wait"
    client.send(post(BIG, KEY))
    wait_until(lambda: len(lab.engines[0].requests) == 1, "the engine has the request")
    assert BODY_BYTES_MAX > held(site) >= len(BIG)


def let_go(lab: Lab) -> None:
    lab.engines[0].mode = "ok"
    lab.loop.call_soon_threadsafe(lab.engines[0].gate.set)


def check_refused(client: RawClient) -> None:
    answer = client.answer()
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
    assert answer.headers["connection"] == "close"


def test_bodies_over_what_a_worker_holds_are_refused_until_there_is_room(
    lab: Lab, site: LabSite, clients: list[RawClient]
) -> None:
    hold_one(lab, site, clients[0])
    clients[1].send(post(BIG, KEY))
    check_refused(clients[1])
    clients[2].send(CHUNKED_HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BIG), BIG))
    check_refused(clients[2])
    clients[3].send(post(chat_body(), KEY))
    wait_until(lambda: len(lab.engines[0].requests) == 2, "a small body still has room")
    let_go(lab)
    assert clients[0].answer().status == clients[3].answer().status == 200
    wait_until(lambda: held(site) == 0, "nothing is held any more")
    clients[0].send(post(BIG, KEY))
    assert clients[0].answer().status == 200
    assert site.worker is not None
    assert site.worker.bodies.refusals == 2


def test_announcing_much_takes_nothing_from_others(site: LabSite, clients: list[RawClient]) -> None:
    for client in clients[:3]:
        client.send(post(BIG, KEY)[: -len(BIG) + 10])
    wait_until(lambda: held(site) == 30, "the ten bytes of each")
    clients[3].send(post(BIG, KEY))
    assert clients[3].answer().status == 200


@pytest.mark.parametrize("how", ["leaves", "breaks the coding", "is refused by its key"])
def test_nothing_stays_held_of_who(lab: Lab, site: LabSite, clients: list[RawClient], how: str) -> None:
    client = clients[0]
    if how == "leaves":
        client.send(post(BIG, KEY)[:-10])
        wait_until(lambda: held(site) > 40_000, "most of the body")
        client.close()
    elif how == "breaks the coding":
        client.send(CHUNKED_HEAD + b"5\r\nhello\r\n")
        wait_until(lambda: held(site) > 0, "a chunk")
        client.send(b"xyz\r\n")
        assert client.answer().status == 400
    else:
        client.send(post(BIG, "mdg_nobody_" + "x" * 43))
        assert client.answer().status == 401
    wait_until(lambda: held(site) == 0, "nothing")


def test_requests_in_a_row_on_one_connection_add_nothing_up(site: LabSite, clients: list[RawClient]) -> None:
    client = clients[0]
    for number in range(6):
        client.send(post(BIG, KEY))
        assert client.answer().status == 200, number
    client.send(post(BIG, KEY) * 3)
    statuses = [client.answer().status for _ in range(3)]
    assert statuses == [200] * 3, "what is pipelined behind waits unread"
    assert held(site) == 0


def test_an_answer_that_is_read_slowly_is_held_back_at_the_engine(lab: Lab, site: LabSite) -> None:
    """What lies between an engine that floods and a slow reader is bounded: our buffers and the kernel's."""
    engine = lab.engines[0]
    engine.mode = "flood"
    with closing(RawClient(site.connect())) as client:
        client.send(post(chat_body(stream=True), KEY))
        read, most = 0, 0
        while read < 24 * 1024 * 1024:
            data = client.sock.recv(16 * 1024)
            assert data
            read += len(data)
            most = max(most, engine.sent_bytes - read)
    assert most < 16 * 1024 * 1024
    wait_until(lambda: engine.active == 0, "the engine is left")


# --- answers that are kept until they are whole

EMBEDDINGS = b"/v1/embeddings"
VECTOR = [0.123456789] * 8_000
"""Some 104 kB as JSON: one fits beside small bodies, two do not."""


def embed(site: LabSite) -> Answer:
    return site.request("POST", EMBEDDINGS.decode(), {"model": EMBED, "input": ["진동"]}, key=KEY)


@pytest.fixture(params=["served here", "passed on"])
def embedder(lab: Lab, request: pytest.FixtureRequest) -> LabSite:
    """A site with little memory that answers with what an engine of its own, or of a peer, has computed."""
    site, far = lab.site(), lab.site("gumi")
    engine = lab.engine(vectors=[VECTOR])
    (site if request.param == "served here" else far).add_replica(engine, EMBED)
    site.peers, far.peers = ["gumi"], ["daegu"]
    lab.start(site, body_memory_bytes_max=POOL_BYTES, body_bytes_max=BODY_BYTES_MAX)
    lab.start(far)
    return site


def test_an_answer_that_does_not_fit_is_refused_and_not_billed(lab: Lab, embedder: LabSite) -> None:
    engine, pool = lab.engines[0], embedder.worker.bodies
    assert embed(embedder).json["data"][0]["embedding"] == VECTOR
    engine.vectors = [VECTOR * 2]
    for _ in range(3):
        refused = embed(embedder)
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert "answers" in refused.error["message"]
        wait_until(lambda: pool.bytes_held == 0, "nothing stays held of it")
    wait_until(lambda: engine.active == 0, "the engine is left")
    engine.vectors = [VECTOR]
    assert embed(embedder).status == 200
    last: dict[str, UsageEvent] = {}
    for event in sorted([*embedder.events(), *lab.sites["gumi"].events()], key=lambda one: one.attempt):
        last[event.request_id] = event
    outcomes = [event.outcome for event in last.values() if event.outcome is not Outcome.ABANDONED]
    assert outcomes == [Outcome.COMPLETED] * 2, "who got no answer pays for none"


def test_bodies_leave_room_for_the_answers_to_them(lab: Lab, embedder: LabSite) -> None:
    """A quarter beyond what bodies may fill is the answers' own: no work is futile because bodies filled everything."""
    pool = embedder.worker.bodies
    lab.engines[0].vectors = [VECTOR[:1500]]
    full = pool.bytes_max - 1000
    lab.loop.call_soon_threadsafe(pool.take, full)
    wait_until(lambda: pool.bytes_held == full, "bodies fill it")
    assert embed(embedder).status == 200
    lab.engines[0].vectors = [VECTOR]
    assert embed(embedder).status == 503
    wait_until(lambda: pool.bytes_held == full, "only what bodies hold")
    lab.loop.call_soon_threadsafe(pool.give_back, full)


@pytest.mark.deep
def test_an_answer_that_nobody_reads_stays_counted(lab: Lab) -> None:
    """What lies between us and a slow reader is memory too, more than the kernel takes off us (4 MB at most)."""
    site = lab.site()
    site.add_replica(lab.engine(vectors=[[0.12345678901234567] * 500_000]), EMBED)  # 10 MB as JSON
    lab.start(site, body_memory_bytes_max=12 << 20)
    pool = site.worker.bodies
    request = post(json.dumps({"model": EMBED, "input": ["x"]}).encode(), KEY, path=EMBEDDINGS)
    with closing(RawClient(site.connect(timeout_s=60))) as client:
        client.send(request)
        wait_until(lambda: len(site.events()) == 1, "it is served, as far as we are concerned")
        assert pool.bytes_held > 9_000_000
        assert embed(site).status == 503, "there is no room for another"
        assert len(client.answer().body) > 9_000_000
        wait_until(lambda: pool.bytes_held == 0, "the client has it")
        client.send(request)
        wait_until(lambda: len(site.events()) == 2, "the next one")
        assert pool.bytes_held > 9_000_000
    wait_until(lambda: pool.bytes_held == 0, "a client that leaves takes its answer with it")


def test_an_answer_that_fails_half_way_is_counted_out_before_the_next_try(lab: Lab) -> None:
    site = lab.site()
    for _ in range(2):
        site.add_replica(lab.engine(vectors=[VECTOR + VECTOR[:3000]], mode="half"), EMBED)
    lab.start(site, body_memory_bytes_max=POOL_BYTES, body_bytes_max=BODY_BYTES_MAX)
    answer = embed(site)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")
    assert [len(engine.requests) for engine in lab.engines] == [1, 1]
    assert site.worker.bodies.refusals == 0, "half of each fits, and not of both"
    wait_until(lambda: site.worker.bodies.bytes_held == 0, "nothing is held")


@pytest.mark.parametrize("answers", [1, 2])
def test_texts_that_are_put_together_are_counted_in_steps(lab: Lab, answers: int) -> None:
    site = lab.site()
    engine = lab.engine(tokens=["x" * 3000] * 20)
    site.add_replica(engine)
    lab.start(site, body_memory_bytes_max=POOL_BYTES, body_bytes_max=BODY_BYTES_MAX)
    assert site.chat(CITY, n=answers).status == 200
    engine.tokens = ["x" * 3000] * 60
    assert site.chat(CITY, n=answers).error["code"] == "overloaded"
    wait_until(lambda: engine.active == 0, "the engine is left")
    assert site.chat(CITY, n=answers, stream=True).status == 200, "what is streamed is not held"
    wait_until(lambda: site.worker.bodies.bytes_held == 0, "nothing is held")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_in_tiny_pieces_weighs_no_more_than_in_one(is_chunked: bool) -> None:
    """Held one by one, pieces of two bytes would weigh twenty times as much as they are counted for."""
    recorder = Recorder(is_late=False)
    port = Port(FakeLoop(), FakeClock(), recorder, LIMITS, lambda _status: None, BodyPool(LIMITS.body_bytes_max))
    connection = ServerConnection(port)
    connection.connection_made(FakeTransport())
    size = LIMITS.body_bytes_max
    framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % size
    connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % framing)
    tracemalloc.start()
    try:
        for number in range(size // 2):
            piece = number.to_bytes(2, "big")
            connection.data_received(b"2\r\n%b\r\n" % piece if is_chunked else piece)
            if number == size // 2 - 2:
                held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    if is_chunked:
        connection.data_received(b"0\r\n\r\n")
    assert held_bytes < 2 * size
    (taken,) = recorder.taken
    assert taken.body == b"".join(number.to_bytes(2, "big") for number in range(size // 2))
    connection.connection_lost(None)
