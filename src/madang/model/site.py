"""A site (an MDC), as every other site knows it. Refuses to know what happens inside."""

import msgspec

from madang.core import SiteId
from madang.model.tenant import DataClass


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """One micro data center, or the national entry, which is a site without chips.

    Attributes:
        name: one subject token, `[a-z0-9_]{1,32}`.
        region: the region that region-scoped residency compares, such as `yeongnam`.
        nation: ISO 3166-1 alpha-2 code, lower case.
        tenant_url: where tenants reach it, no trailing slash, no path.
        peer_url: where other gateways reach it, before any local override.
        artifact_url: where other sites reach its artifact cache; empty when it has none for them.
        identity_ed25519: the site's public identity key, 64 hex digits; empty until enrolled.
        is_entry_only: true for a pseudo-site without chips.
        is_cordoned: true when no new placements may go there.
        data_class_max: the highest class of data that it may hold; the federation's operator says so, never the site.
    """

    name: SiteId
    region: str
    nation: str = "kr"
    tenant_url: str = ""
    peer_url: str = ""
    artifact_url: str = ""
    identity_ed25519: str = ""
    is_entry_only: bool = False
    is_cordoned: bool = False
    data_class_max: DataClass = DataClass.SENSITIVE
