"""The pool of connections to engines at its limit, on real sockets."""

import asyncio
import socket
import threading

from madang.gateway.metrics import Meter
from madang.gateway.target import Target, TimeLimits
from madang.gateway.upstream import UpstreamPool

COUNT = 60
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Heard:
    """A receiver that remembers how its call ended."""

    def __init__(self) -> None:
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_informational(self, status: int) -> None:
        raise AssertionError(status)

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        assert (status, fields[b"content-length"]) == (200, b"2")

    def on_data(self, data: bytes) -> None:
        assert data == b"ok"

    def on_end(self) -> None:
        self.over.set_result("")

    def on_failed(self, _failure: object, reason: str) -> None:
        self.over.set_result(reason)


def test_as_many_calls_as_there_may_be_connections_begin_at_once() -> None:
    """A connection counts once, also in the moment between being opened and being open."""

    async def play() -> list[str]:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        came, all_came = 0, asyncio.Event()

        def spawn(work) -> "asyncio.Task[None]":
            task = loop.create_task(work)
            tasks.add(task)
            return task

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal came
            await reader.readuntil(b"\r\n\r\n")
            came += 1
            if came == COUNT:
                all_came.set()
            await all_came.wait()  # so that no connection is free for a second call
            writer.write(ANSWER)
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4 * COUNT)
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1])
        pool = UpstreamPool(loop, spawn, Meter("daegu"), 10.0, connections_max=COUNT)
        heard = []
        for _ in range(COUNT):
            heard.append(Heard())
            pool.call(target, REQUEST, heard[-1], TimeLimits(first_byte_s=30.0, stall_s=30.0))
            await asyncio.sleep(0)  # while later ones begin, earlier ones are made
        over = Heard()
        pool.call(target, REQUEST, over, TimeLimits(first_byte_s=30.0, stall_s=30.0))
        assert "60 connections to engines and peers are open" in await over.over
        ends = [await one.over for one in heard]
        pool.close()
        await asyncio.gather(*tasks)
        server.close()
        await server.wait_closed()
        return ends

    assert asyncio.run(asyncio.wait_for(play(), 60)) == [""] * COUNT


def test_a_loop_that_was_busy_itself_does_not_give_up_a_connect() -> None:
    """The connection is made by the kernel while the loop stands; only a silent other side is given up."""

    async def play(is_silent: bool) -> str:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def spawn(work) -> "asyncio.Task[None]":
            task = loop.create_task(work)
            tasks.add(task)
            return task

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await reader.read()
            writer.close()

        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            held = [socket.socket() for _ in range(8 if is_silent else 0)]
            for one in held:  # fills the backlog, so that the kernel leaves later ones without an answer
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = full.getsockname()[1] if is_silent else server.sockets[0].getsockname()[1]
            pool = UpstreamPool(loop, spawn, Meter("daegu"), 0.05)
            heard = Heard()
            pool.call(Target("127.0.0.1", port), REQUEST, heard, TimeLimits(first_byte_s=30.0, stall_s=30.0))
            if not is_silent:
                loop.call_soon(lambda: threading.Event().wait(0.5))  # the loop stands, as under a burst
            end = await heard.over
            pool.close()
            await asyncio.gather(*tasks)
            server.close()
            await server.wait_closed()
            for one in held:
                one.close()
        return end

    assert asyncio.run(asyncio.wait_for(play(is_silent=False), 60)) == ""
    assert "within 0.05 s" in asyncio.run(asyncio.wait_for(play(is_silent=True), 60))
