"""The first day of the embedded federation: three tenants and two services, applied through the hub's API.

Owns who they are. Refuses any other way into the hub than its admin API. Called once by `madang up`; what people
change or remove later is left as they want it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from madang.core import ServiceName, TenantId
from madang.federation.catalog import CHAT_MODEL, EMBEDDING_MODEL, find_entry
from madang.federation.state import Credentials, TenantCredentials
from madang.model import CatalogEntry, DataClass, Residency, ResidencyScope, Service, Tenant
from madang.runtime.admin_client import AdminClient, NotFound

CHAT_SERVICE = ServiceName("madang-chat")
EMBED_SERVICE = ServiceName("madang-embed")
GUIDE_TENANT = TenantId("gwangju-city")
"""Whose key asks the first question: a public institution that any site in the country may serve."""


def demo_tenants() -> tuple[Tenant, ...]:
    """Return the three tenants that stand for the people it is for."""
    return (
        Tenant(
            tenant_id=TenantId("daegu-clinic"),
            title="대구 의원 (hospital)",
            residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)),
            data_class=DataClass.SENSITIVE,
        ),
        Tenant(
            tenant_id=TenantId("gumi-parts"),
            title="구미 부품 (SME)",
            residency=Residency(scope=ResidencyScope.REGION, places=("yeongnam",)),
            data_class=DataClass.SENSITIVE,
        ),
        Tenant(
            tenant_id=GUIDE_TENANT,
            title="광주광역시 (public institution)",
            residency=Residency(scope=ResidencyScope.NATION, places=("kr",)),
            data_class=DataClass.OPEN,
        ),
    )


def demo_services(catalog: tuple[CatalogEntry, ...]) -> tuple[Service, ...]:
    """Return the services of the first day, which run at every site."""
    chat, embed = find_entry(catalog, CHAT_MODEL), find_entry(catalog, EMBEDDING_MODEL)
    return (
        Service(name=CHAT_SERVICE, model=chat.name, context_tokens=4096, slots=4),
        Service(name=EMBED_SERVICE, model=embed.name, context_tokens=512, slots=4),
    )


def apply_demo(
    hub: AdminClient,
    catalog: tuple[CatalogEntry, ...],
    credentials: Credentials,
    keep: Callable[[Credentials], None],
) -> Credentials:
    """Make tenants, keys, models and services that are missing and return the credentials with their keys.

    Args:
        hub: the hub's API.
        catalog: models that the services choose from.
        credentials: what is known so far.
        keep: writes credentials; called after each key, since a key is shown once.
    """
    for entry in catalog:
        if not _exists(hub, f"/api/v1/models/{entry.name}"):
            hub.call("POST", "/api/v1/models", entry)
    for service in demo_services(catalog):
        if not _exists(hub, f"/api/v1/services/{service.name}"):
            hub.call("PUT", f"/api/v1/services/{service.name}", service)
    for tenant in demo_tenants():
        if not _exists(hub, f"/api/v1/tenants/{tenant.tenant_id}"):
            hub.call("POST", "/api/v1/tenants", tenant)
        if all(known.name != tenant.tenant_id for known in credentials.tenants):
            made: dict[str, Any] = hub.call("POST", "/api/v1/keys", {"tenant_id": tenant.tenant_id})
            key = TenantCredentials(name=tenant.tenant_id, residency=tenant.residency, api_key=made["api_key"])
            credentials = msgspec.structs.replace(credentials, tenants=(*credentials.tenants, key))
            keep(credentials)
    return credentials


def _exists(hub: AdminClient, path: str) -> bool:
    try:
        hub.get(path)
    except NotFound:
        return False
    return True
