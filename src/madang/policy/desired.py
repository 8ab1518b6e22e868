"""What each site shall hold of the federation's desired state, and what has to be sent to get there.

Owns the choice of who gets what (residency decides about tenants), the difference between two states, and the
verdict on a heartbeat. Refuses to know SQL and the bus: facts and digests come in, keys of items go out. Called
by the hub in the transaction that changes a fact, and on every heartbeat.

Every item depends on its own fact, on the tenant that the fact names and on the sites, never on other items. So
planning a few facts against all sites gives exactly those items of the whole plan, and a change need not plan
everything again.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from madang.core import ServiceName, SiteId, TenantId
from madang.model import (
    ApiKey,
    Assignment,
    CatalogEntry,
    KeyPolicy,
    Project,
    Service,
    Site,
    Tariff,
    Tenant,
)
from madang.policy.residency import is_allowed, may_pass_through

KIND_SITE = "site"
KIND_TENANT = "tenant"
KIND_KEY = "key"
KIND_SERVICE = "service"
KIND_MODEL = "model"
KIND_ASSIGNMENT = "assignment"
KIND_PROJECT = "project"
KIND_KEY_POLICY = "key_policy"
KIND_TARIFF = "tariff"
KINDS = (
    KIND_SITE,
    KIND_TENANT,
    KIND_KEY,
    KIND_SERVICE,
    KIND_MODEL,
    KIND_ASSIGNMENT,
    KIND_PROJECT,
    KIND_KEY_POLICY,
    KIND_TARIFF,
)

ItemKey = tuple[str, str]
"""Kind and id of an item, unique within a site."""
Fact = Site | Tenant | ApiKey | Service | CatalogEntry | Assignment | Project | KeyPolicy | Tariff

STILL_HEARTBEATS_MAX = 2
MOVING_S_MAX = 10.0
"""A difference is repaired when so many heartbeats in a row show the same state, or when the state has moved for so
long without reaching a newer generation; pulls need a moment."""
RESYNC_BACKOFF_S_MAX = 60.0
GENERATION_JUMP_MAX = 1_000_000_000
"""A site that claims to be further ahead than this is wrong; following it could run the counter out."""


class HubFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts to plan from; may be a part, see the module's text.

    Attributes:
        sites: every live site, always all of them.
        tenants: includes, for every service, project and policy planned, the tenants it names.
        placed: assignments that are live now; a cordoned site keeps what it has and gets nothing new.
    """

    sites: tuple[Site, ...]
    tenants: tuple[Tenant, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    services: tuple[Service, ...] = ()
    models: tuple[CatalogEntry, ...] = ()
    projects: tuple[Project, ...] = ()
    key_policies: tuple[KeyPolicy, ...] = ()
    tariffs: tuple[Tariff, ...] = ()
    placed: frozenset[tuple[ServiceName, SiteId]] = frozenset()


def plan_desired(facts: HubFacts) -> dict[SiteId, dict[ItemKey, Fact]]:
    """Return the items of every site; costs facts times sites."""
    everywhere: dict[ItemKey, Fact] = {(KIND_SITE, site.name): site for site in facts.sites}
    everywhere |= {(KIND_KEY, key.key_id): key for key in facts.keys}
    everywhere |= {(KIND_SERVICE, service.name): service for service in facts.services}
    everywhere |= {(KIND_MODEL, model.name): model for model in facts.models}
    everywhere |= {(KIND_TARIFF, tariff.tariff_id): tariff for tariff in facts.tariffs}
    plan: dict[SiteId, dict[ItemKey, Fact]] = {}
    tenants = {tenant.tenant_id: tenant for tenant in facts.tenants}
    for site in facts.sites:
        items = dict(everywhere)
        held = {name: tenant for name, tenant in tenants.items() if may_hold_tenant(tenant, site)}
        items |= {(KIND_TENANT, name): tenant for name, tenant in held.items()}
        items |= {(KIND_PROJECT, one.project_id): one for one in facts.projects if one.tenant_id in held}
        items |= {(KIND_KEY_POLICY, one.key_id): one for one in facts.key_policies if one.tenant_id in held}
        for service in facts.services:
            is_placed = (service.name, site.name) in facts.placed
            if is_assigned(service, site, tenants, is_placed=is_placed):
                items[(KIND_ASSIGNMENT, service.name)] = Assignment(
                    service=service.name, replicas=service.replicas_per_site
                )
        plan[site.name] = items
    return plan


def may_hold_tenant(tenant: Tenant, site: Site) -> bool:
    """Return whether a site may know a tenant: it may serve it, or pass its requests through unread."""
    residency, data_class = tenant.residency, tenant.data_class
    return is_allowed(residency, data_class, site) or may_pass_through(residency, data_class, site)


def is_assigned(service: Service, site: Site, tenants: Mapping[TenantId, Tenant], *, is_placed: bool) -> bool:
    """Return whether `site` shall run `service`.

    A service for named tenants runs only where at least one of them may be served: anywhere else it could never
    get a request. Sites that the service names itself are taken at their word.
    """
    if site.is_entry_only or service.replicas_per_site < 1:
        return False
    if site.is_cordoned and not is_placed:
        return False
    if service.sites:
        return site.name in service.sites
    if not service.tenants:
        return True
    named = [tenants[name] for name in service.tenants if name in tenants]
    return any(is_allowed(tenant.residency, tenant.data_class, site) for tenant in named)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What changes from one state to another; `generation` is the one in which it does."""

    generation: int
    changed: tuple[ItemKey, ...]
    removed: tuple[ItemKey, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


def diff_desired(current: Mapping[ItemKey, str | None], wanted: Mapping[ItemKey, str], generation: int) -> Difference:
    """Return what turns `current` into `wanted`, in order of key; the generation rises only if something does.

    Args:
        current: digest of every item held, None for a tombstone.
        wanted: digest of every item wanted.
        generation: the site's generation now.
    """
    changed = tuple(sorted(key for key, digest in wanted.items() if current.get(key) != digest))
    removed = tuple(sorted(key for key, digest in current.items() if digest is not None and key not in wanted))
    is_different = bool(changed or removed)
    return Difference(generation=generation + is_different, changed=changed, removed=removed)


class Verdict(StrEnum):
    """What a heartbeat calls for."""

    IN_SYNC = "in_sync"
    WAIT = "wait"
    RESYNC = "resync"
    JUMP = "jump"
    """The site is ahead of the hub, whose database is an older copy: raise the hub's generation above it."""
    ABSURD = "absurd"


class SyncTrack(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub remembers of a site between heartbeats.

    Attributes:
        differs_since_s: monotonic instant since which the site differs without a newer generation; None when it
            does not differ.
        still_heartbeats: heartbeats in a row that showed the same wrong state.
        applied_generation: of the last heartbeat.
        applied_hash: of the last heartbeat.
        resyncs: orders since the site was last in sync.
        resync_after_s: monotonic instant before which no further order is given.
    """

    differs_since_s: float | None = None
    still_heartbeats: int = 0
    applied_generation: int = -1
    applied_hash: str = ""
    resyncs: int = 0
    resync_after_s: float = 0.0


def judge_heartbeat(
    track: SyncTrack,
    *,
    now_s: float,
    applied_generation: int,
    applied_hash: str,
    wanted_generation: int,
    wanted_hash: str,
) -> tuple[SyncTrack, Verdict]:
    """Return the next track and what to do about a heartbeat.

    Args:
        track: what was remembered.
        now_s: monotonic instant, seconds.
        applied_generation: what the site says it applied.
        applied_hash: its hash over what it holds.
        wanted_generation: the hub's generation for that site.
        wanted_hash: the hub's hash over what the site shall hold.
    """
    if applied_generation > wanted_generation + GENERATION_JUMP_MAX:
        return track, Verdict.ABSURD
    if applied_generation > wanted_generation:
        return msgspec.structs.replace(track, applied_generation=applied_generation), Verdict.JUMP
    if applied_hash == wanted_hash:
        return SyncTrack(applied_generation=applied_generation, applied_hash=applied_hash), Verdict.IN_SYNC
    has_advanced = applied_generation > track.applied_generation
    since_s = now_s if track.differs_since_s is None or has_advanced else track.differs_since_s
    is_still = not has_advanced and applied_hash == track.applied_hash and track.differs_since_s is not None
    track = msgspec.structs.replace(
        track,
        differs_since_s=since_s,
        still_heartbeats=track.still_heartbeats + 1 if is_still else 1,
        applied_generation=applied_generation,
        applied_hash=applied_hash,
    )
    is_stuck = track.still_heartbeats >= STILL_HEARTBEATS_MAX or now_s - since_s >= MOVING_S_MAX
    if not is_stuck or now_s < track.resync_after_s:
        return track, Verdict.WAIT
    return track, Verdict.RESYNC


def note_resync(track: SyncTrack, now_s: float) -> SyncTrack:
    """Return the track after an order was given: the next waits twice as long, up to a minute."""
    delay_s = min(RESYNC_BACKOFF_S_MAX, 2.0 * 2 ** min(track.resyncs, 10))
    return msgspec.structs.replace(
        track, resyncs=track.resyncs + 1, resync_after_s=now_s + delay_s, differs_since_s=None, still_heartbeats=0
    )
