"""The walk that looks at all of an audit chain again and again, and what it found as metrics.

Owns the walk's place and pace. Refuses to mend: what is broken is evidence. Hub and site run one each.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from madang.core import Clock, MadangError
from madang.runtime.audit_log import ROWS_PER_PAGE_MAX, AuditLog
from madang.runtime.telemetry import EventLog
from madang.wire.audit import AuditRow, ChainHead, follow

PAGE_PERIOD_S = 5.0
"""Between two pages of a walk: a million rows are walked in an hour and a half."""
WALK_PERIOD_S = 600.0
"""From the end of one walk to the next."""


class Reader(Protocol):
    """The store of the program whose chain it is."""

    def read(self, action: Callable[[sa.Connection], list[AuditRow]]) -> Awaitable[list[AuditRow]]:
        """Run `action` on a snapshot of the last commit."""


class AuditWatch:
    """Walks a chain again and again, so that a change of what was written does not wait for somebody to look.

    The end of the last whole walk is remembered: rows that were cut off the end leave a chain that holds, and one that
    is shorter, or another, than it was. That memory ends with the program; `madang audit verify --head` has its own.

    Attributes:
        head: of the last whole walk.
        broken_at_seq: the first row that did not fit, or is missing; 0 while all do.
        checked_at_s: wall time when a walk last came to its end; 0 before.
    """

    def __init__(self, audit: AuditLog, store: Reader, clock: Clock, log: EventLog) -> None:
        self._audit = audit
        self._store = store
        self._clock = clock
        self._log = log
        self._at = ChainHead()
        self.head = ChainHead()
        self.broken_at_seq = 0
        self.checked_at_s = 0.0

    async def run(self) -> None:
        """Walk until cancelled."""
        is_at_end = False
        while True:
            await asyncio.sleep(WALK_PERIOD_S if is_at_end else PAGE_PERIOD_S)
            try:
                is_at_end = await self.step()
            except MadangError as error:
                self._log.warning("audit_not_read", reason=error.message)
                is_at_end = False

    async def step(self) -> bool:
        """Walk one page further; returns whether that was the last of this walk."""
        after = self._at.seq
        rows = await self._store.read(lambda connection: self._audit.read(connection, after=after))
        known = next((row for row in rows if row.seq == self.head.seq), None)
        head, broken_at = follow(self._at, rows)
        if broken_at is None and known is not None and known.hash != self.head.hash:
            broken_at = known.seq  # written anew, all of it, in a way that holds
        is_at_end = len(rows) < ROWS_PER_PAGE_MAX
        if broken_at is None and is_at_end and head.seq < self.head.seq:
            broken_at = head.seq + 1
        if broken_at is not None:
            self._tell(broken_at)
            self._at = ChainHead()
            return True
        self._at = head
        if is_at_end:
            self.head, self._at = head, ChainHead()
            self.broken_at_seq = 0
            self.checked_at_s = self._clock.wall_s()
        return is_at_end

    def _tell(self, broken_at: int) -> None:
        if broken_at != self.broken_at_seq:
            self._log.error(
                "audit_chain_broken",
                row=broken_at,
                reason=f"row {broken_at} of the audit chain was changed, or is missing",
                next_step="keep a copy of the database as it is, then see docs/operations.md, The audit chain",
            )
        self.broken_at_seq = broken_at


class AuditCollector(Collector):
    """Says what a walk found, under a program's prefix such as `madang_hub`."""

    def __init__(self, prefix: str, watch: AuditWatch) -> None:
        self._prefix = prefix
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """Yield three gauges."""
        watch = self._watch
        for name, text, value in (
            ("audit_rows", "Rows of the audit chain when it was last walked to its end.", watch.head.seq),
            ("audit_broken_at_row", "First row that was changed or is missing; 0 while all fit.", watch.broken_at_seq),
            ("audit_checked_timestamp_seconds", "When it was last walked to its end; 0 before.", watch.checked_at_s),
        ):
            yield GaugeMetricFamily(f"{self._prefix}_{name}", text, value=float(value))
