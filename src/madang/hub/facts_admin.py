"""Changes of tenants, models and services, with what makes each of them valid.

Owns the tables of those facts and their rules; keys, projects and prices have modules of their own. Refuses to know
HTTP and NATS. Every function runs inside a Change: what it writes, its audit row and the desired state that follows
are one transaction.
"""

import re

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Rejected, check_entity_id, check_site_name
from madang.hub.change import Change
from madang.hub.desired_store import read_models, read_projects_of, read_services, read_sites, read_tenants
from madang.hub.equivalences import find_pairs
from madang.hub.keys_admin import lower_priorities
from madang.hub.lease_rows import note_unleased
from madang.hub.tables import API_KEY, KEY_POLICY, MODEL, SERVICE, TENANT
from madang.hub.tenancy_admin import TITLE_CHARS_MAX, check_budget, read_tenant
from madang.model import UNITS_OF_TASK, CatalogEntry, DataClass, Residency, ResidencyScope, Service, Tenant
from madang.model.lease import Scope
from madang.policy.desired import KIND_KEY, KIND_KEY_POLICY, KIND_MODEL, KIND_PROJECT, KIND_SERVICE, KIND_TENANT
from madang.policy.equivalence import find_lead
from madang.policy.residency import HANDLING, HOME_NATION
from madang.runtime.admin_http import NotFound

PLACES_MAX = 256
REPLICAS_PER_SITE_MAX = 256
CONTEXT_TOKENS_MAX = 2**24
SLOTS_MAX = 4096
SIZE_BYTES_MAX = 2**53
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def put_tenant(change: Change, tenant: Tenant, *, may_replace: bool) -> tuple[Tenant, bool]:
    """Create or replace a tenant; return it and whether it is new.

    Raises:
        Rejected: a field is malformed.
        Conflict: it exists and differs, and `may_replace` is false; or its class forbids a prefix cache in use.

    A lower class than before lowers the keys that are above it, in the same transaction: to take a right away is one
    act that cannot stay half done. A higher one raises no key, since nobody asked for that.
    """
    check_entity_id("tenant", tenant.tenant_id)
    if not 1 <= len(tenant.title) <= TITLE_CHARS_MAX:
        raise Rejected(f"tenant {tenant.tenant_id}: title must have 1 to {TITLE_CHARS_MAX} characters")
    check_residency(tenant.tenant_id, tenant.residency)
    _check_class(tenant)
    check_budget(f"tenant {tenant.tenant_id}", tenant.budget, tenant.overdraw_micro_won)
    old = next(iter(read_tenants(change.connection, [tenant.tenant_id])), None)
    if old == tenant:
        return tenant, False
    if old is not None and not may_replace:
        raise Conflict(
            f"tenant {tenant.tenant_id} exists and differs",
            next_step=f"PUT /api/v1/tenants/{tenant.tenant_id} replaces it",
        )
    services = [
        service
        for service in read_services(change.connection)
        if not service.tenants or tenant.tenant_id in service.tenants
    ]
    for service in services:
        if service.has_prefix_cache and not HANDLING[tenant.data_class].is_cache_shared:
            raise Conflict(f"service {service.name} shares a prefix cache, so its tenants must be of class open")
    change.write_fact(TENANT, TENANT.c.tenant_id, tenant.tenant_id, tenant)
    change.touch(KIND_TENANT, tenant.tenant_id)
    note_unleased(
        change.connection,
        Scope.TENANT,
        tenant.tenant_id,
        None if old is None else old.budget,
        tenant.budget,
        change.now_s,
    )
    copied = ("residency", "data_class", "is_redirect_wanted")
    if old is not None and any(getattr(old, name) != getattr(tenant, name) for name in copied):
        # Keys carry a copy of these, and where a service runs follows from them.
        for key_id in change.connection.scalars(
            sa.select(API_KEY.c.key_id).where(API_KEY.c.tenant_id == tenant.tenant_id)
        ):
            change.touch(KIND_KEY, key_id)
            change.touch(KIND_KEY_POLICY, key_id)
        for project in read_projects_of(change.connection, [tenant.tenant_id]):
            change.touch(KIND_PROJECT, project.project_id)
        for service in services:
            change.touch(KIND_SERVICE, service.name)
    change.audit("tenant.put", tenant.tenant_id, tenant)
    lower_priorities(change, tenant)
    return tenant, old is None


def check_residency(tenant_id: str, residency: Residency) -> None:
    """Raise Rejected unless `places` fits `scope`."""
    scope, places = residency.scope, residency.places
    expected = {
        ResidencyScope.SITE: "exactly one site name",
        ResidencyScope.SITES: "one or more site names",
        ResidencyScope.REGION: "one or more region names",
        ResidencyScope.NATION: "one or more nation codes",
        ResidencyScope.ANY: "no places",
    }[scope]
    counts = {ResidencyScope.SITE: (1, 1), ResidencyScope.ANY: (0, 0)}
    least, most = counts.get(scope, (1, PLACES_MAX))
    if not least <= len(places) <= most or len(set(places)) != len(places):
        raise Rejected(
            f"tenant {tenant_id}: residency {scope.value} takes {expected}, each once; found {list(places)[:10]}"
        )
    if scope in (ResidencyScope.SITE, ResidencyScope.SITES):
        for place in places:
            check_site_name(place)


def _check_class(tenant: Tenant) -> None:
    """Raise Rejected for a class and a scope that together can never allow a site, or that only seem to grant."""
    residency, data_class = tenant.residency, tenant.data_class
    if data_class is DataClass.OPEN:
        return
    if residency.scope is ResidencyScope.NATION and HOME_NATION not in residency.places:
        raise Rejected(
            f"tenant {tenant.tenant_id}: data of class {data_class} stays in {HOME_NATION}; "
            f"residency names only {', '.join(residency.places[:10])}",
            next_step=f"name {HOME_NATION}, or use --data-class open",
        )
    if residency.is_transit_granted and not HANDLING[data_class].is_transit_possible:
        raise Rejected(
            f"tenant {tenant.tenant_id}: data of class {data_class} never passes through a site that may not serve it",
            next_step="do not grant transit",
        )


def delete_tenant(change: Change, tenant_id: str) -> None:
    """Remove a tenant and its revoked keys; raises NotFound, or Conflict while keys, projects or services hold it."""
    read_tenant(change.connection, tenant_id)
    keys = change.connection.execute(
        sa.select(API_KEY.c.key_id, API_KEY.c.is_revoked).where(API_KEY.c.tenant_id == tenant_id)
    ).all()
    live = [row.key_id for row in keys if not row.is_revoked]
    if live:
        raise Conflict(
            f"tenant {tenant_id} has {len(live)} keys that are not revoked, such as {live[0]}",
            next_step="revoke its keys first (POST /api/v1/keys/{id}/revoke)",
        )
    projects = read_projects_of(change.connection, [tenant_id])
    if projects:
        raise Conflict(
            f"tenant {tenant_id} has {len(projects)} projects, such as {projects[0].project_id}",
            next_step="delete its projects first (DELETE /api/v1/projects/{id})",
        )
    users = [service.name for service in read_services(change.connection) if tenant_id in service.tenants]
    if users:
        raise Conflict(f"service {users[0]} names tenant {tenant_id}", next_step="change or delete that service first")
    change.connection.execute(KEY_POLICY.delete().where(KEY_POLICY.c.tenant_id == tenant_id))
    change.connection.execute(API_KEY.delete().where(API_KEY.c.tenant_id == tenant_id))
    change.connection.execute(TENANT.delete().where(TENANT.c.tenant_id == tenant_id))
    change.touch(KIND_TENANT, tenant_id)
    for row in keys:
        change.touch(KIND_KEY, row.key_id)
        change.touch(KIND_KEY_POLICY, row.key_id)
    change.audit("tenant.delete", tenant_id, {"keys": [row.key_id for row in keys]})


def put_model(change: Change, model: CatalogEntry) -> tuple[CatalogEntry, bool]:
    """Create or replace a catalog entry; return it and whether it is new. Raises Rejected."""
    check_entity_id("model", model.name)
    units = UNITS_OF_TASK[model.task]
    if model.counted_in not in units:
        raise Rejected(f"model {model.name}: unit {model.unit} does not fit task {model.task}: {' or '.join(units)}")
    seen: set[str] = set()
    for artifact in model.artifacts:
        if not artifact.artifact_id or artifact.artifact_id in seen:
            raise Rejected(
                f"model {model.name}: artifact ids must be there and differ; {artifact.artifact_id!r} does not"
            )
        seen.add(artifact.artifact_id)
        if not artifact.files and artifact.engine != "external":  # others keep the files of theirs
            raise Rejected(f"model {model.name}: artifact {artifact.artifact_id} has no files")
        for file in artifact.files:
            if not _SHA256.match(file.sha256) or not 0 < file.size_bytes <= SIZE_BYTES_MAX:
                raise Rejected(
                    f"model {model.name}: file {file.name[:80]!r} needs a sha256 of 64 lower-case hex digits and a size"
                )
    # Who may stand in for whom is judged here, whatever a catalog file says.
    model = msgspec.structs.replace(model, equivalents=find_pairs(change.connection, model))
    old = next(iter(read_models(change.connection, [model.name])), None)
    if old == model:
        return model, False
    change.write_fact(MODEL, MODEL.c.name, model.name, model)
    change.touch(KIND_MODEL, model.name)
    change.audit("model.put", model.name, model)
    return model, old is None


def delete_model(change: Change, name: str) -> None:
    """Remove a catalog entry; raises NotFound, or Conflict while a service runs it."""
    read_model(change.connection, name)
    user = change.connection.scalar(sa.select(SERVICE.c.name).where(SERVICE.c.model == name).order_by(SERVICE.c.name))
    if user is not None:
        raise Conflict(f"service {user} runs model {name}", next_step="delete that service or change its model first")
    change.connection.execute(MODEL.delete().where(MODEL.c.name == name))
    change.touch(KIND_MODEL, name)
    change.audit("model.delete", name, {})


def read_model(connection: sa.Connection, name: str) -> CatalogEntry:
    """Return a catalog entry; raises NotFound."""
    for model in read_models(connection, [name]):
        return model
    raise NotFound(f"model {name!r} is not in the catalog", next_step="GET /api/v1/models lists those that are")


def put_service(change: Change, service: Service) -> tuple[Service, bool]:
    """Create or replace a service; return it and whether it is new. Raises Rejected naming the field."""
    check_entity_id("service", service.name)
    _check_service(change.connection, service)
    old = next(iter(read_services(change.connection, [service.name])), None)
    if old == service:
        return service, False
    change.write_fact(SERVICE, SERVICE.c.name, service.name, service, model=service.model)
    change.touch(KIND_SERVICE, service.name)
    change.audit("service.put", service.name, service)
    return service, old is None


def _check_service(connection: sa.Connection, service: Service) -> None:
    bounds = (
        ("replicas_per_site", 0, REPLICAS_PER_SITE_MAX),
        ("context_tokens", 1, CONTEXT_TOKENS_MAX),
        ("slots", 1, SLOTS_MAX),
    )
    for field, least, most in bounds:
        if not least <= getattr(service, field) <= most:
            raise Rejected(f"service {service.name}: {field} is {getattr(service, field)}, expected {least} to {most}")
    entry = next(iter(read_models(connection, [service.model])), None)
    if entry is None:
        raise Rejected(
            f"service {service.name}: model {service.model!r} is not in the catalog",
            next_step="add it first (POST /api/v1/models)",
        )
    if service.artifact and find_lead(entry, service) is None:
        raise Rejected(f"service {service.name}: model {service.model} has no artifact {service.artifact!r}")
    tenants = read_tenants(connection, service.tenants or None)
    unknown = set(service.tenants) - {tenant.tenant_id for tenant in tenants}
    if unknown:
        raise Rejected(f"service {service.name}: tenant {min(unknown)!r} does not exist")
    sites = {site.name: site for site in read_sites(connection)}
    for name in service.sites:
        if name not in sites or sites[name].is_entry_only:
            raise Rejected(f"service {service.name}: site {name!r} is not enrolled, or is an entry without chips")
    if service.has_prefix_cache and not all(HANDLING[tenant.data_class].is_cache_shared for tenant in tenants):
        raise Rejected(
            f"service {service.name}: has_prefix_cache needs every tenant of the service to be of class open",
            next_step="leave it off, or name only tenants of class open",
        )


def delete_service(change: Change, name: str) -> None:
    """Remove a service; its replicas are stopped by the sites. Raises NotFound."""
    read_service(change.connection, name)
    change.connection.execute(SERVICE.delete().where(SERVICE.c.name == name))
    change.touch(KIND_SERVICE, name)
    change.audit("service.delete", name, {})


def read_service(connection: sa.Connection, name: str) -> Service:
    """Return a service; raises NotFound."""
    for service in read_services(connection, [name]):
        return service
    raise NotFound(f"service {name!r} does not exist", next_step="GET /api/v1/services lists those that do")
