"""A level that loops wait on: it only ever rises, and who missed a rise sees that the level is another.

Owns waking. Refuses to carry values: the waiter reads them where they are owned. Called by the site's loops.
"""

import asyncio


class Signal:
    """Raised by one part, waited on by any number of others."""

    def __init__(self) -> None:
        self.level = 0
        self._event = asyncio.Event()

    def rise(self) -> None:
        """Raise the level and wake whoever waits."""
        self.level += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout_s: float | None = None) -> int:
        """Return the level once it is not `seen` any more, or after `timeout_s`, whichever comes first."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.level == seen:
                    await self._event.wait()
        except TimeoutError:
            pass
        return self.level
