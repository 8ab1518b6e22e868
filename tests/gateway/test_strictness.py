"""The tenants' port against what RFC 9110 and RFC 9112 forbid, and its limits in size, time and number."""

import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.gateway.lab import CHAT, CITY, Lab, LabSite, wait_until
from tests.gateway.raw import RawClient, chat_body, post

KEY = CITY.key
AUTH = b"host: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
CHAT_LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"


@pytest.fixture
def site(lab: Lab) -> LabSite:
    site = lab.site()
    site.add_replica(lab.engine())
    lab.start(
        site,
        head_timeout_s=0.3,
        body_timeout_s=0.3,
        idle_timeout_s=0.4,
        stall_timeout_s=0.5,
        body_bytes_max=100_000,
        head_bytes_max=4096,
        headers_max=20,
        connections_max=8,
    )
    return site


@pytest.fixture
def client(site: LabSite) -> Iterator[RawClient]:
    with closing(RawClient(site.connect())) as one:
        yield one


BODY = chat_body()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SIZED = AUTH + b"content-length: %d\r\n" % len(BODY)
FORBIDDEN = {
    "both framings": CHAT_LINE + SIZED + b"transfer-encoding: chunked\r\n\r\n" + BODY,
    "two lengths": CHAT_LINE + SIZED + b"content-length: 5\r\n\r\n" + BODY,
    "the same length twice": CHAT_LINE + SIZED + b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "a list of lengths": CHAT_LINE + AUTH + b"content-length: 5, 5\r\n\r\nhello",
    "a signed length": CHAT_LINE + AUTH + b"content-length: +5\r\n\r\nhello",
    "a hexadecimal length": CHAT_LINE + AUTH + b"content-length: 0x5\r\n\r\nhello",
    "a negative length": CHAT_LINE + AUTH + b"content-length: -1\r\n\r\n",
    "an empty length": CHAT_LINE + AUTH + b"content-length:\r\n\r\n",
    "an unknown coding": CHAT_LINE + AUTH + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "chunked twice": CHAT_LINE + AUTH + b"transfer-encoding: chunked, chunked\r\n\r\n" + CHUNKED,
    "an odd coding": CHAT_LINE + AUTH + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED,
    "a quoted coding": CHAT_LINE + AUTH + b'transfer-encoding: "chunked"\r\n\r\n' + CHUNKED,
    "two codings": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n" + CHUNKED,
    "a coding in HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\n"
    + AUTH
    + b"transfer-encoding: chunked\r\n\r\n"
    + CHUNKED,
    "a space before the colon": CHAT_LINE + AUTH + b"content-length : 5\r\n\r\nhello",
    "a folded field": CHAT_LINE + AUTH + b"x-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n",
    "a bare LF between lines": CHAT_LINE + b"host: x\ncontent-length: 0\r\n\r\n",
    "bare LFs only": b"GET /v1/models HTTP/1.1\nhost: x\n\n",
    "a bare CR": CHAT_LINE + b"host: x\rx-a: 1\r\n\r\n",
    "a NUL in a value": CHAT_LINE + b"host: x\x00y\r\n\r\n",
    "no colon": CHAT_LINE + b"host x\r\n\r\n",
    "an empty name": CHAT_LINE + b": x\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "two keys": b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"authorization: Bearer x\r\n\r\n",
    "a nominated length": CHAT_LINE + SIZED + b"connection: content-length\r\n\r\n" + BODY,
    "no target": b"GET HTTP/1.1\r\nhost: x\r\n\r\n",
    "two spaces": b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target of another form": b"GET v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    "a query alone": b"GET ?a=b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a fragment": b"GET /v1/models#a HTTP/1.1\r\nhost: x\r\n\r\n",
    "a lower-case version": b"GET /v1/models http/1.1\r\nhost: x\r\n\r\n",
    "empty lines without end": b"\r\n" * 50,
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a chunk size with 0x": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a sign": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a space": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    "an empty chunk size": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    "a huge chunk size": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\nfffffffff\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n5\r\nhelloX\n0\r\n\r\n",
    "a chunk line with a bare LF": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "a length in a trailer": CHAT_LINE
    + AUTH
    + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a trailer that is no field": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n0\r\nno field\r\n\r\n",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_framing_is_400_and_closes(lab: Lab, client: RawClient, name: str) -> None:
    client.send(FORBIDDEN[name] + b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
    answer = client.answer()
    assert answer.status == 400, name
    assert answer.error["code"] == "invalid_request"
    assert answer.headers["connection"] == "close"
    client.sock.shutdown(1)
    assert client.rest() == b"", "the request behind the forbidden one is never answered"
    assert lab.engines[0].requests == []


@pytest.mark.parametrize("name", ["both framings", "a chunk size with 0x", "bare LFs only", "a folded field"])
def test_forbidden_framing_is_refused_a_byte_at_a_time(client: RawClient, name: str) -> None:
    for byte in FORBIDDEN[name]:
        try:
            client.send(bytes([byte]))
        except (BrokenPipeError, ConnectionResetError):
            break
    assert client.answer().status == 400


ALLOWED = {
    "a length": post(BODY, KEY),
    "chunks": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks with extension and trailer": CHAT_LINE
    + AUTH
    + b"Transfer-Encoding: CHUNKED\r\n\r\n"
    + b'%X;a=b;c="d"\r\n%b\r\n0\r\nx-sum: 1\r\n\r\n' % (len(BODY), BODY),
    "one byte a chunk": CHAT_LINE
    + AUTH
    + b"transfer-encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%b\r\n" % BODY[i : i + 1] for i in range(len(BODY)))
    + b"0\r\n\r\n",
    "an empty line first": b"\r\n" + post(BODY, KEY),
    "an absolute target": post(BODY, KEY, path=b"http://daegu.example/v1/chat/completions"),
    "a query": post(BODY, KEY, path=b"/v1/chat/completions?api-version=1"),
    "white space around values": CHAT_LINE
    + b"host:x\r\nauthorization: \t Bearer %b \t\r\ncontent-length:%d\r\n\r\n%b" % (KEY.encode(), len(BODY), BODY),
    "many fields of one name": post(BODY, KEY, b"x-a: 1", b"x-a: 2", b"accept: a", b"accept: b"),
}


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_grammar_allows_is_answered(lab: Lab, client: RawClient, name: str, step: int) -> None:
    data = ALLOWED[name]
    for start in range(0, len(data), step):
        client.send(data[start : start + step])
    assert client.answer().status == 200
    assert lab.engines[0].requests[0].body["messages"][0]["content"] == "안녕?"


def test_nominated_fields_are_stripped(client: RawClient) -> None:
    client.send(b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"connection: keep-alive, authorization\r\n\r\n")
    assert client.answer().status == 401


def test_versions(site: LabSite) -> None:
    for version, status in ((b"2.0", 505), (b"1.2", 505), (b"0.9", 505)):
        with closing(RawClient(site.connect())) as client:
            client.send(b"GET /v1/models HTTP/%b\r\n%b\r\n" % (version, AUTH))
            assert client.answer().status == status


def test_http10_closes_unless_asked(client: RawClient, site: LabSite) -> None:
    client.send(post(BODY, KEY, b"connection: keep-alive", version=b"1.0"))
    answer = client.answer()
    assert answer.headers["connection"] == "keep-alive"
    client.send(post(chat_body(stream=True), KEY, version=b"1.0"))
    status, fields = client.head()
    assert (status, fields["connection"], "transfer-encoding" in fields) == (200, "close", False)
    assert client.rest().endswith(b"data: [DONE]\n\n")


def test_head_and_unknown_paths_and_methods(client: RawClient) -> None:
    client.send(b"HEAD /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
    status, fields = client.head()
    assert (status, int(fields["content-length"]) > 0) == (200, True)
    client.send(b"DELETE /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    client.send(b"GET /v1/chat/completions HTTP/1.1\r\n" + AUTH + b"\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    client.send(b"GET /slots HTTP/1.1\r\n" + AUTH + b"\r\n")
    assert client.answer().status == 404


def test_pipelined_requests_are_answered_in_order(lab: Lab, client: RawClient) -> None:
    requests = [post(chat_body(seed=number, stream=number % 2 == 1), KEY) for number in range(6)]
    client.send(b"".join(requests) + b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
    kinds = [client.answer().headers["content-type"] for _ in range(7)]
    assert kinds == ["application/json", "text/event-stream"] * 3 + ["application/json"]
    assert [one.body["seed"] for one in lab.engines[0].requests] == list(range(6))


def test_a_flood_of_pipelined_requests_waits_in_the_socket(lab: Lab, site: LabSite, client: RawClient) -> None:
    engine = lab.engines[0]
    engine.mode = "wait"
    client.sock.settimeout(0.2)
    request = post(chat_body(user="x" * 20_000), KEY)
    sent = 0
    try:
        while sent < 64 * 1024 * 1024:
            client.send(request)
            sent += len(request)
    except TimeoutError:
        pass
    assert sent < 32 * 1024 * 1024, "the server stops reading"
    assert len(engine.requests) == 1
    engine.mode = "ok"
    lab.loop.call_soon_threadsafe(engine.gate.set)
    client.sock.settimeout(10)
    for _ in range(5):
        assert client.answer().status == 200


def test_continue_is_sent_when_asked(client: RawClient, site: LabSite) -> None:
    head, _, body = post(BODY, KEY, b"expect: 100-continue").partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.recv_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert client.answer().status == 200
    bad = post(BODY, "mdg_nobody", b"expect: 100-continue").partition(b"\r\n\r\n")[0]
    client.send(bad + b"\r\n\r\n")
    assert client.answer().status == 401, "a refusal comes instead of 100"


def test_unknown_expectation(client: RawClient) -> None:
    client.send(post(BODY, KEY, b"expect: miracles"))
    assert client.answer().status == 417


def test_head_limits(site: LabSite) -> None:
    for head in (
        b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"x: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"x: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
        b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"".join(b"x-%d: 1\r\n" % n for n in range(20)) + b"\r\n",
    ):
        with closing(RawClient(site.connect())) as client:
            client.send(head)
            answer = client.answer()
            assert (answer.status, answer.error["code"]) == (431, "request_too_large")


def test_body_limits(site: LabSite) -> None:
    big = b"x" * 100_001
    for data in (
        post(big, KEY),
        CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n" + b"186a1\r\n" + big,
        CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n" + b"1000\r\n%b\r\n" % (b"x" * 4096) * 25,
        CHAT_LINE + AUTH + b"content-length: 999999999999\r\n\r\n",
    ):
        with closing(RawClient(site.connect())) as client:
            client.send(data)
            answer = client.answer()
            assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_large_refused_body_does_not_lose_the_answer(site: LabSite) -> None:
    answer = site.request("POST", "/v1/chat/completions", b"x" * 20_000_000, key=KEY)
    assert answer.status == 413
    answer = site.request("POST", "/v1/chat/completions", b"x" * 20_000_000, key="mdg_wrong")
    assert answer.status == 401


@pytest.mark.parametrize("requests_before", [0, 1, 3])
def test_slow_heads_and_bodies_are_closed_in_time(site: LabSite, requests_before: int) -> None:
    def check(data: bytes, status: int | None) -> None:
        with closing(RawClient(site.connect())) as client:
            for number in range(requests_before):
                client.send(post(BODY, KEY) if number % 2 else b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
                assert client.answer().status == 200
            began = time.monotonic()
            client.send(data)
            if status is None:
                assert client.is_closed()
            else:
                assert client.answer().status == status
            assert time.monotonic() - began < 2.0

    check(b"GET /v1/mod", 408)
    check(post(BODY, KEY)[:-1], 408)
    check(CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", 408)
    check(b"", None)


DRIPS = {
    "a head": b"GET /v1/models HTTP/1.1\r\nx-slow: ",
    "a body": post(b"x" * 1000, KEY)[:-1000],
    "a chunk": CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n3e8\r\n",
}


@pytest.mark.parametrize("requests_before", [0, 1, 3])
@pytest.mark.parametrize("name", DRIPS)
def test_what_drips_meets_the_time_limit(client: RawClient, name: str, requests_before: int) -> None:
    """A byte now and then does not move the limit away."""
    for _ in range(requests_before):
        client.send(post(BODY, KEY))
        assert client.answer().status == 200
    client.send(DRIPS[name])
    began = time.monotonic()
    client.sock.settimeout(0.02)
    told = b""
    while not told and time.monotonic() - began < 5:
        try:
            client.send(b"x")
            told = client.sock.recv(100)
        except TimeoutError:
            continue
    assert told.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 2.0


def test_a_body_in_small_chunks_meets_its_limit_in_size(client: RawClient, site: LabSite) -> None:
    head = CHAT_LINE + AUTH + b"transfer-encoding: chunked\r\n\r\n"
    client.send(head + b"10\r\n%b\r\n" % (b"x" * 16) * 6251)
    assert client.answer().status == 413
    assert site.worker is not None
    assert site.worker.bodies.bytes_held == 0


def test_connections_over_the_limit_are_refused(site: LabSite) -> None:
    held = [site.connect() for _ in range(8)]
    assert site.worker is not None
    wait_until(lambda: site.worker.ports["tenant"].connections == 8, "eight connections")
    with closing(RawClient(site.connect())) as client:
        answer = client.answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (429, "overloaded", "1")
    for one in held:
        one.close()
    wait_until(lambda: site.worker.ports["tenant"].connections == 0, "no connection")
    assert site.request("GET", "/v1/models", key=KEY).status == 200


def test_a_client_that_never_reads_is_bounded_and_closed(lab: Lab, site: LabSite, client: RawClient) -> None:
    engine = lab.engines[0]
    engine.mode = "flood"
    client.send(post(chat_body(stream=True), KEY))
    wait_until(lambda: engine.sent_bytes > 0, "the flood begins")
    wait_until(lambda: engine.left == 1, "the engine is left when the client does not read for too long")
    assert engine.sent_bytes < 64 * 1024 * 1024, "back-pressure reaches the engine"
    wait_until(lambda: [one.outcome for one in site.events()] == ["client_gone"], "the event")


def test_bad_json_and_names(site: LabSite) -> None:
    for body, status, code, param in (
        (b"{", 400, "invalid_request", None),
        (b"[]", 400, "invalid_request", None),
        (b"\xff\xfe", 400, "invalid_request", None),
        (b"[" * 50_000, 400, "invalid_request", None),
        (b"", 400, "invalid_request", None),
        (b'{"messages":[]}', 400, "invalid_request", "model"),
        (
            json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}).encode(),
            404,
            "model_not_found",
            "model",
        ),
        (
            json.dumps({"model": CHAT, "messages": [{"role": "user", "content": "x"}], "n": 9}).encode(),
            400,
            "unsupported",
            "n",
        ),
    ):
        answer = site.request("POST", "/v1/chat/completions", body, key=KEY)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (status, code, param), body[:40]
    deep = {"model": CHAT, "messages": [{"role": "user", "content": "x"}], "tools": None}
    nested: dict = {}
    for _ in range(800):
        nested = {"a": nested}
    deep["response_format"] = {"type": "json_schema", "json_schema": {"schema": nested}}
    assert site.request("POST", "/v1/chat/completions", deep, key=KEY).status in (200, 400)


def test_two_requests_after_a_refused_one_on_one_connection(client: RawClient) -> None:
    client.send(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="madang"')
    client.send(b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n")
    assert client.answer().status == 200, "a refusal without a body in the way keeps the connection"
