"""Desired state in SQL: what every site shall hold, with the generation in which each item last changed.

Owns `desired_item` and `site_generation`. Refuses to decide who gets what (`madang.policy.desired` does) and to
publish. Called in the transaction that changes a fact, and by whoever sends items to sites.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import sqlalchemy as sa

from madang.core import Rejected, ServiceName, SiteId
from madang.hub.tables import (
    API_KEY,
    DESIRED_ITEM,
    KEY_POLICY,
    MODEL,
    PROJECT,
    SERVICE,
    SITE,
    SITE_GENERATION,
    TARIFF,
    TENANT,
)
from madang.model import ApiKey, CatalogEntry, KeyPolicy, Project, Service, Site, Tariff, Tenant
from madang.policy.desired import (
    KIND_ASSIGNMENT,
    KIND_KEY,
    KIND_KEY_POLICY,
    KIND_MODEL,
    KIND_PROJECT,
    KIND_SERVICE,
    KIND_TARIFF,
    KIND_TENANT,
    Fact,
    HubFacts,
    ItemKey,
    diff_desired,
    plan_desired,
)
from madang.wire.bus import BATCH_BYTES_MAX, DesiredItem, ResyncPart, encode, make_desired_item, state_hash

ITEM_BYTES_MAX = BATCH_BYTES_MAX // 2
"""Largest item: it must fit into one message and leave a resync part room for more."""
TOMBSTONE_KEPT_S = 24 * 3600.0
"""A site that was away longer gets a resync, which needs no tombstones."""

_PARAMETERS_MAX = 500  # values in one IN (...); SQLite allows 32,766 in all, PostgreSQL's planner slows long before


def read_sites(connection: sa.Connection) -> tuple[Site, ...]:
    """Return the live sites by name."""
    query = sa.select(SITE.c.spec).where(SITE.c.is_revoked.is_(False)).order_by(SITE.c.name)
    return tuple(msgspec.json.decode(spec, type=Site) for spec in connection.scalars(query))


def read_tenants(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[Tenant, ...]:
    """Return tenants by id; all of them without `ids`."""
    return tuple(
        msgspec.json.decode(row.spec, type=Tenant) for row in _select_in(connection, TENANT, TENANT.c.tenant_id, ids)
    )


def read_services(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[Service, ...]:
    """Return services by name; all of them without `ids`."""
    rows = _select_in(connection, SERVICE, SERVICE.c.name, ids)
    return tuple(msgspec.json.decode(row.spec, type=Service) for row in rows)


def read_models(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[CatalogEntry, ...]:
    """Return catalog entries by name; all of them without `ids`."""
    rows = _select_in(connection, MODEL, MODEL.c.name, ids)
    return tuple(msgspec.json.decode(row.spec, type=CatalogEntry) for row in rows)


def read_keys(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[ApiKey, ...]:
    """Return keys by id, each with what is copied from its tenant; all of them without `ids`."""
    rows = _select_in(connection, API_KEY, API_KEY.c.key_id, ids)
    limited = {row.key_id for row in _select_in(connection, KEY_POLICY, KEY_POLICY.c.key_id, ids)}
    tenants = {tenant.tenant_id: tenant for tenant in read_tenants(connection, {row.tenant_id for row in rows})}
    return tuple(
        ApiKey(
            key_id=row.key_id,
            sha256=row.sha256,
            tenant_id=row.tenant_id,
            residency=tenants[row.tenant_id].residency,
            data_class=tenants[row.tenant_id].data_class,
            is_redirect_wanted=tenants[row.tenant_id].is_redirect_wanted,
            expires_at_s=row.expires_at_s,
            is_revoked=row.is_revoked,
            has_policy=row.key_id in limited,
        )
        for row in rows
    )


def read_projects(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[Project, ...]:
    """Return projects by id; all of them without `ids`."""
    rows = _select_in(connection, PROJECT, PROJECT.c.project_id, ids)
    return tuple(msgspec.json.decode(row.spec, type=Project) for row in rows)


def read_projects_of(connection: sa.Connection, tenant_ids: Iterable[str]) -> tuple[Project, ...]:
    """Return the projects of some tenants, by tenant and id."""
    rows = _select_in(connection, PROJECT, PROJECT.c.tenant_id, tenant_ids)
    found = (msgspec.json.decode(row.spec, type=Project) for row in rows)
    return tuple(sorted(found, key=lambda project: (project.tenant_id, project.project_id)))


def read_key_policies(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[KeyPolicy, ...]:
    """Return policies by key; all of them without `ids`."""
    rows = _select_in(connection, KEY_POLICY, KEY_POLICY.c.key_id, ids)
    return tuple(msgspec.json.decode(row.spec, type=KeyPolicy) for row in rows)


def read_tariffs(connection: sa.Connection, ids: Iterable[str] | None = None) -> tuple[Tariff, ...]:
    """Return tariffs by id; all of them without `ids`."""
    rows = _select_in(connection, TARIFF, TARIFF.c.tariff_id, ids)
    return tuple(msgspec.json.decode(row.spec, type=Tariff) for row in rows)


def _select_in(
    connection: sa.Connection, table: sa.Table, column: sa.Column[str], ids: Iterable[str] | None
) -> list[sa.Row[tuple[object, ...]]]:
    query = sa.select(table).order_by(column)
    if ids is None:
        return list(connection.execute(query))
    rows: list[sa.Row[tuple[object, ...]]] = []
    for chunk in _chunks(sorted(ids)):
        rows += connection.execute(query.where(column.in_(chunk)))
    return rows


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _PARAMETERS_MAX] for start in range(0, len(values), _PARAMETERS_MAX))


def replan(connection: sa.Connection, now_s: float, touched: Iterable[ItemKey] | None = None) -> dict[SiteId, int]:
    """Bring `desired_item` in line with the facts; return the new generation of every site that changed.

    Args:
        connection: the transaction that changed the facts.
        now_s: wall time.
        touched: facts that changed, by kind and id (a service's assignments follow it); None plans everything,
            as after a change of sites.
    """
    keys = None if touched is None else _with_assignments(touched)
    facts = _read_facts(connection, keys)
    plan = plan_desired(facts)
    current = _read_current(connection, keys)
    generations = read_generations(connection)
    raised: dict[SiteId, int] = {}
    for site, planned in plan.items():
        # The tenants that a fact names are read along with it, and the sites always: neither is what changed.
        items = {key: fact for key, fact in planned.items() if keys is None or key in keys}
        generation = generations.get(site, 0)
        wanted = {key: make_desired_item(site, *key, 0, fact) for key, fact in items.items()}
        digests = {key: item.sha256 for key, item in wanted.items()}
        difference = diff_desired(current.get(site, {}), digests, generation)
        if difference:
            changed: dict[ItemKey, Fact | None] = {key: items[key] for key in difference.changed}
            changed |= dict.fromkeys(difference.removed)
            _write_items(connection, site, difference.generation, changed, now_s)
            _write_generation(connection, site, difference.generation)
            raised[site] = difference.generation
    if keys is None:
        _forget_other_sites(connection, plan)
    return raised


def _with_assignments(touched: Iterable[ItemKey]) -> set[ItemKey]:
    keys = set(touched)
    return keys | {(KIND_ASSIGNMENT, name) for kind, name in keys if kind == KIND_SERVICE}


def _read_facts(connection: sa.Connection, keys: set[ItemKey] | None) -> HubFacts:
    def ids(kind: str) -> set[str] | None:
        return None if keys is None else {item_id for item_kind, item_id in keys if item_kind == kind}

    services = read_services(connection, ids(KIND_SERVICE))
    projects = read_projects(connection, ids(KIND_PROJECT))
    policies = read_key_policies(connection, ids(KIND_KEY_POLICY))
    tenant_ids = ids(KIND_TENANT)
    named = {tenant for service in services for tenant in service.tenants}
    named |= {one.tenant_id for one in projects} | {one.tenant_id for one in policies}
    placed = sa.select(DESIRED_ITEM.c.item_id, DESIRED_ITEM.c.site).where(
        DESIRED_ITEM.c.kind == KIND_ASSIGNMENT, DESIRED_ITEM.c.is_deleted.is_(False)
    )
    return HubFacts(
        sites=read_sites(connection),
        tenants=read_tenants(connection, None if tenant_ids is None else tenant_ids | named),
        keys=read_keys(connection, ids(KIND_KEY)),
        services=services,
        models=read_models(connection, ids(KIND_MODEL)),
        projects=projects,
        key_policies=policies,
        tariffs=read_tariffs(connection, ids(KIND_TARIFF)),
        placed=frozenset((ServiceName(row.item_id), SiteId(row.site)) for row in connection.execute(placed)),
    )


def _read_current(connection: sa.Connection, keys: set[ItemKey] | None) -> dict[SiteId, dict[ItemKey, str | None]]:
    columns = (
        DESIRED_ITEM.c.site,
        DESIRED_ITEM.c.kind,
        DESIRED_ITEM.c.item_id,
        DESIRED_ITEM.c.sha256,
        DESIRED_ITEM.c.is_deleted,
    )
    current: dict[SiteId, dict[ItemKey, str | None]] = defaultdict(dict)
    queries = [sa.select(*columns)]
    if keys is not None:
        queries = [
            queries[0].where(DESIRED_ITEM.c.kind == kind, DESIRED_ITEM.c.item_id.in_(chunk))
            for kind in sorted({kind for kind, _ in keys})
            for chunk in _chunks(sorted(item_id for item_kind, item_id in keys if item_kind == kind))
        ]
    for query in queries:
        for row in connection.execute(query):
            current[SiteId(row.site)][(row.kind, row.item_id)] = None if row.is_deleted else row.sha256
    return current


def _write_items(
    connection: sa.Connection, site: SiteId, generation: int, facts: dict[ItemKey, Fact | None], now_s: float
) -> None:
    rows = []
    for (kind, item_id), fact in facts.items():
        item = make_desired_item(site, kind, item_id, generation, fact)
        if len(item.spec) > ITEM_BYTES_MAX:
            raise Rejected(
                f"{kind} {item_id} takes {len(bytes(item.spec))} bytes as JSON; a site can be sent {ITEM_BYTES_MAX}",
                next_step="make it smaller, for example with fewer sources or a shorter note",
            )
        rows.append(
            {
                "site": site,
                "kind": kind,
                "item_id": item_id,
                "generation": generation,
                "spec": bytes(item.spec).decode(),
                "sha256": item.sha256,
                "is_deleted": item.is_deleted,
                "changed_at_s": now_s,
            }
        )
    condition = sa.and_(
        DESIRED_ITEM.c.site == sa.bindparam("s"),
        DESIRED_ITEM.c.kind == sa.bindparam("k"),
        DESIRED_ITEM.c.item_id == sa.bindparam("i"),
    )
    old = [{"s": row["site"], "k": row["kind"], "i": row["item_id"]} for row in rows]
    connection.execute(DESIRED_ITEM.delete().where(condition), old)
    connection.execute(DESIRED_ITEM.insert(), rows)


def _write_generation(connection: sa.Connection, site: SiteId, generation: int) -> None:
    done = connection.execute(
        SITE_GENERATION.update().where(SITE_GENERATION.c.site == site).values(generation=generation)
    )
    if done.rowcount == 0:
        connection.execute(SITE_GENERATION.insert().values(site=site, generation=generation))


def _forget_other_sites(connection: sa.Connection, plan: dict[SiteId, dict[ItemKey, Fact]]) -> None:
    held = set(connection.scalars(sa.select(DESIRED_ITEM.c.site).distinct()))
    for site in sorted(held - set(plan)):
        connection.execute(DESIRED_ITEM.delete().where(DESIRED_ITEM.c.site == site))


def read_generations(connection: sa.Connection) -> dict[SiteId, int]:
    """Return the generation of every site that has one."""
    rows = connection.execute(sa.select(SITE_GENERATION.c.site, SITE_GENERATION.c.generation))
    return {SiteId(row.site): row.generation for row in rows}


def read_live_generations(connection: sa.Connection) -> dict[SiteId, int]:
    """Return the generation of every live site, 0 for one that has none yet."""
    generations = read_generations(connection)
    names = connection.scalars(sa.select(SITE.c.name).where(SITE.c.is_revoked.is_(False)).order_by(SITE.c.name))
    return {SiteId(name): generations.get(SiteId(name), 0) for name in names}


def read_items(
    connection: sa.Connection, site: SiteId, *, after: int = -1, is_live_only: bool = False
) -> list[DesiredItem]:
    """Return a site's items that changed after a generation, oldest generation first, then by key."""
    query = sa.select(DESIRED_ITEM).where(DESIRED_ITEM.c.site == site, DESIRED_ITEM.c.generation > after)
    if is_live_only:
        query = query.where(DESIRED_ITEM.c.is_deleted.is_(False))
    query = query.order_by(DESIRED_ITEM.c.generation, DESIRED_ITEM.c.kind, DESIRED_ITEM.c.item_id)
    return [
        DesiredItem(
            site=site,
            kind=row.kind,
            item_id=row.item_id,
            generation=row.generation,
            spec=msgspec.Raw(row.spec.encode()),
            sha256=row.sha256,
            is_deleted=row.is_deleted,
        )
        for row in connection.execute(query)
    ]


def read_wanted_hash(connection: sa.Connection, site: SiteId) -> tuple[int, str]:
    """Return a site's generation and the hash over what it shall hold, from one snapshot."""
    generation = connection.scalar(sa.select(SITE_GENERATION.c.generation).where(SITE_GENERATION.c.site == site)) or 0
    rows = connection.execute(
        sa.select(DESIRED_ITEM.c.kind, DESIRED_ITEM.c.item_id, DESIRED_ITEM.c.sha256).where(
            DESIRED_ITEM.c.site == site, DESIRED_ITEM.c.is_deleted.is_(False)
        )
    )
    return generation, state_hash({(row.kind, row.item_id): row.sha256 for row in rows})


def jump_generation(connection: sa.Connection, site: SiteId, above: int) -> int:
    """Raise a site's generation above what the site says it applied, and stamp all its items with it.

    This is what a hub does whose database is an older copy: the site would refuse its older generations.
    """
    current = read_generations(connection).get(site, 0)
    if current > above:
        return current
    generation = above + 1
    _write_generation(connection, site, generation)
    connection.execute(DESIRED_ITEM.update().where(DESIRED_ITEM.c.site == site).values(generation=generation))
    return generation


def drop_old_tombstones(connection: sa.Connection, now_s: float) -> int:
    """Forget tombstones that every site had a day to apply; return how many."""
    done = connection.execute(
        DESIRED_ITEM.delete().where(
            DESIRED_ITEM.c.is_deleted.is_(True), DESIRED_ITEM.c.changed_at_s < now_s - TOMBSTONE_KEPT_S
        )
    )
    return done.rowcount


def make_resync_parts(site: SiteId, resync_id: str, generation: int, items: Sequence[DesiredItem]) -> list[ResyncPart]:
    """Return a whole snapshot as messages under BATCH_BYTES_MAX; at least one, even without items."""
    groups: list[list[DesiredItem]] = [[]]
    room = BATCH_BYTES_MAX - 1024
    for item in items:
        size = len(encode(item)) + 1
        if size > room and groups[-1]:
            groups.append([])
            room = BATCH_BYTES_MAX - 1024
        groups[-1].append(item)
        room -= size
    return [
        ResyncPart(
            site=site,
            resync_id=resync_id,
            part=number,
            parts=len(groups),
            generation=generation,
            items=tuple(group),
        )
        for number, group in enumerate(groups)
    ]
