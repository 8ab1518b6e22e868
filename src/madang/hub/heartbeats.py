"""Hears sites, and brings one back in line whose state differs from what the hub wants.

Owns the conversation: heartbeats in, resyncs out. Refuses to judge (`madang.policy.desired.judge_heartbeat` does)
and to keep what it heard (`madang.hub.observed` does).
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable

from madang.core import Clock, Entropy, Rejected, SiteId, Unavailable, check_site_name, ns_to_s
from madang.hub.change import ACTOR_HUB, Change, Changer
from madang.hub.desired_store import (
    jump_generation,
    make_resync_parts,
    read_items,
    read_live_generations,
    read_wanted_hash,
)
from madang.hub.metrics import HubMetrics
from madang.hub.observed import ObservedSites, save_heard
from madang.hub.site_caller import SiteCaller
from madang.policy.desired import SyncTrack, Verdict, judge_heartbeat, note_resync
from madang.runtime.bus import Bus, BusMessage
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.wire.bus import Heartbeat, ResyncPart, decode, encode, site_of_subject

_PENDING_MAX = 4096
_SAVE_PERIOD_S = 5.0
_PART_TIMEOUT_S = 5.0
_PART_ATTEMPTS = 2
_RESYNCS_AT_ONCE = 8
_TEXT_CHARS_MAX = 64
_COUNT_MAX = 2**53


class Heartbeats:
    """Hears heartbeats and orders resyncs."""

    def __init__(
        self,
        *,
        store: Store,
        changer: Changer,
        bus: Bus,
        caller: SiteCaller,
        observed: ObservedSites,
        metrics: HubMetrics,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Prepare; call before the bus runs.

        Args:
            store: the hub's database.
            changer: for the generation jump, which is audited.
            bus: the hub's connection in account FED.
            caller: sends commands.
            observed: remembers.
            metrics: counts verdicts and resyncs.
            clock: monotonic instants for the verdict.
            entropy: names of resyncs.
            log: gets changes of state.
        """
        self._store = store
        self._changer = changer
        self._caller = caller
        self._observed = observed
        self._metrics = metrics
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._inbox = bus.listen("hb.*", pending_max=_PENDING_MAX)
        self._tracks: dict[SiteId, SyncTrack] = {}
        self._wanted: dict[SiteId, tuple[int, str]] = {}
        self._refused: set[str] = set()
        self._resyncs: dict[SiteId, asyncio.Task[None]] = {}
        # Parts of two snapshots of one site must not mingle.
        self._locks: dict[SiteId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._gate = asyncio.Semaphore(_RESYNCS_AT_ONCE)

    async def run(self) -> None:
        """Hear until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._save_now_and_then(), name="save_heartbeats")
            while True:
                message = await self._inbox.next()
                try:
                    await self._hear(message, group.create_task)
                except Unavailable as error:
                    self._log.warning("heartbeat_not_judged", subject=message.subject, reason=error.message)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_PERIOD_S)
            heard = self._observed.take_unsaved()
            if heard:
                try:
                    await self._store.write(lambda c, heard=heard: save_heard(c, heard))  # type: ignore[misc]
                except Unavailable as error:
                    self._log.warning("heartbeats_not_saved", reason=error.message)

    async def _hear(self, message: BusMessage, spawn: Callable[..., asyncio.Task[None]]) -> None:
        heartbeat = self._decode(message)
        if heartbeat is None:
            return
        site = heartbeat.site
        generations = await self._store.read(read_live_generations)
        if site not in generations:
            self._metrics.heartbeats.labels("unknown_site").inc()
            return
        self._observed.note_heartbeat(heartbeat)
        self._metrics.applied_generation.labels(site).set(heartbeat.applied_generation)
        self._metrics.outbox_depth.labels(site).set(heartbeat.outbox_depth)
        wanted = self._wanted.get(site)
        if wanted is None or wanted[0] != generations[site]:
            wanted = await self._store.read(lambda c: read_wanted_hash(c, site))
            self._wanted[site] = wanted
        track, verdict = judge_heartbeat(
            self._tracks.get(site, SyncTrack()),
            now_s=ns_to_s(self._clock.monotonic_ns()),
            applied_generation=heartbeat.applied_generation,
            applied_hash=heartbeat.state_hash,
            wanted_generation=wanted[0],
            wanted_hash=wanted[1],
        )
        self._tracks[site] = track
        self._metrics.heartbeats.labels(verdict.value).inc()
        if verdict is Verdict.ABSURD:
            self._complain(message.subject, f"applied_generation {heartbeat.applied_generation} cannot be")
        elif verdict in (Verdict.RESYNC, Verdict.JUMP) and site not in self._resyncs:
            above = heartbeat.applied_generation if verdict is Verdict.JUMP else None
            task = spawn(self._bring_in_line(site, above), name=f"resync_{site}")
            self._resyncs[site] = task
            task.add_done_callback(lambda _: self._resyncs.pop(site, None))

    def _decode(self, message: BusMessage) -> Heartbeat | None:
        try:
            heartbeat = decode(message.data, Heartbeat)
            if heartbeat.site != site_of_subject(message.subject):
                raise Rejected(f"heartbeat names site {heartbeat.site[:40]!r}")
            check_site_name(heartbeat.site)
            _check_bounds(heartbeat)
        except Rejected as error:
            self._metrics.heartbeats.labels("refused").inc()
            self._complain(message.subject, error.message)
            return None
        return heartbeat

    def _complain(self, subject: str, reason: str) -> None:
        """Log once per subject; the counter says how often."""
        if subject not in self._refused and len(self._refused) < _PENDING_MAX:
            self._refused.add(subject)
            self._log.warning("heartbeat_refused", subject=subject, reason=reason)

    async def _bring_in_line(self, site: SiteId, above: int | None) -> None:
        async with self._gate:
            try:
                if above is not None:
                    await self._jump(site, above)
                generation = await self.resync(site)
            except (Unavailable, Rejected) as error:
                self._metrics.resyncs.labels("failed").inc()
                self._log.warning("resync_failed", site_id=site, reason=error.message)
            else:
                self._metrics.resyncs.labels("applied").inc()
                self._log.info("resync_applied", site_id=site, generation=generation)
        now_s = ns_to_s(self._clock.monotonic_ns())
        self._tracks[site] = note_resync(self._tracks.get(site, SyncTrack()), now_s)

    async def _jump(self, site: SiteId, above: int) -> None:
        def act(change: Change) -> int:
            generation = jump_generation(change.connection, site, above)
            change.audit("site.jump_generation", site, {"above": above, "generation": generation})
            return generation

        generation = await self._changer.run(act, actor=ACTOR_HUB)
        self._log.warning("generation_jumped", site_id=site, above=above, generation=generation)

    async def resync(self, site: SiteId, *, attempts: int = _PART_ATTEMPTS) -> int:
        """Send a site the whole of what it shall hold and return the generation it applied.

        Args:
            site: a live site.
            attempts: how often each part is sent before giving up; each waits up to 5 s.

        Raises:
            Unavailable: the site did not answer, or refused.
            Rejected: its answer was malformed.
        """
        async with self._locks[site]:
            return await self._resync(site, attempts)

    async def _resync(self, site: SiteId, attempts: int) -> int:
        (generation, _), items = await self._store.read(
            lambda c: (read_wanted_hash(c, site), read_items(c, site, is_live_only=True))
        )
        resync_id = self._entropy.token_bytes(8).hex()
        for part in make_resync_parts(site, resync_id, generation, items):
            await self._send_part(site, part, attempts)
        return generation

    async def _send_part(self, site: SiteId, part: ResyncPart, attempts: int) -> None:
        data = encode(part)
        for attempt in range(1, attempts + 1):
            try:
                reply = await self._caller.call(site, "resync", data, timeout_s=_PART_TIMEOUT_S)
            except Unavailable:
                if attempt == attempts:
                    raise
                continue
            if not reply.is_ok:
                raise Unavailable(f"site {site} refused the resync: {reply.code} {reply.message}"[:300])
            return


def _check_bounds(heartbeat: Heartbeat) -> None:
    """Raise Rejected for values that no site can mean and no column can hold."""
    if len(heartbeat.boot_id) > _TEXT_CHARS_MAX or len(heartbeat.state_hash) > _TEXT_CHARS_MAX:
        raise Rejected(f"heartbeat's boot_id and state_hash have at most {_TEXT_CHARS_MAX} characters")
    for name in ("seq", "applied_generation", "outbox_depth"):
        if not 0 <= getattr(heartbeat, name) <= _COUNT_MAX:
            raise Rejected(f"heartbeat's {name} is not in 0 to {_COUNT_MAX}")
