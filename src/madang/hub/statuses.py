"""Hears what sites say of their chips and replicas, and reads the last word of each after every new connection.

Owns the stream STATUS. Refuses to keep what it heard (`madang.hub.observed` does).
"""

import asyncio

from madang.core import Clock, Rejected, Unavailable
from madang.hub.jetstream import JetStream
from madang.hub.observed import ObservedSites
from madang.hub.streams import STATUS_STREAM, STATUS_SUBJECTS, status_stream
from madang.runtime.bus import Bus
from madang.runtime.telemetry import EventLog
from madang.wire.bus import SiteStatus, decode, site_of_subject

_PENDING_MAX = 1024
_PULL_PENDING_MAX = 512
_RETRY_S = 1.0
_CHECK_PERIOD_S = 30.0
_COMPLAINTS_MAX = 1024


class Statuses:
    """Keeps the last status of every site up to date."""

    def __init__(self, *, bus: Bus, jetstream: JetStream, observed: ObservedSites, clock: Clock, log: EventLog) -> None:
        """Prepare; call before the bus runs."""
        self._bus = bus
        self._jetstream = jetstream
        self._observed = observed
        self._clock = clock
        self._log = log
        self._inbox = bus.listen(STATUS_SUBJECTS, pending_max=_PENDING_MAX)
        self._pull = jetstream.listen("status", pending_max=_PULL_PENDING_MAX)
        self._refused: set[str] = set()

    async def run(self) -> None:
        """Hear until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear(), name="hear_statuses")
            group.create_task(self._read_now_and_then(), name="read_statuses")

    async def _hear(self) -> None:
        while True:
            message = await self._inbox.next()
            self._take(message.subject, message.data, self._clock.wall_s())

    async def _read_now_and_then(self) -> None:
        read_at_connection = 0
        while True:
            await self._bus.wait_connected()
            connection = self._bus.connections
            wait_s = _CHECK_PERIOD_S
            try:
                await self._jetstream.ensure_stream(status_stream())
                if connection != read_at_connection:
                    async for message in self._jetstream.read_last(self._pull, STATUS_STREAM, STATUS_SUBJECTS):
                        self._take(message.subject, message.data, message.stored_at_s)
                    read_at_connection = connection
            except Unavailable as error:
                self._log.warning("statuses_not_read", reason=error.message)
                wait_s = _RETRY_S
            await asyncio.sleep(wait_s)

    def _take(self, subject: str, data: bytes, stored_at_s: float) -> None:
        try:
            status = decode(data, SiteStatus)
            if status.site != site_of_subject(subject):
                raise Rejected(f"status names site {status.site[:40]!r}")
        except Rejected as error:
            if subject not in self._refused and len(self._refused) < _COMPLAINTS_MAX:
                self._refused.add(subject)
                self._log.warning("status_refused", subject=subject, reason=error.message)
            return
        self._observed.note_status(status, stored_at_s)
