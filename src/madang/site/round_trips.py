"""How long the way to each other site is: a few bytes to its peer port and back, now and then.

Owns the probes and what they found. Refuses to judge by it: `policy.nearest` does. Called by the site process; the
numbers go into the gateway's feed. Over a connection of its own for each probe, so that a broken way is noticed, but
the connection's making is not counted.
"""

import asyncio
import contextlib
import ssl
import statistics
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from madang.core import Clock, ns_to_s
from madang.wire.passes import PROBE_PATH

PERIOD_S = 15.0
RETRY_S = 5.0
"""While some site does not answer: it may only be starting."""
TIMEOUT_S = 2.0
TRIES = 5
AT_ONCE_MAX = 8
HEAD_BYTES_MAX = 4096
UNKNOWN_S = -1.0


class RoundTrips:
    """The newest round trip to each other site."""

    def __init__(
        self, find_urls: Callable[[], Mapping[str, str]], clock: Clock, roots: ssl.SSLContext | None = None
    ) -> None:
        """Prepare the loop.

        Args:
            find_urls: base URLs of the other sites' peer ports by site, as they are dialled from here.
            clock: measures.
            roots: who vouches for those that are dialled with TLS; None for the system's.
        """
        self._find_urls = find_urls
        self._clock = clock
        self._tls = roots or True
        self._found: dict[str, float] = {}

    def round_trip_s(self, site: str) -> float:
        """Return the newest round trip to a site, UNKNOWN_S when the last probe failed or none was made."""
        return self._found.get(site, UNKNOWN_S)

    async def run(self) -> None:
        """Probe for ever."""
        while True:
            await self.probe_all()
            is_whole = UNKNOWN_S not in self._found.values()
            await asyncio.sleep(PERIOD_S if is_whole else RETRY_S)

    async def probe_all(self) -> None:
        """Probe every other site once."""
        urls = {site: url for site, url in self._find_urls().items() if url}
        places = asyncio.Semaphore(AT_ONCE_MAX)

        async def probe(site: str, url: str) -> tuple[str, float]:
            async with places:
                return site, await self._probe(url)

        self._found = dict(await asyncio.gather(*(probe(site, url) for site, url in urls.items())))

    async def _probe(self, url: str) -> float:
        try:
            parts = urlsplit(url)
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    parts.hostname, parts.port, limit=HEAD_BYTES_MAX, ssl=self._tls if parts.scheme == "https" else None
                )
                try:
                    return await self._measure(reader, writer, parts.netloc)
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError):
            return UNKNOWN_S

    async def _measure(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> float:
        taken_s = []
        for _ in range(TRIES):
            began_ns = self._clock.monotonic_ns()
            writer.write(f"HEAD {PROBE_PATH} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise ValueError(f"a probe was answered {head[:40]!r}")
            taken_s.append(ns_to_s(self._clock.monotonic_ns() - began_ns))
        # The first warms the way up: it finds cold caches and, on a thin line, a radio asleep.
        return statistics.median(taken_s[1:])
