"""Round trips to other sites, against real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

from madang.runtime.clock import SystemClock
from madang.site.round_trips import TRIES, UNKNOWN_S, RoundTrips

Reply = Callable[[bytes], bytes]


async def probe(reply: Reply | None) -> tuple[float, list[bytes]]:
    """Return what one round of probes finds of a peer that answers so, and what the peer was sent."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while reply is not None:
                head = await reader.readuntil(b"\r\n\r\n")
                heads.append(head)
                writer.write(reply(head))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    trips = RoundTrips(lambda: {"gumi": f"http://127.0.0.1:{port}", "nowhere": "", "odd": "http://[::1"}, SystemClock())
    async with server:
        await trips.probe_all()
    assert trips.round_trip_s("nowhere") == trips.round_trip_s("never heard of") == UNKNOWN_S
    return trips.round_trip_s("gumi"), heads


def run(work: Awaitable[tuple[float, list[bytes]]]) -> tuple[float, list[bytes]]:
    async def main() -> tuple[float, list[bytes]]:
        return await work

    return asyncio.run(main())


def test_a_peer_that_answers_is_measured_over_one_connection() -> None:
    found_s, heads = run(probe(lambda _head: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
    assert 0 < found_s < 1
    assert len(heads) == TRIES
    assert heads[0].startswith(b"HEAD /probe HTTP/1.1\r\n")


def test_what_does_not_answer_so_is_unknown() -> None:
    for reply in (None, lambda _head: b"HTTP/1.1 503 x\r\n\r\n", lambda _head: b"x" * 100_000):
        assert run(probe(reply))[0] == UNKNOWN_S
