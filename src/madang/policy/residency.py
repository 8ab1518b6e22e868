"""Where a tenant's data may be served, passed through and kept. Fail-closed: what is not understood is not allowed.

Owns the rule: a scope says where, the class of the data (open, sensitive, classified: the grades of the Korean N2SF)
narrows that, and nothing widens it; there is no argument by which an emergency could. Called by the gateway for every
candidate of every attempt, by the hub when it decides what a site may hold, and by the site before it keeps a file.

The classes, as docs/adr/0023 has them:

* `open`: the scope as it is.
* `sensitive`: only sites of HOME_NATION that are marked for it; passes unread only through such sites, where granted.
* `classified`: only sites of HOME_NATION that are marked for it; never passes through another site.
"""

from collections.abc import Iterable, Mapping

import msgspec

from madang.core import SiteId
from madang.model import DataClass, Residency, ResidencyScope, Site

HOME_NATION = "kr"
"""The grades are Korean law: what bears one above open stays in Korea, whatever the scope says."""

# Judged for every candidate of every attempt, so by identity: an enumeration's members are dear to look up and to hash.
_OPEN, _SENSITIVE, _CLASSIFIED = DataClass.OPEN, DataClass.SENSITIVE, DataClass.CLASSIFIED
_SITE, _SITES, _REGION = ResidencyScope.SITE, ResidencyScope.SITES, ResidencyScope.REGION
_NATION, _ANY = ResidencyScope.NATION, ResidencyScope.ANY
_RANKS = {_OPEN: 0, _SENSITIVE: 1, _CLASSIFIED: 2}


class Handling(msgspec.Struct, frozen=True, kw_only=True):
    """What may be done with the requests of a class, beside serving them.

    Attributes:
        is_transit_possible: a site that may not serve may pass the body on, unread, where the tenant grants it.
        is_cache_shared: engines may keep prefixes that other tenants' requests then meet.
        is_debug_sampled: its requests may appear in a sampled debug log, which never holds content.
        is_every_access_recorded: each request leaves an access record; none is sampled away.
    """

    is_transit_possible: bool
    is_cache_shared: bool
    is_debug_sampled: bool
    is_every_access_recorded: bool


HANDLING: Mapping[DataClass, Handling] = {
    DataClass.OPEN: Handling(
        is_transit_possible=True, is_cache_shared=True, is_debug_sampled=True, is_every_access_recorded=False
    ),
    DataClass.SENSITIVE: Handling(
        is_transit_possible=True, is_cache_shared=False, is_debug_sampled=True, is_every_access_recorded=True
    ),
    DataClass.CLASSIFIED: Handling(
        is_transit_possible=False, is_cache_shared=False, is_debug_sampled=False, is_every_access_recorded=True
    ),
}


def is_allowed(residency: Residency, data_class: DataClass, site: Site) -> bool:
    """Return whether `site` may serve (parse, run, store) a request of `data_class` under `residency`."""
    if not is_graded_for(data_class, site):
        return False
    scope = residency.scope
    if scope is _ANY:
        return True
    if scope is _NATION:
        return site.nation in residency.places
    if scope is _REGION:
        return site.region in residency.places
    return (scope is _SITE or scope is _SITES) and site.name in residency.places


def is_graded_for(data_class: DataClass, site: Site) -> bool:
    """Return whether a site may hold data of a class at all, whosever it is."""
    if not is_within(data_class, site.data_class_max):
        return False
    return data_class is _OPEN or site.nation == HOME_NATION


def may_pass_through(residency: Residency, data_class: DataClass, site: Site) -> bool:
    """Return whether a site that may not serve may pass the body on, unread, to one that may."""
    handling = HANDLING.get(data_class)
    if handling is None or not handling.is_transit_possible or residency.is_transit_granted is not True:
        return False
    return is_graded_for(data_class, site)


def is_within(data_class: DataClass, most: DataClass) -> bool:
    """Return whether whoever is marked for `most`, a site or an engine, may see data of `data_class`."""
    if data_class is _OPEN:
        return most is _OPEN or most is _SENSITIVE or most is _CLASSIFIED
    if data_class is _SENSITIVE:
        return most is _SENSITIVE or most is _CLASSIFIED
    return data_class is _CLASSIFIED and most is _CLASSIFIED


def stricter(first: DataClass, second: DataClass) -> DataClass:
    """Return the higher of two classes: copies differ only while a change is on its way."""
    unknown = len(_RANKS)
    return first if _RANKS.get(first, unknown) >= _RANKS.get(second, unknown) else second


def allowed_sites(residency: Residency, data_class: DataClass, sites: Iterable[Site]) -> frozenset[SiteId]:
    """Return the names of the sites that may serve under `residency`."""
    return frozenset(site.name for site in sites if is_allowed(residency, data_class, site))
