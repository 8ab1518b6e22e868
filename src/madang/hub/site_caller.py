"""Commands to sites and their answers.

Owns the subject `reply.>`: each question has a nonce of its own, and the subject of the answer says which site
gave it, since a site may only publish under its own name. Refuses to know commands.
"""

import asyncio

from madang.core import Entropy, SiteId, Unavailable
from madang.runtime.bus import NO_RESPONDERS, Bus, NoResponders
from madang.wire.bus import CommandReply, command_subject, decode, reply_subject

_ANSWERS_PENDING_MAX = 1024
_QUESTIONS_MAX = 256


class SiteCaller:
    """Asks sites and waits for their answers."""

    def __init__(self, bus: Bus, entropy: Entropy) -> None:
        """Prepare; call before the bus runs."""
        self._bus = bus
        self._entropy = entropy
        self._inbox = bus.listen("reply.>", pending_max=_ANSWERS_PENDING_MAX)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def run(self) -> None:
        """Hand answers to whoever waits for them, until cancelled; an answer nobody waits for is dropped."""
        while True:
            message = await self._inbox.next()
            future = self._waiting.pop(message.subject, None)
            if future is not None and not future.done():
                if message.status == NO_RESPONDERS:
                    future.set_exception(NoResponders("the site is not linked, or does not listen"))
                else:
                    future.set_result(message.data)

    async def call(self, site: SiteId, verb: str, data: bytes, *, timeout_s: float) -> CommandReply:
        """Send a command and return the site's answer.

        Raises:
            Unavailable: not connected, no answer in time, or too many questions open.
            Rejected: the answer is malformed.
        """
        if len(self._waiting) >= _QUESTIONS_MAX:
            raise Unavailable(f"{len(self._waiting)} commands already wait for answers", retry_after_s=1.0)
        subject = reply_subject(site, self._entropy.token_bytes(12).hex())
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[subject] = future
        try:
            await self._bus.publish(command_subject(site, verb), data, reply=subject)
            async with asyncio.timeout(timeout_s):
                data = await future
        except TimeoutError as error:
            raise Unavailable(f"site {site} did not answer {verb} within {timeout_s:g} s") from error
        except NoResponders as error:
            raise Unavailable(f"site {site} cannot be asked to {verb}: {error.message}", retry_after_s=5.0) from error
        finally:
            self._waiting.pop(subject, None)
        return decode(data, CommandReply)
