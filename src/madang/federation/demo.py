"""The first day of the embedded federation: three tenants, two services and example prices, applied by the hub's API.

Owns who they are. Refuses any other way into the hub than its admin API. Called once by `madang up`; what people
change or remove later is left as they want it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from madang.core import ServiceName, TenantId
from madang.federation.catalog import CHAT_MODEL, EMBEDDING_MODEL, find_entry
from madang.federation.state import Credentials, TenantCredentials
from madang.model import (
    Budget,
    CatalogEntry,
    DataClass,
    PriorityClass,
    Residency,
    ResidencyScope,
    Service,
    Tariff,
    Tenant,
)
from madang.model.price import MICRO_WON_PER_WON
from madang.runtime.admin_client import AdminClient, NotFound

CHAT_SERVICE = ServiceName("madang-chat")
EMBED_SERVICE = ServiceName("madang-embed")
GUIDE_TENANT = TenantId("gwangju-city")
"""Whose key asks the first question: a public institution that any site in the country may serve."""
_PRICES_WON = {CHAT_SERVICE: (300, 1200), EMBED_SERVICE: (30, 0)}
"""Example prices: won for a million tokens read and written, in classes clinical and interactive; batch is half."""


def demo_tariffs(today: str) -> tuple[Tariff, ...]:
    """Return the example price book, which begins on a Korean day `YYYY-MM-DD`."""
    made = []
    for service, (read_won, written_won) in _PRICES_WON.items():
        for priority in PriorityClass:
            part = 2 if priority is PriorityClass.BATCH else 1
            made.append(
                Tariff(
                    tariff_id=f"{service}.{priority}.{today}",
                    service=service,
                    priority=priority,
                    valid_from=today,
                    prompt_micro_won_per_million=read_won * MICRO_WON_PER_WON // part,
                    completion_micro_won_per_million=written_won * MICRO_WON_PER_WON // part,
                )
            )
    return tuple(made)


def _budget(day_won: int, month_won: int) -> Budget:
    """Return a budget that is far beyond what trying things out costs: a long answer here costs a few won."""
    return Budget(day_micro_won=day_won * MICRO_WON_PER_WON, month_micro_won=month_won * MICRO_WON_PER_WON)


def demo_tenants() -> tuple[Tenant, ...]:
    """Return the three tenants that stand for the people it is for."""
    return (
        Tenant(
            tenant_id=TenantId("daegu-clinic"),
            title="대구 의원 (hospital)",
            residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)),
            data_class=DataClass.SENSITIVE,
            budget=_budget(100_000, 2_000_000),
            priority=PriorityClass.CLINICAL,
            overdraw_micro_won=50_000 * MICRO_WON_PER_WON,
        ),
        Tenant(
            tenant_id=TenantId("gumi-parts"),
            title="구미 부품 (SME)",
            residency=Residency(scope=ResidencyScope.REGION, places=("yeongnam",)),
            data_class=DataClass.SENSITIVE,
            budget=_budget(100_000, 2_000_000),
        ),
        Tenant(
            tenant_id=GUIDE_TENANT,
            title="광주광역시 (public institution)",
            residency=Residency(scope=ResidencyScope.NATION, places=("kr",)),
            data_class=DataClass.OPEN,
            budget=_budget(200_000, 5_000_000),
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
    find_today: Callable[[], str],
) -> Credentials:
    """Make tenants, keys, models, services and prices that are missing and return the credentials with their keys.

    Args:
        hub: the hub's API.
        catalog: models that the services choose from.
        credentials: what is known so far.
        keep: writes credentials; called after each key, since a key is shown once.
        find_today: the day in Korea, on which prices begin.
    """
    for entry in catalog:
        if not _exists(hub, f"/api/v1/models/{entry.name}"):
            hub.call("POST", "/api/v1/models", entry)
    for service in demo_services(catalog):
        if not _exists(hub, f"/api/v1/services/{service.name}"):
            hub.call("PUT", f"/api/v1/services/{service.name}", service)
    _enter_prices(hub, find_today)
    for tenant in demo_tenants():
        if not _exists(hub, f"/api/v1/tenants/{tenant.tenant_id}"):
            hub.call("POST", "/api/v1/tenants", tenant)
        if all(known.name != tenant.tenant_id for known in credentials.tenants):
            made: dict[str, Any] = hub.call(
                "POST", "/api/v1/keys", {"tenant_id": tenant.tenant_id, "priority": _class_of_key(hub, tenant)}
            )
            key = TenantCredentials(name=tenant.tenant_id, residency=tenant.residency, api_key=made["api_key"])
            credentials = msgspec.structs.replace(credentials, tenants=(*credentials.tenants, key))
            keep(credentials)
    return credentials


def _enter_prices(hub: AdminClient, find_today: Callable[[], str]) -> None:
    """Enter the example price of each service and class that has none."""
    found: list[dict[str, Any]] = hub.get("/api/v1/tariffs")
    known = {(tariff["service"], tariff["priority"]) for tariff in found}
    for tariff in demo_tariffs(find_today()):
        if (tariff.service, tariff.priority) not in known:
            body = {name: value for name, value in msgspec.to_builtins(tariff).items() if name != "tariff_id"}
            hub.call("POST", "/api/v1/tariffs", body)


def _class_of_key(hub: AdminClient, tenant: Tenant) -> str:
    """Return the highest class that a tenant may have: one that was made before classes were has a lower one."""
    found: dict[str, Any] = hub.get(f"/api/v1/tenants/{tenant.tenant_id}")
    return str(found.get("priority", PriorityClass.INTERACTIVE.value))


def _exists(hub: AdminClient, path: str) -> bool:
    try:
        hub.get(path)
    except NotFound:
        return False
    return True
