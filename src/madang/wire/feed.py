"""The gateway's feed: two files that the site process writes and gateway workers read.

Owns their shape. Refuses to know how files are watched. Both are replaced by rename, so a reader sees a whole
version; a dead site process leaves the last one in place and stops nobody.

`snapshot` changes with desired state and survives restarts. `live` is rewritten several times a second with
engines, peers' digests and session keys; its mode is 0600, since it holds engine and session keys.
"""

import msgspec

from madang.core import Rejected, SiteId
from madang.model import (
    ApiKey,
    CatalogEntry,
    DataClass,
    KeyPolicy,
    PriorityClass,
    Project,
    ReplicaPhase,
    Service,
    Site,
    Tariff,
    Tenant,
)
from madang.wire.bus import ServiceLoad

SNAPSHOT_FILE = "snapshot.msgpack"
LIVE_FILE = "live.msgpack"
OWN_KID_PREFIX = "own:"
"""No epoch has a colon in its name, so no other site can offer a session under such a kid."""
LIVE_PERIOD_S = 0.25
"""How often the site process rewrites `live`."""


class GatewaySnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Applied desired state as a gateway needs it.

    Attributes:
        site: the site whose gateway this is.
        generation: applied generation.
        keys: every key of the federation.
        tenants: tenants whose residency allows this site (or grants transit through it).
        models: catalog entries that `services` name.
        projects, key_policies: of `tenants`.
        tariffs: every one, past ones too: what was begun under one is charged by it.
    """

    site: SiteId
    generation: int
    sites: tuple[Site, ...]
    keys: tuple[ApiKey, ...]
    tenants: tuple[Tenant, ...]
    services: tuple[Service, ...]
    models: tuple[CatalogEntry, ...]
    projects: tuple[Project, ...] = ()
    key_policies: tuple[KeyPolicy, ...] = ()
    tariffs: tuple[Tariff, ...] = ()
    version: int = 1


class LocalReplica(msgspec.Struct, frozen=True, kw_only=True):
    """An engine of this site that a gateway may call.

    Attributes:
        slot: index of its counter in the in-flight table, stable while the replica exists.
        features: words of EngineFeature.
        data_class_max: the highest class of data that the engine may see.
    """

    replica_id: str
    service: str
    phase: ReplicaPhase
    endpoint: str
    engine_key: str
    chip_kind: str
    slots: int
    slot: int
    features: tuple[str, ...] = ()
    data_class_max: DataClass = DataClass.CLASSIFIED


class PeerSession(msgspec.Struct, frozen=True, kw_only=True):
    """A MAC key that this site and a peer both derived.

    Attributes:
        kid: `<our epoch>/<their epoch>` in alphabetical order of site name, the same on both sides.
        key: 32 bytes.
        expires_at_s: wall time.
    """

    kid: str
    key: bytes
    expires_at_s: float


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another site as this one sees it now.

    Attributes:
        url: where its peer port is reached from here, `http://host:port`.
        digest_age_s: age of its newest digest when `live` was written; infinite is written as -1.
        sessions: newest first; sign with the first, accept any.
        shed_from, is_spilling: of its envelope, as its newest digest says.
        round_trip_s: to its peer port and back, measured by the site process; negative where that is not known.
        is_link_encrypted: this site's operator says that the way there is encrypted below HTTP, as by a VPN.
    """

    site: SiteId
    url: str
    digest_age_s: float
    services: tuple[ServiceLoad, ...]
    sessions: tuple[PeerSession, ...]
    round_trip_s: float = -1.0
    is_link_encrypted: bool = False
    shed_from: PriorityClass | None = None
    is_spilling: bool = False


class GatewayLive(msgspec.Struct, frozen=True, kw_only=True):
    """What changes by the second.

    Attributes:
        written_ns: monotonic instant at the writer; all processes of one machine share that clock.
        boot_id: of the site process.
        own_sessions: of the site process with its own gateway; kids begin with OWN_KID_PREFIX.
        admission_closed_reason: when not empty, workers refuse new requests with this reason.
        shed_from: the site's envelope: no request of this class or a less urgent one is served here; None: all are.
        is_spilling: power or cooling are short here, so peers come first.
        envelope_reason: why, for people.
        envelope_until_ns: monotonic instant at which the envelope runs out, and `batch` is shed; 0 without one.
    """

    written_ns: int
    boot_id: str
    replicas: tuple[LocalReplica, ...]
    peers: tuple[Peer, ...]
    admission_closed_reason: str = ""
    own_sessions: tuple[PeerSession, ...] = ()
    shed_from: PriorityClass | None = None
    is_spilling: bool = False
    envelope_reason: str = ""
    envelope_until_ns: int = 0
    version: int = 1


_encoder = msgspec.msgpack.Encoder()


def encode_feed(value: GatewaySnapshot | GatewayLive) -> bytes:
    """Return the bytes of a feed file."""
    return _encoder.encode(value)


def decode_snapshot(data: bytes) -> GatewaySnapshot:
    """Return the snapshot in `data`; raises Rejected when it is not one."""
    try:
        return msgspec.msgpack.decode(data, type=GatewaySnapshot)
    except msgspec.MsgspecError as error:
        raise Rejected(f"gateway snapshot is malformed: {error}") from error


def decode_live(data: bytes) -> GatewayLive:
    """Return the live feed in `data`; raises Rejected when it is not one."""
    try:
        return msgspec.msgpack.decode(data, type=GatewayLive)
    except msgspec.MsgspecError as error:
        raise Rejected(f"gateway live feed is malformed: {error}") from error
