"""Which of the legal sites is nearest to a client, as far as anybody can know.

Owns the order. Refuses to judge what is legal: only legal sites come in. Called by the gateway for `GET /v1/sites` and
for redirects, and by `madang site nearest` with round trips that the client's own machine measured.

A gateway cannot measure a client's way to another site. So what the client says of itself counts first: names of sites
or regions, nearest first. Where it says nothing, the gateway's own round trips stand in for the client's: true for a
client beside the gateway, a guess for any other.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from madang.core import SiteId

NEAR_MAX = 16
"""Names that a client may give; more is nobody's neighbourhood."""


class SiteHealth(StrEnum):
    """What the site that is asked knows of another."""

    READY = "ready"
    """Heard of late, and some engine is ready."""
    EMPTY = "empty"
    """Heard of late, and no engine is ready."""
    SILENT = "silent"
    """Not heard of late: gone, or only cut off from here."""


_HEALTH_ORDER = {SiteHealth.READY: 0, SiteHealth.SILENT: 1, SiteHealth.EMPTY: 2}


class LegalSite(msgspec.Struct, frozen=True, kw_only=True):
    """A site that may serve the client's tenant.

    Attributes:
        url: where tenants reach it.
        round_trip_s: seconds from whoever measured it; 0 for the site that is asked, None where nobody measured.
    """

    name: SiteId
    region: str
    url: str
    health: SiteHealth
    is_here: bool = False
    round_trip_s: float | None = None


def rank_sites(sites: Iterable[LegalSite], near: Sequence[str]) -> list[LegalSite]:
    """Return sites, the best first: health, then what the client named first, then the round trip, then the name.

    Args:
        sites: the legal ones.
        near: names of sites and regions, nearest first; those that nobody has mean nothing.
    """
    places = {name: index for index, name in reversed(list(enumerate(near[:NEAR_MAX])))}

    def rank(site: LegalSite) -> tuple[int, int, float, str]:
        named = min(places.get(site.name, NEAR_MAX), places.get(site.region, NEAR_MAX))
        round_trip_s = float("inf") if site.round_trip_s is None else site.round_trip_s
        return _HEALTH_ORDER[site.health], named, round_trip_s, site.name

    return sorted(sites, key=rank)


def choose_redirect(ranked: Sequence[LegalSite]) -> LegalSite | None:
    """Return where a client is sent: the first that can be reached by a URL and is not known to be without engines."""
    for site in ranked:
        if site.url and site.health is not SiteHealth.EMPTY:
            return site
    return None
