"""The engines' HTTP server holds its limits against clients that misbehave."""

import asyncio
import contextlib

import pytest

from madang.core import Unavailable
from madang.engine.http_host import HttpAnswer, HttpHost, Limits, json_answer
from madang.engine.loopback import get

LIMITS = Limits(head_bytes_max=4096, body_bytes_max=1000, read_s_max=0.3, idle_s_max=0.6, connections_max=3)


async def echo(request):
    if request.path == "/stream":

        async def chunks():
            for number in range(3):
                yield f"{number}\n".encode()

        return HttpAnswer(200, content_type="text/plain", chunks=chunks())
    if request.path == "/until-gone":
        await request.until_gone()
    return json_answer({"path": request.path, "bytes": len(request.body), "has_key": request.has_key("k")})


@contextlib.asynccontextmanager
async def serving(handler=echo):
    host = HttpHost(handler, LIMITS)
    port = await host.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await host.stop()


async def talk(port, data, *, parts=1):
    """Send bytes and return everything until the server closes, or what came within five seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 15))


def test_several_requests_share_a_connection():
    async def scenario():
        async with serving() as port:
            one = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nauthorization: Bearer k\r\n\r\nhi"
            last = b"GET /b?q=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            return await talk(port, one + last)

    said = run(scenario())
    assert b'{"path": "/a", "bytes": 2, "has_key": true}' in said
    assert b'{"path": "/b", "bytes": 0, "has_key": false}' in said


def test_chunked_bodies_and_streams():
    async def scenario():
        async with serving() as port:
            head = b"POST /stream HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            return await talk(port, head + b"2\r\nhi\r\n0\r\n\r\n")

    said = run(scenario())
    assert b"transfer-encoding: chunked" in said.lower()
    assert said.endswith(b"2\r\n2\n\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n", 413),
        (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 5000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
    ],
)
def test_what_breaks_a_limit_is_refused_and_the_connection_closed(data, status):
    async def scenario():
        async with serving() as port:
            return await talk(port, data)

    assert run(scenario()).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("data", [b"", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab", b"GET /"])
def test_a_client_that_says_no_more_is_dropped(data):
    async def scenario():
        async with serving() as port:
            return await talk(port, data)

    assert run(scenario()) == b""


def test_connections_over_the_limit_are_told_so():
    async def scenario():
        async with serving() as port, asyncio.TaskGroup() as group:
            request = b"GET /until-gone HTTP/1.1\r\nhost: x\r\n\r\n"
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(LIMITS.connections_max)]
            for _, writer in held:
                writer.write(request)
            said = await group.create_task(talk(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"))
            for _, writer in held:
                writer.close()
            return said

    assert run(scenario()).startswith(b"HTTP/1.1 503 ")


def test_a_handler_learns_that_its_client_left():
    async def scenario():
        left = asyncio.Event()

        async def handler(request):
            await request.until_gone()
            left.set()
            return json_answer({})

        async with serving(handler) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await writer.drain()
            writer.close()
            await asyncio.wait_for(left.wait(), 5)

    run(scenario())


def test_the_probe_client_reads_both_framings_and_explains_failures():
    async def scenario():
        async with serving() as port:
            endpoint = f"http://127.0.0.1:{port}"
            assert (await get(endpoint, "/stream", key="k", timeout_s=5)) == (200, b"0\n1\n2\n")
            status, body = await get(endpoint, "/a", key="k", timeout_s=5)
            assert (status, body) == (200, b'{"path": "/a", "bytes": 0, "has_key": true}')
            with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
                await get(endpoint, "/until-gone", key="k", timeout_s=0.2)
        with pytest.raises(Unavailable, match="GET /a"):
            await get(endpoint, "/a", key="k", timeout_s=1)

    run(scenario())


def test_the_probe_client_takes_no_nonsense():
    async def scenario():
        async def rubbish(_reader, writer):
            writer.write(b"SSH-2.0-x\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(rubbish, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await get(f"http://127.0.0.1:{port}", "/", key="k", timeout_s=2)
        server.close()

    run(scenario())
