"""The site's admin API: what the site owns, answered by the site alone, hub or not.

Owns the routes. Refuses to decide anything: it reads the parts, and changes cordons with a row in the audit log.
Tenants never reach it. No answer holds a secret: keys are shown without their digests, replicas without engine keys.
"""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

import madang
from madang.core import SiteId
from madang.model import ReplicaPhase
from madang.policy.links import most_over_url
from madang.runtime.admin_http import NotFound, json_response, takes
from madang.runtime.audit_routes import add_audit_routes
from madang.runtime.cordon_request import CordonReason, read_reason
from madang.site.access_api import add_access_routes
from madang.site.audit import AUDIT_LOG
from madang.site.desired import read_refusals
from madang.site.facility.alarm_routes import add_alarm_routes
from madang.site.facility.routes import add_facility_routes
from madang.site.leases.routes import add_lease_routes
from madang.site.nodes import NodeState
from madang.site.outbox import read_totals
from madang.site.parts import SiteParts, find_closed_reason
from madang.wire.bus import CordonOrder

_ACTOR = "admin"


def make_router(parts: SiteParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1")
    _add_status(router, parts)
    _add_desired(router, parts)
    _add_observed(router, parts)
    add_lease_routes(router, parts)
    _add_records(router, parts)
    add_access_routes(router, parts)
    add_facility_routes(router, parts.settings.name, parts.facility, parts.clock, parts.entropy)
    if parts.facility is not None:
        add_alarm_routes(router, SiteId(parts.settings.name), parts.facility.alarms, parts.clock)
    _add_actions(router, parts)
    return router


def _add_status(router: APIRouter, parts: SiteParts) -> None:
    @router.get("/status", tags=["site"])
    async def show_status() -> Response:
        return json_response(make_status(parts))


def make_status(parts: SiteParts) -> dict[str, Any]:
    """Return the site's state in one object."""
    settings, link, gauge = parts.settings, parts.link, parts.gauge
    replicas = parts.book.offered()
    age_s = link.contact_age_s()
    return {
        "site": settings.name,
        "region": settings.region,
        "nation": settings.nation,
        "is_entry_only": settings.is_entry_only,
        "version": madang.__version__,
        "boot_id": parts.boot_id,
        "hub_link": {"state": link.state, "last_contact_age_s": None if age_s is None else round(age_s, 3)},
        "bus_connected": parts.bus.is_connected,
        "applied_generation": parts.view.generation,
        "state_hash": parts.view.state_hash,
        "unreadable_items": sorted(f"{kind}/{item_id}" for kind, item_id in parts.view.unreadable),
        "outbox_depth": max(0, gauge.rows),
        "oldest_unsent_age_s": round(gauge.oldest_age_s(parts.clock.wall_s()), 3),
        "usage_trouble": parts.forwarder.trouble.value,
        "import_trouble": parts.importer.trouble,
        "store_trouble": parts.store.trouble,
        "access_log": {
            "size_bytes": parts.access.size_bytes,
            "used_share": round(parts.access.used_share, 4),
            "seals": parts.access.chain.head.number,
            "problem": parts.access.problem,
        },
        "replicas_ready": sum(replica.phase is ReplicaPhase.READY for replica in replicas),
        "unplaced": [msgspec.structs.asdict(item) for item in parts.book.unplaced],
        "gateway": {
            "in_flight": parts.replicas.in_flight,
            "admission_closed_reason": find_closed_reason(settings, gauge, parts.store, parts.access),
        },
    }


def _add_desired(router: APIRouter, parts: SiteParts) -> None:
    view = parts.view

    @router.get("/services", tags=["desired"])
    async def list_services() -> Response:
        loads = {load.service: load for load in parts.replicas.list_loads(set(view.assignments))}
        rows = []
        for name, service in sorted(view.services.items()):
            load = loads.get(name)
            wanted = view.assignments.get(name)
            rows.append(
                {
                    **msgspec.to_builtins(service),
                    "replicas_wanted": wanted.replicas if wanted is not None else 0,
                    "replicas_ready": load.replicas_ready if load is not None else 0,
                    "in_flight": load.in_flight if load is not None else 0,
                }
            )
        return json_response(rows)

    @router.get("/tenants", tags=["desired"])
    async def list_tenants() -> Response:
        return json_response([view.tenants[name] for name in sorted(view.tenants)])

    @router.get("/keys", tags=["desired"])
    async def list_keys() -> Response:
        rows = []
        for name in sorted(view.keys):
            row = msgspec.to_builtins(view.keys[name])
            del row["sha256"]
            rows.append(row)
        return json_response(rows)

    @router.get("/models", tags=["desired"])
    async def list_models() -> Response:
        return json_response([view.models[name] for name in sorted(view.models)])

    @router.get("/refused", tags=["desired"])
    async def list_refused() -> Response:
        return json_response(await parts.store.read(read_refusals))


def _add_observed(router: APIRouter, parts: SiteParts) -> None:
    @router.get("/nodes", tags=["observed"])
    async def list_nodes() -> Response:
        return json_response([show_node(parts, node) for _, node in sorted(parts.book.nodes.items())])

    @router.get("/chips", tags=["observed"])
    async def list_chips() -> Response:
        return json_response(_chip_rows(parts))

    @router.get("/replicas", tags=["observed"])
    async def list_replicas() -> Response:
        rows = []
        for replica in parts.book.replicas():
            row = msgspec.to_builtins(replica)
            del row["engine_key"]
            silence_s = parts.book.silence_s(parts.book.nodes[replica.node]) if replica.node in parts.book.nodes else 0
            rows.append({**row, "site": parts.settings.name, "observed_age_s": round(silence_s, 3)})
        return json_response(rows)

    @router.get("/transfers", tags=["observed"])
    async def list_transfers(model: str = "") -> Response:
        """Files on their way into the site's cache and those of its nodes."""
        rows = [{**row, "site": parts.settings.name} for row in parts.artifacts.list_transfers()]
        return json_response([row for row in rows if not model or row["model"] == model])

    @router.get("/unplaced", tags=["observed"])
    async def list_unplaced(service: str = "") -> Response:
        """Replicas that are wanted here and have no place, with the reason."""
        rows = [{**msgspec.structs.asdict(one), "site": parts.settings.name} for one in parts.book.unplaced]
        return json_response([row for row in rows if not service or row["service"] == service])

    @router.get("/peers", tags=["observed"])
    async def list_peers() -> Response:
        return json_response(
            [
                {
                    "site": peer.site,
                    "url": peer.url,
                    "data_class_max": most_over_url(peer.url, is_encrypted=peer.is_link_encrypted).value,
                    "digest_age_s": round(peer.digest_age_s, 3),
                    "services": msgspec.to_builtins(peer.services),
                    "sessions": [{"kid": one.kid, "expires_at_s": one.expires_at_s} for one in peer.sessions],
                }
                for peer in parts.peers.list_peers()
            ]
        )


def _chip_rows(parts: SiteParts) -> list[dict[str, Any]]:
    now_s = parts.clock.wall_s()
    return [
        {
            **row,
            "site": parts.settings.name,
            "observed_age_s": round(max(0.0, now_s - row["observed_at_s"]), 3),
        }
        for row in parts.book.chip_rows()
    ]


def show_node(parts: SiteParts, node: NodeState) -> dict[str, Any]:
    """Return one node as a row."""
    observed = node.observed
    silence_s = parts.book.silence_s(node)
    return {
        "node": node.name,
        "site": parts.settings.name,
        "state": "connected" if observed is not None and not node.trouble else "silent",
        "reason": node.trouble,
        "is_cordoned": node.is_cordoned,
        "is_draining": node.is_draining,
        "cordon_reason": node.reason,
        "plan_generation": node.plan.generation if node.plan is not None else 0,
        "accepted_generation": observed.plan_generation if observed is not None else None,
        "chips": len(observed.chips) if observed is not None else 0,
        "replicas": len(observed.replicas) if observed is not None else 0,
        "replicas_ready": sum(r.phase is ReplicaPhase.READY for r in observed.replicas) if observed is not None else 0,
        "observed_age_s": round(silence_s, 3),
    }


def _add_records(router: APIRouter, parts: SiteParts) -> None:
    @router.get("/usage", tags=["records"])
    async def list_usage(tenant: str = "") -> Response:
        return json_response(await parts.store.read(lambda connection: read_totals(connection, tenant)))

    add_audit_routes(router, AUDIT_LOG, parts.store)


def _add_actions(router: APIRouter, parts: SiteParts) -> None:
    @router.post("/nodes/{name}/{verb}", tags=["actions"], openapi_extra=takes(CordonReason))
    async def change_node(name: str, verb: str, request: Request) -> Response:
        """Cordon (no new replicas), drain (those that are there leave too) or uncordon a node."""
        order = CordonOrder(verb=verb, node=name, reason=await read_reason(request), actor=_ACTOR)
        return json_response(show_node(parts, await parts.cordons.carry_out(order)))

    @router.post("/nodes/{name}/chips/{chip_id}/{verb}", tags=["actions"], openapi_extra=takes(CordonReason))
    async def change_chip(name: str, chip_id: str, verb: str, request: Request) -> Response:
        """Cordon one chip alone, or lift every cordon from it."""
        reason = await read_reason(request)
        order = CordonOrder(verb=verb, node=name, chip_id=chip_id, reason=reason, actor=_ACTOR)
        await parts.cordons.carry_out(order)
        rows = [row for row in _chip_rows(parts) if (row["node"], row["chip_id"]) == (name, chip_id)]
        return json_response(rows[0] if rows else {"node": name, "chip_id": chip_id})

    @router.post("/replicas/{replica_id}/restart", tags=["actions"])
    async def restart_replica(replica_id: str) -> Response:
        """Restart one engine."""
        node = next((replica.node for replica in parts.book.replicas() if replica.replica_id == replica_id), None)
        if node is None or node not in parts.clients:
            raise NotFound(f"no node of this site has replica {replica_id!r}", next_step="see /api/v1/replicas")
        await _audit(parts, "replica.restart", replica_id, {"node": node})
        await parts.clients[node].restart_replica(replica_id)
        return json_response({"replica_id": replica_id, "node": node, "is_restarting": True}, 202)


async def _audit(parts: SiteParts, action: str, target: str, detail: dict[str, Any]) -> None:
    now_s = parts.clock.wall_s()
    await parts.store.write(
        lambda connection: AUDIT_LOG.append(
            connection, at_s=now_s, actor=_ACTOR, action=action, target=target, detail=detail
        )
    )


def find_problems(parts: SiteParts) -> list[str]:
    """Return what keeps the site process from being ready, in words. The hub being away is not among them."""
    problems = []
    if not parts.bus.is_connected:
        address = f"{parts.settings.nats_host}:{parts.settings.nats_port}"
        problems.append(f"NATS server at {address} is not connected: usage waits, desired state stays as it is")
    if parts.view.generation == 0:
        problems.append("nothing was applied yet: the site was never linked to the hub")
    reason = find_closed_reason(parts.settings, parts.gauge, parts.store, parts.access)
    if reason:
        problems.append(reason)
    if parts.importer.trouble:
        problems.append(parts.importer.trouble)
    if parts.access.problem:
        problems.append(parts.access.problem)
    problems += [f"node {node.name}: {node.trouble}" for node in parts.book.nodes.values() if node.trouble]
    return problems
