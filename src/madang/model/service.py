"""A service (a model wanted) and its assignment to a site. Refuses to know replicas."""

import msgspec

from madang.core import ServiceName, SiteId, TenantId


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A model wanted under a name that tenants use as `model`.

    Attributes:
        name: what the API calls `model`.
        model: the catalog entry it runs.
        tenants: who may use it; empty means every tenant.
        sites: where it shall run; empty means every site that has chips.
        replicas_per_site: engines wanted at each of those sites.
        context_tokens: context of one request, in tokens.
        slots: requests that one replica serves at a time.
        artifact: the artifact that it runs, with those that were found equivalent; empty: the catalog's first.
        has_prefix_cache: whether engines may reuse prompt prefixes. Off unless every tenant of the service
            is of data class `open`, since a cache that is shared across tenants leaks through timing.
    """

    name: ServiceName
    model: str
    tenants: tuple[TenantId, ...] = ()
    sites: tuple[SiteId, ...] = ()
    replicas_per_site: int = 1
    context_tokens: int = 4096
    slots: int = 4
    has_prefix_cache: bool = False
    artifact: str = ""


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What one site shall run of one service, decided at the hub."""

    service: ServiceName
    replicas: int
