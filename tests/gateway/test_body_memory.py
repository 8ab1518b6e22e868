"""What a worker holds of bodies and of answers on their way, whatever clients do."""

import tracemalloc
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.gateway.lab import CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post
from tests.gateway.wire_bench import LIMITS, FakeClock, FakeLoop, FakeTransport, Recorder

from madang.gateway.body_pool import BodyPool
from madang.gateway.http1 import ServerConnection
from madang.gateway.port import Port

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
