"""Routes about tenants, their projects and keys."""

from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from madang.core import Rejected
from madang.hub import facts_admin as facts
from madang.hub import keys_admin as keys
from madang.hub import tenancy_admin as tenancy
from madang.hub.desired_store import read_tenants
from madang.hub.parts import HubParts
from madang.model import Project, Tenant
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
    _add_projects(router, parts)
    _add_keys(router, parts)
    _add_key_changes(router, parts)
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
        return json_response(await parts.store.read(lambda c: tenancy.read_tenant(c, tenant_id)))

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


def _add_projects(router: APIRouter, parts: HubParts) -> None:
    @router.get("/projects", tags=["projects"])
    async def list_projects(tenant: str | None = None) -> Response:
        return json_response(await parts.store.read(lambda c: tenancy.list_projects(c, tenant)))

    @router.post("/projects", tags=["projects"], openapi_extra=takes(Project))
    async def create_project(request: Request) -> Response:
        body = await read_body(request, Project)
        project, is_new = await parts.changer.run(lambda change: tenancy.put_project(change, body, may_replace=False))
        return json_response(project, 201 if is_new else 200)

    @router.get("/projects/{project_id}", tags=["projects"])
    async def show_project(project_id: str) -> Response:
        return json_response(await parts.store.read(lambda c: tenancy.read_project(c, project_id)))

    @router.put("/projects/{project_id}", tags=["projects"], openapi_extra=takes(Project))
    async def put_project(project_id: str, request: Request) -> Response:
        body = await read_body(request, Project)
        check_same_name("project_id", project_id, body.project_id)
        project, is_new = await parts.changer.run(lambda change: tenancy.put_project(change, body, may_replace=True))
        return json_response(project, 201 if is_new else 200)

    @router.delete("/projects/{project_id}", tags=["projects"])
    async def delete_project(project_id: str) -> Response:
        await parts.changer.run(lambda change: tenancy.delete_project(change, project_id))
        return json_response({"project_id": project_id, "is_deleted": True})


def _add_keys(router: APIRouter, parts: HubParts) -> None:
    @router.get("/keys", tags=["keys"])
    async def list_keys(tenant: str | None = None) -> Response:
        return json_response(await parts.store.read(lambda c: keys.list_keys(c, tenant)))

    @router.post("/keys", tags=["keys"], openapi_extra=takes(keys.KeyRequest))
    async def create_key(request: Request) -> Response:
        body = await read_body(request, keys.KeyRequest)
        made = await parts.changer.run(lambda change: keys.create_key(change, body, parts.entropy))
        return json_response(made, 201)

    @router.get("/keys/{key_id}", tags=["keys"])
    async def show_key(key_id: str) -> Response:
        return json_response(await parts.store.read(lambda c: keys.read_key_view(c, key_id)))


def _add_key_changes(router: APIRouter, parts: HubParts) -> None:
    @router.put("/keys/{key_id}/policy", tags=["keys"], openapi_extra=takes(keys.KeyLimits))
    async def set_policy(key_id: str, request: Request) -> Response:
        body = await read_body(request, keys.KeyLimits)
        return json_response(await parts.changer.run(lambda change: keys.set_key_policy(change, key_id, body)))

    @router.patch("/keys/{key_id}", tags=["keys"], openapi_extra=takes(keys.KeyExpiry))
    async def set_expiry(key_id: str, request: Request) -> Response:
        body = await read_body(request, keys.KeyExpiry)
        return json_response(await parts.changer.run(lambda change: keys.set_key_expiry(change, key_id, body)))

    @router.post("/keys/{key_id}/revoke", tags=["keys"])
    async def revoke_key(key_id: str) -> Response:
        return json_response(await parts.changer.run(lambda change: keys.revoke_key(change, key_id)))
