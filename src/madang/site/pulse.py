"""What the site tells the hub by itself: heartbeats, and the status of its chips and replicas.

Owns both loops. Refuses to answer: commands come to the desired-state agent. Called by the site process. Without a
connection nothing is sent and nothing kept: the next one says all.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from madang.core import Clock, SiteId, Unavailable
from madang.runtime.bus import Bus
from madang.site.desired import DesiredView
from madang.site.intake import OutboxGauge
from madang.site.nodes import NodeBook
from madang.site.signal import Signal
from madang.wire.bus import Heartbeat, SiteStatus, encode, heartbeat_subject, status_subject

STATUS_PERIOD_S = 5.0
_GAP_S = 0.2
"""Changes that follow each other are told together, at most five times a second."""


class Pulse:
    """Heartbeats and status of one site."""

    def __init__(
        self,
        *,
        site: str,
        boot_id: str,
        bus: Bus,
        view: DesiredView,
        desired_changed: Signal,
        gauge: OutboxGauge,
        nodes: NodeBook,
        list_transfers: Callable[[], list[dict[str, Any]]],
        clock: Clock,
    ) -> None:
        self._site = SiteId(site)
        self._boot_id = boot_id
        self._bus = bus
        self._view = view
        self._desired_changed = desired_changed
        self._gauge = gauge
        self._nodes = nodes
        self._list_transfers = list_transfers
        self._clock = clock
        self._beats = 0
        self._statuses = 0

    async def run_heartbeats(self, period_s: float) -> None:
        """Beat every `period_s`, and soon after applied state changed, so that the hub sees it in step."""
        while True:
            seen = self._desired_changed.level
            now_s = self._clock.wall_s()
            self._beats += 1
            beat = Heartbeat(
                site=self._site,
                boot_id=self._boot_id,
                seq=self._beats,
                sent_at_s=now_s,
                applied_generation=self._view.generation,
                state_hash=self._view.state_hash,
                outbox_depth=max(0, self._gauge.rows),
                oldest_unsent_age_s=self._gauge.oldest_age_s(now_s),
            )
            await self._publish(heartbeat_subject(self._site), encode(beat))
            await asyncio.sleep(min(_GAP_S, period_s))
            await self._desired_changed.wait(seen, max(0.0, period_s - _GAP_S))

    async def run_status(self) -> None:
        """Tell what is observed every few seconds, and soon after it changed."""
        while True:
            seen = self._nodes.changed.level
            self._statuses += 1
            # An engine's key opens the engine: it stays in the site.
            replicas = [
                msgspec.structs.replace(replica, engine_key="", endpoint="") for replica in self._nodes.replicas()
            ]
            status = SiteStatus(
                site=self._site,
                boot_id=self._boot_id,
                seq=self._statuses,
                sent_at_s=self._clock.wall_s(),
                chips=tuple(msgspec.Raw(msgspec.json.encode(row)) for row in self._nodes.chip_rows()),
                replicas=tuple(msgspec.Raw(msgspec.json.encode(replica)) for replica in replicas),
                nodes=tuple(msgspec.Raw(msgspec.json.encode(row)) for row in self._nodes.node_rows()),
                transfers=tuple(msgspec.Raw(msgspec.json.encode(row)) for row in self._list_transfers()),
                unplaced=tuple(msgspec.Raw(msgspec.json.encode(one)) for one in self._nodes.unplaced),
            )
            await self._publish(status_subject(self._site), encode(status))
            await asyncio.sleep(_GAP_S)
            await self._nodes.changed.wait(seen, STATUS_PERIOD_S - _GAP_S)

    async def _publish(self, subject: str, data: bytes) -> None:
        if self._bus.is_connected:
            # Unavailable: the connection went this moment; the bus says so itself.
            with contextlib.suppress(Unavailable):
                await self._bus.publish(subject, data)
