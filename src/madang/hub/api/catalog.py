"""Routes about models and services, and what sites said of nodes, chips and replicas."""

from collections import defaultdict
from typing import Any

from fastapi import APIRouter, Request, Response

from madang.hub import facts_admin as facts
from madang.hub.api.tenancy import check_same_name
from madang.hub.desired_store import read_models, read_services
from madang.hub.parts import HubParts
from madang.model import CatalogEntry, Service
from madang.runtime.admin_http import json_response, read_body, takes


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1")
    _add_models(router, parts)
    _add_services(router, parts)
    _add_observed(router, parts)
    return router


def _add_models(router: APIRouter, parts: HubParts) -> None:
    @router.get("/models", tags=["models"])
    async def list_models() -> Response:
        return json_response(await parts.store.read(read_models))

    @router.post("/models", tags=["models"], openapi_extra=takes(CatalogEntry))
    async def put_model(request: Request) -> Response:
        body = await read_body(request, CatalogEntry)
        model, is_new = await parts.changer.run(lambda change: facts.put_model(change, body))
        return json_response(model, 201 if is_new else 200)

    @router.get("/models/{name}", tags=["models"])
    async def show_model(name: str) -> Response:
        return json_response(await parts.store.read(lambda c: facts.read_model(c, name)))

    @router.delete("/models/{name}", tags=["models"])
    async def delete_model(name: str) -> Response:
        await parts.changer.run(lambda change: facts.delete_model(change, name))
        return json_response({"name": name, "is_deleted": True})


def _add_services(router: APIRouter, parts: HubParts) -> None:
    @router.get("/services", tags=["services"])
    async def list_services() -> Response:
        return json_response(await parts.store.read(read_services))

    @router.get("/services/{name}", tags=["services"])
    async def show_service(name: str) -> Response:
        return json_response(await parts.store.read(lambda c: facts.read_service(c, name)))

    @router.put("/services/{name}", tags=["services"], openapi_extra=takes(Service))
    async def put_service(name: str, request: Request) -> Response:
        body = await read_body(request, Service)
        check_same_name("name", name, body.name)
        service, is_new = await parts.changer.run(lambda change: facts.put_service(change, body))
        return json_response(service, 201 if is_new else 200)

    @router.delete("/services/{name}", tags=["services"])
    async def delete_service(name: str) -> Response:
        await parts.changer.run(lambda change: facts.delete_service(change, name))
        return json_response({"name": name, "is_deleted": True})


def _add_observed(router: APIRouter, parts: HubParts) -> None:
    @router.get("/chips", tags=["observed"])
    async def list_chips() -> Response:
        return json_response(parts.observed.list_rows("chips"))

    @router.get("/replicas", tags=["observed"])
    async def list_replicas() -> Response:
        return json_response(parts.observed.list_rows("replicas"))

    @router.get("/nodes", tags=["observed"])
    async def list_nodes() -> Response:
        orders = {(row["site"], row["node"]): row for row in parts.observed.list_rows("nodes")}
        rows = _group_nodes(parts.observed.list_rows("chips"), parts.observed.list_rows("replicas"))
        told = ("is_cordoned", "is_draining", "cordon_reason")
        return json_response(
            [{**row, **{name: orders.get((row["site"], row["node"]), {}).get(name) for name in told}} for row in rows]
        )


def _group_nodes(chips: list[dict[str, Any]], replicas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a node, counted from its chips and replicas."""
    ages: dict[tuple[str, str], float] = {}
    counts: dict[tuple[str, str], dict[str, int]] = defaultdict(
        lambda: {"chips": 0, "replicas": 0, "replicas_ready": 0}
    )
    for what, rows in (("chips", chips), ("replicas", replicas)):
        for row in rows:
            key = (str(row["site"]), str(row.get("node", "")))
            ages[key] = row["observed_age_s"]
            counts[key][what] += 1
            if what == "replicas" and row.get("phase") == "ready":
                counts[key]["replicas_ready"] += 1
    return [
        {"site": site, "node": node, **counts[(site, node)], "observed_age_s": ages[(site, node)]}
        for site, node in sorted(counts)
    ]
