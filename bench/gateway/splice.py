"""The floor: a blind TCP splice on uvloop, which a relay in Python cannot beat. usage: splice.py UPSTREAM_PORT PORT"""

import asyncio
import sys

import uvloop

UPSTREAM_PORT, PORT = int(sys.argv[1]), int(sys.argv[2])


class End(asyncio.Protocol):
    """One end of a pair; what arrives is written to the other."""

    def __init__(self, other: "End | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.waiting: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the upstream when this is the client's end, else pass on what waited."""
        self.transport = transport  # type: ignore[assignment]
        if self.other is None:
            self.other = End(self)
            loop = asyncio.get_running_loop()
            self.task = loop.create_task(loop.create_connection(lambda: self.other, "127.0.0.1", UPSTREAM_PORT))
        else:
            for data in self.other.waiting:
                transport.write(data)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        assert self.other is not None
        if self.other.transport is None:
            self.waiting.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Close the other end too."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def main() -> None:
    """Serve until ended."""
    await asyncio.get_running_loop().create_server(End, "127.0.0.1", PORT)
    await asyncio.Event().wait()


uvloop.run(main())
