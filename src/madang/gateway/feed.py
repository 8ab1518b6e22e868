"""The gateway's view of its site: the feed files, read when they change and indexed for one look-up per request.

Owns the watch on `snapshot` and `live` and the indexes over them. Refuses to change anything. A file that cannot be
read leaves the last good version in place, said once in the log; a dead site process therefore stops nobody.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from madang.core import Clock, KeyId, ProjectId, Rejected, SiteId, TenantId, ns_to_s
from madang.gateway.target import Target, parse_target
from madang.model import (
    ApiKey,
    CatalogEntry,
    DataClass,
    EngineFeature,
    KeyPolicy,
    Project,
    ReplicaPhase,
    Residency,
    Service,
    Site,
    Task,
    Tenant,
)
from madang.policy.links import most_over_link
from madang.policy.pricing import PriceBook
from madang.policy.routing import PeerChoice
from madang.runtime.telemetry import EventLog
from madang.wire.bus import ServiceLoad
from madang.wire.feed import (
    LIVE_FILE,
    SNAPSHOT_FILE,
    GatewayLive,
    GatewaySnapshot,
    LocalReplica,
    Peer,
    PeerSession,
    decode_live,
    decode_snapshot,
)

POLL_PERIOD_S = 0.075
FEED_BYTES_MAX = 256 * 1024 * 1024
FEED_STALE_AFTER_S = 2.0
"""Eight periods of the live feed: the site process is not running, which is said and changes nothing else."""

OWN = SiteId("")
"""No site has this name."""

T = TypeVar("T")


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's key that was accepted here.

    Attributes:
        project_id: whose budget it uses; empty where that is not known.
        is_transit: this site may only pass the request on, unread.
        is_barred: this site may not even do that; all it may do is to say where else to go.
        is_redirect_wanted: the tenant would rather be sent to the nearest legal site than served through an entry.
        expires_at_s: when the key does, wall time; None means never.
    """

    key_id: KeyId
    tenant_id: TenantId
    residency: Residency
    data_class: DataClass
    is_transit: bool = False
    project_id: ProjectId = ProjectId("")
    is_barred: bool = False
    is_redirect_wanted: bool = False
    expires_at_s: float | None = None


class Desired:
    """Applied desired state, indexed. Immutable once made."""

    def __init__(self, snapshot: GatewaySnapshot) -> None:
        """Index a snapshot.

        Attributes:
            site: this site, None when the snapshot does not hold it: then nothing is legal here.
            keys_by_sha256: by raw digest.
            key_policies: by key.
            prices: every tariff.
            callers: keys that were used here, by raw digest, with what follows for each; worked out when first used.
            narrowed: what keys with sites of their own may use, each worked out when it is first used.
        """
        self.generation = snapshot.generation
        self.site_name: SiteId = snapshot.site
        self.sites: dict[SiteId, Site] = {site.name: site for site in snapshot.sites}
        self.site: Site | None = self.sites.get(snapshot.site)
        self.keys_by_sha256: dict[bytes, ApiKey] = {bytes.fromhex(key.sha256): key for key in snapshot.keys}
        self.keys_by_id: dict[KeyId, ApiKey] = {key.key_id: key for key in snapshot.keys}
        self.tenants: dict[TenantId, Tenant] = {tenant.tenant_id: tenant for tenant in snapshot.tenants}
        self.services: dict[str, Service] = {service.name: service for service in snapshot.services}
        self.models: dict[str, CatalogEntry] = {model.name: model for model in snapshot.models}
        self.projects: dict[ProjectId, Project] = {project.project_id: project for project in snapshot.projects}
        self.key_policies: dict[KeyId, KeyPolicy] = {policy.key_id: policy for policy in snapshot.key_policies}
        self.prices = PriceBook(snapshot.tariffs)
        self.narrowed: dict[KeyId, Residency] = {}
        self.callers: dict[bytes, Caller] = {}

    def model_of(self, service: Service) -> CatalogEntry | None:
        """Return a service's catalog entry, None when it is not here."""
        return self.models.get(service.model)

    def task_of(self, service: Service) -> Task | None:
        """Return what a service's model does, or None when the catalog entry is not here."""
        model = self.models.get(service.model)
        return None if model is None else model.task

    def version_of(self, service: Service) -> str:
        """Return what clients of the Open Inference Protocol call a service's model by."""
        model = self.models.get(service.model)
        return "1" if model is None else model.version


class LivePeer(NamedTuple):
    """A peer whose address was understood."""

    peer: Peer
    target: Target


class LiveReplica(NamedTuple):
    """A replica whose address was understood, and what of its features is asked for with each request."""

    replica: LocalReplica
    target: Target
    has_unstreamed_abort: bool = False


def make_live_replica(replica: LocalReplica, target: Target) -> LiveReplica:
    """Return a replica with its features looked up."""
    return LiveReplica(replica, target, EngineFeature.UNSTREAMED_ABORT in replica.features)


class Live:
    """Engines, peers and sessions, indexed. Immutable once made."""

    def __init__(self, live: GatewayLive) -> None:
        """Index a live feed; an entry whose address is malformed is left out, its neighbours are not.

        Attributes:
            replicas: ready ones by service.
            sessions: peer and session by kid; OWN stands for the site process itself.
            choices: peers by service, for routing; under the empty name, by whatever they serve.
            links: by peer, the highest class of data that the way to it may carry.
        """
        self.written_ns = live.written_ns
        self.admission_closed_reason = live.admission_closed_reason
        self.shed_from = live.shed_from
        self.is_spilling = live.is_spilling
        self.envelope_reason = live.envelope_reason
        self.envelope_until_ns = live.envelope_until_ns
        self.replicas: dict[str, tuple[LiveReplica, ...]] = {}
        self.replicas_by_id: dict[str, LiveReplica] = {}
        self.peers: dict[SiteId, LivePeer] = {}
        self.sessions: dict[str, tuple[SiteId, PeerSession]] = {}
        self.choices: dict[str, tuple[PeerChoice, ...]] = {}
        self.links: dict[SiteId, DataClass] = {}
        for replica in live.replicas:
            target = _target(replica.endpoint)
            if replica.phase is ReplicaPhase.READY and target is not None:
                known = self.replicas.get(replica.service, ())
                self.replicas_by_id[replica.replica_id] = made = make_live_replica(replica, target)
                self.replicas[replica.service] = (*known, made)
        for peer in live.peers:
            target = _target(peer.url)
            if target is None:
                continue
            self.peers[peer.site] = LivePeer(peer, target)
            self.links[peer.site] = most_over_link(
                is_tls=target.is_secure, host=target.host, is_encrypted=peer.is_link_encrypted
            )
            for session in peer.sessions:
                self.sessions[session.kid] = peer.site, session
            if peer.sessions:  # without one no pass can be signed
                self._offer(peer)

        for session in live.own_sessions:
            self.sessions[session.kid] = OWN, session

    def _offer(self, peer: Peer) -> None:
        """Add a peer to the choices of each service it serves, and to those of a request that may not be read."""
        every = ServiceLoad(service="", replicas_ready=0, slots=0, in_flight=0)
        for load in peer.services:
            every = ServiceLoad(
                service="",
                replicas_ready=every.replicas_ready + load.replicas_ready,
                slots=every.slots + load.slots,
                in_flight=every.in_flight + load.in_flight,
            )
        for load in (*peer.services, every):
            choice = PeerChoice(
                peer.site,
                peer.digest_age_s,
                load.replicas_ready,
                load.slots,
                load.in_flight,
                data_class_max=self.links[peer.site],
                shed_from=peer.shed_from,
                is_spilling=peer.is_spilling,
            )
            self.choices[load.service] = (*self.choices.get(load.service, ()), choice)


def _target(url: str) -> Target | None:
    try:
        return parse_target(url)
    except ValueError:
        return None


class FeedWatcher:
    """Keeps `desired` and `live` as new as the files are."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, clock: Clock, log: EventLog) -> None:
        """Make a watcher; `start` begins to look.

        Attributes:
            desired, live: newest good versions; None before the first.
            on_change: called after either changed.
        """
        self.desired: Desired | None = None
        self.live: Live | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._loop = loop
        self._clock = clock
        self._log = log
        self._snapshot_file = _Watched(folder / SNAPSHOT_FILE)
        self._live_file = _Watched(folder / LIVE_FILE)
        self._is_stale = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to serve from."""
        return self.desired is not None and self.live is not None

    def age_s(self) -> float | None:
        """Return how long ago the site process wrote `live`, in seconds."""
        return None if self.live is None else ns_to_s(self._clock.monotonic_ns() - self.live.written_ns)

    def start(self) -> None:
        """Look now and every POLL_PERIOD_S from now on."""
        self.poll()
        self._timer = self._loop.call_later(POLL_PERIOD_S, self.start)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def poll(self) -> None:
        """Read what has changed; two stat calls when nothing has."""
        desired = self._read(self._snapshot_file, lambda data: Desired(decode_snapshot(data)))
        live = self._read(self._live_file, lambda data: Live(decode_live(data)))
        if desired is not None:
            self.desired = desired
        if live is not None:
            self.live = live
        if desired is not None or live is not None:
            self.on_change()
        self._note_age()

    def _read(self, watched: "_Watched", index: Callable[[bytes], T]) -> T | None:
        try:
            data = watched.read_if_changed()
            value = None if data is None else index(data)
        except (Rejected, OSError, ValueError) as error:
            if not watched.is_broken:
                watched.is_broken = True
                self._log.error("gateway_feed_unreadable", path=str(watched.path), reason=str(error))
            return None
        if value is not None and watched.is_broken:
            watched.is_broken = False
            self._log.info("gateway_feed_readable", path=str(watched.path))
        return value

    def _note_age(self) -> None:
        age_s = self.age_s()
        if age_s is None or (age_s > FEED_STALE_AFTER_S) is self._is_stale:
            return
        self._is_stale = not self._is_stale
        if self._is_stale:
            self._log.warning("gateway_feed_stale", age_s=round(age_s, 1))
        else:
            self._log.info("gateway_feed_fresh")


class _Watched:
    """One file and the version of it that was read last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_broken = False
        self._seen: tuple[int, int, int] | None = None

    def read_if_changed(self) -> bytes | None:
        """Return the content when the file is another one than last time; None when it is the same or missing."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen == self._seen:
            return None
        self._seen = seen
        if status.st_size > FEED_BYTES_MAX:
            raise Rejected(f"the file has {status.st_size} bytes, over {FEED_BYTES_MAX}")
        return self.path.read_bytes()


def service_of(desired: Desired, name: str, tenant_id: TenantId, key_id: KeyId) -> Service | None:
    """Return the service of that name if tenant and key may use it; what they may not use does not exist for them."""
    service = desired.services.get(name)
    if service is None or (service.tenants and tenant_id not in service.tenants):
        return None
    policy = desired.key_policies.get(key_id)
    return None if policy is not None and policy.services and name not in policy.services else service
