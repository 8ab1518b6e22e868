"""Writes the gateway's feed: the snapshot of applied state, and four times a second what changes by the second.

Owns both files, the slots of replicas and the loads that our digests carry. Refuses to choose for the gateway.
Called by the site process. A dead one leaves the last version in place and stops nobody.

After a start `live` is not written before every node and peer was heard once, or a moment has passed: until then
the version of the earlier life is nearer to the truth than an empty one.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import sqlalchemy as sa

from madang.core import Clock, MadangError, SiteId, Unavailable, ns_to_s
from madang.machine.feed_slots import SLOTS_MAX, SlotTable, assign_slots
from madang.model import KeyPolicy, Project, ReplicaObserved, ReplicaPhase
from madang.runtime.files import replace_file
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView, read_meta, write_meta
from madang.site.facility.allowed import Limits
from madang.site.guard import GuardedStore
from madang.site.nodes import NodeBook
from madang.site.peers import Peers
from madang.site.segments import sum_in_flight
from madang.site.signal import Signal
from madang.wire.bus import ServiceLoad
from madang.wire.feed import (
    LIVE_FILE,
    LIVE_PERIOD_S,
    SNAPSHOT_FILE,
    GatewayLive,
    GatewaySnapshot,
    LocalReplica,
    encode_feed,
)

FIRST_LIVE_AFTER_S = 1.5
_GATHER_S = 0.005
"""Changes that come in one burst are written as one snapshot; well within the 50 ms that a change may take."""
_LIVE_GAP_S = 0.02
_RETRY_S = 0.5
_SLOTS = "slots"


def make_snapshot(site: str, view: DesiredView) -> GatewaySnapshot:
    """Return the applied state as the gateway needs it, everything ordered by name."""
    named = {service.model for service in view.services.values()}
    return GatewaySnapshot(
        site=SiteId(site),
        generation=view.generation,
        sites=tuple(view.sites[name] for name in sorted(view.sites)),
        keys=tuple(view.keys[name] for name in sorted(view.keys)),
        tenants=tuple(view.tenants[name] for name in sorted(view.tenants)),
        services=tuple(view.services[name] for name in sorted(view.services)),
        models=tuple(view.models[name] for name in sorted(view.models) if name in named),
        projects=tuple(view.projects[name] for name in sorted(view.projects) if _is_known(view, view.projects[name])),
        key_policies=tuple(
            view.key_policies[name] for name in sorted(view.key_policies) if _is_known(view, view.key_policies[name])
        ),
        tariffs=tuple(view.tariffs[name] for name in sorted(view.tariffs)),
    )


def _is_known(view: DesiredView, fact: Project | KeyPolicy) -> bool:
    return fact.tenant_id in view.tenants


def remove_leftovers(feed_dir: Path) -> None:
    """Remove half-written files of lives that were killed between writing and renaming."""
    for path in feed_dir.glob(".*.new"):
        with contextlib.suppress(OSError):
            path.unlink()


class Replicas:
    """The replicas that the gateway is told of, each with its counter, and how busy they are."""

    def __init__(self, *, book: NodeBook, feed_dir: Path, store: GuardedStore) -> None:
        self._book = book
        self._feed_dir = feed_dir
        self._store = store
        self._table = SlotTable()
        self._in_flight = [0] * SLOTS_MAX

    async def load(self) -> None:
        """Take the slots of an earlier life, so that workers' counts keep their meaning."""
        text = await self._store.read(lambda connection: read_meta(connection, _SLOTS))
        if text:
            try:
                self._table = msgspec.json.decode(text, type=SlotTable)
            except msgspec.MsgspecError:
                self._table = SlotTable()

    def count(self) -> None:
        """Read the workers' counters; some ten microseconds per worker."""
        self._in_flight = sum_in_flight(self._feed_dir)

    def list_local(self) -> tuple[LocalReplica, ...]:
        """Return the replicas that have an endpoint, by id; one that restarts keeps its slot meanwhile."""
        self._table = assign_slots(self._table, [replica.replica_id for replica in self._book.replicas()])
        seen: dict[str, ReplicaObserved] = {
            replica.replica_id: replica for replica in self._book.offered() if replica.endpoint
        }
        return tuple(
            LocalReplica(
                replica_id=replica_id,
                service=seen[replica_id].service,
                phase=seen[replica_id].phase,
                endpoint=seen[replica_id].endpoint,
                engine_key=seen[replica_id].engine_key,
                chip_kind=seen[replica_id].chip_kind,
                slots=seen[replica_id].slots,
                features=seen[replica_id].features,
                data_class_max=seen[replica_id].data_class_max,
                slot=slot,
            )
            for replica_id, slot in sorted(self._table.slots.items())
            if replica_id in seen
        )

    def list_loads(self, assigned: set[str]) -> tuple[ServiceLoad, ...]:
        """Return how busy each service is that runs or shall run here, by name."""
        ready: dict[str, int] = defaultdict(int)
        slots: dict[str, int] = defaultdict(int)
        in_flight: dict[str, int] = defaultdict(int)
        for replica in self.list_local():
            in_flight[replica.service] += self._in_flight[replica.slot]
            if replica.phase is ReplicaPhase.READY:
                ready[replica.service] += 1
                slots[replica.service] += replica.slots
        return tuple(
            ServiceLoad(service=name, replicas_ready=ready[name], slots=slots[name], in_flight=in_flight[name])
            for name in sorted({*assigned, *ready, *in_flight})
        )

    @property
    def in_flight(self) -> int:
        """Return the requests in flight on this site's engines, over all live workers."""
        return sum(self._in_flight)

    async def store_slots(self) -> None:
        """Store the slots; raises Unavailable when the database cannot be written."""
        text = msgspec.json.encode(self._table).decode()

        def write(connection: sa.Connection) -> None:
            if read_meta(connection, _SLOTS) != text:
                write_meta(connection, _SLOTS, text)

        await self._store.write(write)

    @property
    def table(self) -> SlotTable:
        """Return the slots as they are."""
        return self._table


class FeedWriter:
    """Keeps both files as new as what they are made of."""

    def __init__(
        self,
        *,
        site: str,
        boot_id: str,
        feed_dir: Path,
        view: DesiredView,
        desired_changed: Signal,
        replicas: Replicas,
        nodes: NodeBook,
        peers: Peers,
        find_closed_reason: Callable[[], str],
        clock: Clock,
        log: EventLog,
        find_limits: Callable[[], Limits] = Limits,
    ) -> None:
        """Prepare both loops.

        Args:
            site: our name.
            boot_id: of this life.
            feed_dir: where the files go.
            view: applied state, for the snapshot.
            desired_changed: when it changed.
            replicas: local engines.
            nodes: whose change is written at once.
            peers: the other sites.
            find_closed_reason: why no new requests may be taken; empty when they may.
            find_limits: what the envelope allows now.
            clock: for `written_ns`.
            log: gets a file that cannot be written, once, and its recovery.
        """
        self._site = site
        self._boot_id = boot_id
        self._dir = feed_dir
        self._view = view
        self._desired_changed = desired_changed
        self._replicas = replicas
        self._nodes = nodes
        self._peers = peers
        self._find_closed_reason = find_closed_reason
        self._find_limits = find_limits
        self._clock = clock
        self._log = log
        self._slots_stored = replicas.table
        self._broken: set[str] = set()

    async def run_snapshot(self) -> None:
        """Write the snapshot now and whenever applied state changes.

        Before anything was ever applied there is nothing to write: a file of an earlier life is nearer to the truth.
        """
        while True:
            seen = self._desired_changed.level
            if self._view.generation == 0:
                await self._desired_changed.wait(seen)
                continue
            data = encode_feed(make_snapshot(self._site, self._view))
            is_written = await asyncio.to_thread(self._write, SNAPSHOT_FILE, data, is_durable=True)
            await self._desired_changed.wait(seen, None if is_written else _RETRY_S)
            await asyncio.sleep(_GATHER_S)

    async def run_live(self) -> None:
        """Write `live` every quarter of a second, and at once when an engine changes."""
        await self._wait_first()
        while True:
            seen = self._nodes.changed.level
            self._replicas.count()
            limits = self._find_limits()
            live = GatewayLive(
                written_ns=self._clock.monotonic_ns(),
                boot_id=self._boot_id,
                replicas=self._replicas.list_local(),
                peers=self._peers.list_peers(),
                own_sessions=self._peers.own_sessions(),
                admission_closed_reason=self._find_closed_reason(),
                shed_from=limits.shed_from,
                is_spilling=limits.is_spilling,
                envelope_reason=limits.reason,
                envelope_until_ns=limits.until_ns,
            )
            # Not durable and not on a thread: a rename in the page cache takes a tenth of a millisecond.
            self._write(LIVE_FILE, encode_feed(live), is_durable=False)
            await self._keep_slots()
            await asyncio.sleep(_LIVE_GAP_S)
            await self._nodes.changed.wait(seen, LIVE_PERIOD_S - _LIVE_GAP_S)

    async def _wait_first(self) -> None:
        started_ns = self._clock.monotonic_ns()
        while ns_to_s(self._clock.monotonic_ns() - started_ns) < FIRST_LIVE_AFTER_S:
            if self._nodes.is_complete and self._peers.is_complete and self._view.generation > 0:
                return
            await asyncio.sleep(_LIVE_GAP_S)

    async def _keep_slots(self) -> None:
        table = self._replicas.table
        if table == self._slots_stored:
            return
        try:
            await self._replicas.store_slots()
        except Unavailable:
            # The guarded store has said so; without it a restart may count a moment wrongly.
            return
        self._slots_stored = table

    def _write(self, name: str, data: bytes, *, is_durable: bool) -> bool:
        try:
            replace_file(self._dir / name, data, mode=0o600, is_durable=is_durable)
        except MadangError as error:
            if name not in self._broken:
                self._broken.add(name)
                self._log.error("feed_not_written", file=name, reason=str(error))
            return False
        if name in self._broken:
            self._broken.discard(name)
            self._log.info("feed_written_again", file=name)
        return True
