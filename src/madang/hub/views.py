"""What the admin API shows of sites: shapes, and how they are put together.

Owns both. Refuses to know HTTP.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import SiteId
from madang.hub.desired_store import read_live_generations, read_sites, read_wanted_hash
from madang.hub.ledger import LedgerTotals
from madang.hub.observed import ObservedSites, SiteState
from madang.model import DataClass, Site


class SiteView(msgspec.Struct, frozen=True, kw_only=True):
    """A site as the hub sees it.

    Attributes:
        state: by the age of its last heartbeat.
        heartbeat_age_s: None when none was ever heard.
        desired_generation: what the hub wants.
        applied_generation: what the site said it applied.
        in_sync: whether it said it holds exactly what the hub wants.
        outbox_depth: usage events that it has not delivered.
        oldest_unsent_age_s: age of the oldest of them.
    """

    name: str
    region: str
    nation: str
    tenant_url: str
    peer_url: str
    artifact_url: str
    identity_ed25519: str
    is_entry_only: bool
    is_cordoned: bool
    data_class_max: DataClass
    state: SiteState
    heartbeat_age_s: float | None
    desired_generation: int
    applied_generation: int | None
    in_sync: bool
    outbox_depth: int | None
    oldest_unsent_age_s: float | None


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole federation on one page."""

    version: str
    sites: tuple[SiteView, ...]
    ledger: LedgerTotals


SiteWanted = tuple[Site, int, str]
"""A site, its generation, and the hash over what it shall hold."""


def read_wanted(connection: sa.Connection) -> list[SiteWanted]:
    """Return every live site with what it shall hold, from one snapshot."""
    generations = read_live_generations(connection)
    return [
        (site, generations.get(site.name, 0), read_wanted_hash(connection, site.name)[1])
        for site in read_sites(connection)
    ]


def view_site(wanted: SiteWanted, observed: ObservedSites) -> SiteView:
    """Return one site's view."""
    site, generation, digest = wanted
    heard = observed.heard(site.name)
    heartbeat = heard.heartbeat if heard is not None else None
    age_s = observed.age_s(site.name)
    facts: dict[str, Any] = msgspec.structs.asdict(site)
    return SiteView(
        **facts,
        state=observed.state(SiteId(site.name)),
        heartbeat_age_s=None if age_s is None else round(age_s, 3),
        desired_generation=generation,
        applied_generation=heartbeat.applied_generation if heartbeat else None,
        in_sync=heartbeat is not None and heartbeat.state_hash == digest,
        outbox_depth=heartbeat.outbox_depth if heartbeat else None,
        oldest_unsent_age_s=heartbeat.oldest_unsent_age_s if heartbeat else None,
    )
