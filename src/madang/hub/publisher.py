"""Sends desired state from SQL to the bucket `desired`.

It works by level: what the bucket lacks is sent, what it has too much is removed, whoever changed either. Owns the
bucket's content and the sites' consumers. Refuses to decide what a site shall hold. It remembers a digest of every
item in the bucket; where the bucket came from is checked every few seconds, and when it was made anew or somebody
else wrote to it, it is read again.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from madang.core import Clock, SiteId, Unavailable
from madang.hub.desired_store import drop_old_tombstones, read_items, read_live_generations
from madang.hub.jetstream import JetStream, StreamState
from madang.hub.metrics import HubMetrics
from madang.hub.streams import DESIRED_SUBJECTS, desired_consumer, desired_stream, desired_subjects_of
from madang.hub.trouble import Trouble
from madang.runtime.bus import Bus
from madang.runtime.nats import DESIRED_STREAM
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.wire.bus import desired_subject, encode

TICK_S = 2.0
_CONSUMERS_CHECK_TICKS = 30
_TOMBSTONES_CHECK_TICKS = 1800
_IN_FLIGHT_MAX = 64
_RETRY_S = 1.0
_DIGEST_BYTES = 16
_PULL_PENDING_MAX = 1024


class Publisher:
    """Keeps the bucket and the sites' consumers as SQL says."""

    def __init__(
        self, *, store: Store, bus: Bus, jetstream: JetStream, metrics: HubMetrics, clock: Clock, log: EventLog
    ) -> None:
        """Prepare; call before the bus runs.

        Args:
            store: the hub's database.
            bus: the hub's connection in account FED.
            jetstream: JetStream on that connection.
            metrics: counts items and shows generations.
            clock: wall time for tombstones.
            log: gets changes of state.
        """
        self._store = store
        self._bus = bus
        self._jetstream = jetstream
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._pull = jetstream.listen("bucket", pending_max=_PULL_PENDING_MAX)
        self._woken = asyncio.Event()
        self._bucket: StreamState | None = None
        self._held: dict[SiteId, dict[str, bytes]] = defaultdict(dict)
        self._published: dict[SiteId, int] = {}
        self._consumers: set[str] = set()
        self._ticks = 0
        self._trouble = Trouble(log, failed="desired_not_published", works="desired_published")

    @property
    def problem(self) -> str:
        """Return why the bucket may not hold what SQL wants, empty when it was seen to."""
        return self._trouble.reason

    def wake(self) -> None:
        """Look now: something was committed."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        is_tick = True
        while True:
            await self._bus.wait_connected()
            self._woken.clear()
            wait_s = TICK_S
            try:
                await self._reconcile(is_tick=is_tick)
                self._trouble.note_success()
            except Unavailable as error:
                self._trouble.note_failure(str(error))
                # What was sent and not confirmed may be there or not: only reading tells.
                self._bucket = None
                wait_s = _RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
                is_tick = not self._trouble.is_working
            except TimeoutError:
                is_tick = True

    async def _reconcile(self, *, is_tick: bool) -> None:
        state = await self._check_bucket() if is_tick or self._bucket is None else None
        generations = await self._store.read(read_live_generations)
        await self._drop_other_sites(set(generations))
        for site, generation in generations.items():
            if self._published.get(site) != generation:
                await self._publish_site(site)
                self._published[site] = generation
                self._metrics.desired_generation.labels(site).set(generation)
            if site not in self._consumers:
                await self._jetstream.ensure_consumer(DESIRED_STREAM, desired_consumer(site))
                self._consumers.add(site)
        if state is not None:
            await self._do_chores(set(generations), state.consumers)

    async def _check_bucket(self) -> StreamState:
        """Return the bucket's state, having read it again unless it is the one that we alone wrote to."""
        state = await self._jetstream.ensure_stream(desired_stream())
        known = self._bucket
        if known is not None and (state.created, state.last_seq, state.messages) == (
            known.created,
            known.last_seq,
            sum(len(items) for items in self._held.values()),
        ):
            return state
        if known is not None:
            self._log.warning("bucket_changed_by_others", is_new=state.created != known.created)
        self._held.clear()
        self._published.clear()
        self._consumers.clear()
        async for message in self._jetstream.read_last(self._pull, DESIRED_STREAM, DESIRED_SUBJECTS):
            site = SiteId(message.subject.split(".", 3)[2])
            self._held[site][message.subject] = _digest(message.data)
        self._bucket = state
        return state

    async def _publish_site(self, site: SiteId) -> None:
        """Send what the bucket lacks of a site; the whole site is compared when it was not seen before."""
        known = self._published.get(site)
        # A hub that followed a site upwards, or a restored database, may have changed older generations too.
        items = await self._store.read(lambda c: read_items(c, site, after=-1 if known is None else known))
        held = self._held[site]
        payloads = {desired_subject(site, item.kind, item.item_id): encode(item) for item in items}
        await self._send([(subject, data) for subject, data in payloads.items() if held.get(subject) != _digest(data)])
        if known is None:
            for subject in sorted(set(held) - set(payloads)):
                await self._jetstream.purge(DESIRED_STREAM, subject)
                del held[subject]

    async def _send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Publish in order, a bounded number at a time, each confirmed."""
        for start in range(0, len(messages), _IN_FLIGHT_MAX):
            group = messages[start : start + _IN_FLIGHT_MAX]
            results = await asyncio.gather(
                *(self._jetstream.publish(subject, data) for subject, data in group), return_exceptions=True
            )
            for (subject, data), result in zip(group, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                self._note_sent(subject, data, result)
            self._metrics.items_published.inc(len(group))

    def _note_sent(self, subject: str, data: bytes, seq: int) -> None:
        self._held[SiteId(subject.split(".", 3)[2])][subject] = _digest(data)
        assert self._bucket is not None
        self._bucket = msgspec.structs.replace(self._bucket, last_seq=max(self._bucket.last_seq, seq))

    async def _drop_other_sites(self, sites: set[SiteId]) -> None:
        """Remove what the bucket holds for sites that are no longer, and their consumers."""
        for site in sorted(set(self._held) - sites):
            for subject in (desired_subjects_of(site), desired_subjects_of(site).removesuffix(".>")):
                await self._jetstream.purge(DESIRED_STREAM, subject)
            del self._held[site]
            self._published.pop(site, None)
        for name in sorted(self._consumers - sites):
            await self._jetstream.delete_consumer(DESIRED_STREAM, name)
            self._consumers.discard(name)

    async def _do_chores(self, sites: set[SiteId], consumers: int) -> None:
        if consumers != len(sites) or self._ticks % _CONSUMERS_CHECK_TICKS == 0:
            names = await self._jetstream.consumer_names(DESIRED_STREAM)
            for site in sorted(sites - names):
                await self._jetstream.ensure_consumer(DESIRED_STREAM, desired_consumer(site))
            for name in sorted(name for name in names - sites if name == name.lower()):
                await self._jetstream.delete_consumer(DESIRED_STREAM, name)
        if self._ticks % _TOMBSTONES_CHECK_TICKS == 0:
            now_s = self._clock.wall_s()
            if await self._store.write(lambda c: drop_old_tombstones(c, now_s)):
                self._published.clear()
        self._ticks += 1


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
