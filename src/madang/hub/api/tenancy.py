"""Routes about tenants and their keys."""

from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from madang.core import Rejected
from madang.hub import facts_admin as facts
from madang.hub.desired_store import read_tenants
from madang.hub.parts import HubParts
from madang.model import Tenant
from madang.runtime.admin_http import json_response, read_body, takes

S = TypeVar("S", bound=msgspec.Struct)


def check_same_name(kind: str, in_path: str, in_body: str) -> None:
    """Raise Rejected unless path and body name the same thing."""
    if in_path != in_body:
        raise Rejected(f"{kind} is {in_path!r} in the path and {in_body!r} in the body", next_step="make them equal")


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1")
    _add_tenants(router, parts)
    _add_keys(router, parts)
    return router


def _add_tenants(router: APIRouter, parts: HubParts) -> None:
    @router.get("/tenants", tags=["tenants"])
    async def list_tenants() -> Response:
        return json_response(await parts.store.read(read_tenants))

    @router.post("/tenants", tags=["tenants"], openapi_extra=takes(Tenant))
    async def create_tenant(request: Request) -> Response:
        body = await read_body(request, Tenant)
        tenant, is_new = await parts.changer.run(lambda change: facts.put_tenant(change, body, may_replace=False))
        return json_response(tenant, 201 if is_new else 200)

    @router.get("/tenants/{tenant_id}", tags=["tenants"])
    async def show_tenant(tenant_id: str) -> Response:
        return json_response(await parts.store.read(lambda c: facts.read_tenant(c, tenant_id)))

    @router.put("/tenants/{tenant_id}", tags=["tenants"], openapi_extra=takes(Tenant))
    async def put_tenant(tenant_id: str, request: Request) -> Response:
        body = await read_body(request, Tenant)
        check_same_name("tenant_id", tenant_id, body.tenant_id)
        tenant, is_new = await parts.changer.run(lambda change: facts.put_tenant(change, body, may_replace=True))
        return json_response(tenant, 201 if is_new else 200)

    @router.delete("/tenants/{tenant_id}", tags=["tenants"])
    async def delete_tenant(tenant_id: str) -> Response:
        await parts.changer.run(lambda change: facts.delete_tenant(change, tenant_id))
        return json_response({"tenant_id": tenant_id, "is_deleted": True})


def _add_keys(router: APIRouter, parts: HubParts) -> None:
    @router.get("/keys", tags=["keys"])
    async def list_keys(tenant: str | None = None) -> Response:
        return json_response(await parts.store.read(lambda c: facts.list_keys(c, tenant)))

    @router.post("/keys", tags=["keys"], openapi_extra=takes(facts.KeyRequest))
    async def create_key(request: Request) -> Response:
        body = await read_body(request, facts.KeyRequest)
        made = await parts.changer.run(lambda change: facts.create_key(change, body, parts.entropy))
        return json_response(made, 201)

    @router.get("/keys/{key_id}", tags=["keys"])
    async def show_key(key_id: str) -> Response:
        return json_response(await parts.store.read(lambda c: facts.read_key_view(c, key_id)))

    @router.patch("/keys/{key_id}", tags=["keys"], openapi_extra=takes(facts.KeyExpiry))
    async def set_expiry(key_id: str, request: Request) -> Response:
        body = await read_body(request, facts.KeyExpiry)
        return json_response(await parts.changer.run(lambda change: facts.set_key_expiry(change, key_id, body)))

    @router.post("/keys/{key_id}/revoke", tags=["keys"])
    async def revoke_key(key_id: str) -> Response:
        return json_response(await parts.changer.run(lambda change: facts.revoke_key(change, key_id)))
