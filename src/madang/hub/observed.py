"""What the hub knows of sites by hearing: heartbeats and statuses, each with its age.

Owns the memory of both and `site_observed`, which only lets a restarted hub show what it last heard. Refuses to
act on it. The facts belong to the sites; these are copies.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Clock, SiteId, ns_to_s
from madang.hub.tables import SITE_OBSERVED
from madang.wire.bus import Heartbeat, SiteStatus


class SiteState(StrEnum):
    """How alive a site is, judged by the age of its last heartbeat."""

    CONNECTED = "connected"
    STALE = "stale"
    UNREACHABLE = "unreachable"
    NEVER_SEEN = "never_seen"


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The last heartbeat of a site; `received_ns` is None when it was heard by an earlier run of the hub."""

    heartbeat: Heartbeat
    received_at_s: float
    received_ns: int | None


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The last status of a site and the wall time at which the NATS server stored it."""

    status: SiteStatus
    stored_at_s: float


class ObservedSites:
    """Heartbeats and statuses by site."""

    def __init__(self, clock: Clock, *, stale_after_s: float, lost_after_s: float) -> None:
        self._clock = clock
        self._stale_after_s = stale_after_s
        self._lost_after_s = lost_after_s
        self._heard: dict[SiteId, Heard] = {}
        self._statuses: dict[SiteId, Observed] = {}
        self._unsaved: set[SiteId] = set()

    def note_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Remember a heartbeat that has just come."""
        self._heard[heartbeat.site] = Heard(
            heartbeat=heartbeat, received_at_s=self._clock.wall_s(), received_ns=self._clock.monotonic_ns()
        )
        self._unsaved.add(heartbeat.site)

    def note_status(self, status: SiteStatus, stored_at_s: float) -> None:
        """Remember a status unless a newer one is known."""
        old = self._statuses.get(status.site)
        if old is None or old.stored_at_s <= stored_at_s:
            self._statuses[status.site] = Observed(status=status, stored_at_s=stored_at_s)

    def forget(self, live: Iterable[SiteId]) -> None:
        """Forget sites that are not enrolled any more."""
        names = set(live)
        for site in set(self._heard) - names:
            del self._heard[site]
        for site in set(self._statuses) - names:
            del self._statuses[site]

    def heard(self, site: SiteId) -> Heard | None:
        """Return the last heartbeat of a site."""
        return self._heard.get(site)

    def age_s(self, site: SiteId) -> float | None:
        """Return the age of a site's last heartbeat, None if there is none."""
        heard = self._heard.get(site)
        if heard is None:
            return None
        if heard.received_ns is None:
            return max(0.0, self._clock.wall_s() - heard.received_at_s)
        return ns_to_s(self._clock.monotonic_ns() - heard.received_ns)

    def state(self, site: SiteId) -> SiteState:
        """Return how alive a site is."""
        age_s = self.age_s(site)
        if age_s is None:
            return SiteState.NEVER_SEEN
        if age_s < self._stale_after_s:
            return SiteState.CONNECTED
        return SiteState.STALE if age_s < self._lost_after_s else SiteState.UNREACHABLE

    def list_rows(self, what: str) -> list[dict[str, Any]]:
        """Return `chips`, `replicas`, `nodes`, `transfers` or `unplaced` of all sites as rows, with site and age."""
        now_s = self._clock.wall_s()
        rows: list[dict[str, Any]] = []
        for site, observed in sorted(self._statuses.items()):
            for raw in getattr(observed.status, what):
                fact = msgspec.json.decode(raw)
                if isinstance(fact, dict):
                    age_s = round(max(0.0, now_s - observed.stored_at_s), 3)
                    rows.append({**fact, "site": site, "observed_age_s": age_s})
        return rows

    def load(self, connection: sa.Connection) -> None:
        """Take what an earlier run heard."""
        for row in connection.execute(sa.select(SITE_OBSERVED)):
            heartbeat = Heartbeat(
                site=SiteId(row.site),
                boot_id=row.boot_id,
                seq=row.seq,
                sent_at_s=row.received_at_s,
                applied_generation=row.applied_generation,
                state_hash=row.state_hash,
                outbox_depth=row.outbox_depth,
                oldest_unsent_age_s=row.oldest_unsent_age_s,
            )
            self._heard[heartbeat.site] = Heard(heartbeat=heartbeat, received_at_s=row.received_at_s, received_ns=None)

    def take_unsaved(self) -> list[Heard]:
        """Return what was heard since the last call."""
        unsaved = [self._heard[site] for site in sorted(self._unsaved) if site in self._heard]
        self._unsaved.clear()
        return unsaved


def save_heard(connection: sa.Connection, heard: Iterable[Heard]) -> None:
    """Write heartbeats, one row a site."""
    for item in heard:
        heartbeat = item.heartbeat
        connection.execute(SITE_OBSERVED.delete().where(SITE_OBSERVED.c.site == heartbeat.site))
        connection.execute(
            SITE_OBSERVED.insert().values(
                site=heartbeat.site,
                boot_id=heartbeat.boot_id,
                seq=heartbeat.seq,
                applied_generation=heartbeat.applied_generation,
                state_hash=heartbeat.state_hash,
                outbox_depth=heartbeat.outbox_depth,
                oldest_unsent_age_s=heartbeat.oldest_unsent_age_s,
                received_at_s=item.received_at_s,
            )
        )
