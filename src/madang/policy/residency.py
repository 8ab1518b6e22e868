"""Where a tenant's data may be served. Fail-closed: what is not understood is not allowed.

Owns the rule. Called by the gateway on every request and by the hub when it decides what a site may hold.
"""

from collections.abc import Iterable

from madang.core import SiteId
from madang.model import Residency, ResidencyScope, Site


def is_allowed(residency: Residency, site: Site) -> bool:
    """Return whether `site` may serve (parse, run, store) a request under `residency`."""
    scope = residency.scope
    if scope is ResidencyScope.ANY:
        return True
    if scope is ResidencyScope.NATION:
        return site.nation in residency.places
    if scope is ResidencyScope.REGION:
        return site.region in residency.places
    return scope in (ResidencyScope.SITE, ResidencyScope.SITES) and site.name in residency.places


def allowed_sites(residency: Residency, sites: Iterable[Site]) -> frozenset[SiteId]:
    """Return the names of the sites that may serve under `residency`."""
    return frozenset(site.name for site in sites if is_allowed(residency, site))
