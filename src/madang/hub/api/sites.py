"""Routes about sites and the federation as a whole."""

from fastapi import APIRouter, Request, Response

import madang
from madang.hub.enrolment import (
    Enrolment,
    SiteGrade,
    enrol_site,
    read_site,
    revoke_site,
    set_cordon,
    set_data_class,
)
from madang.hub.ledger import read_totals
from madang.hub.parts import HubParts
from madang.hub.views import HubStatus, read_wanted, view_site
from madang.runtime.admin_http import NotFound, json_response, read_body, takes


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1", tags=["sites"])
    _add_reading(router, parts)
    _add_acting(router, parts)
    return router


def _add_reading(router: APIRouter, parts: HubParts) -> None:
    @router.get("/status")
    async def show_status() -> Response:
        wanted, totals = await parts.store.read(lambda c: (read_wanted(c), read_totals(c)))
        views = tuple(view_site(item, parts.observed) for item in wanted)
        return json_response(HubStatus(version=madang.__version__, sites=views, ledger=totals))

    @router.get("/sites")
    async def list_sites() -> Response:
        wanted = await parts.store.read(read_wanted)
        return json_response([view_site(item, parts.observed) for item in wanted])

    @router.get("/sites/{name}")
    async def show_site(name: str) -> Response:
        for item in await parts.store.read(read_wanted):
            if item[0].name == name:
                return json_response(view_site(item, parts.observed))
        raise NotFound(f"site {name!r} is not enrolled", next_step="GET /api/v1/sites lists those that are")


def _add_acting(router: APIRouter, parts: HubParts) -> None:
    @router.post("/sites", openapi_extra=takes(Enrolment))
    async def enrol(request: Request) -> Response:
        body = await read_body(request, Enrolment)
        enrolled = await parts.changer.run(lambda change: enrol_site(change, body, parts.seeds, parts.entropy))
        # Issuing one more credential may have revoked the oldest.
        parts.claims.wake()
        return json_response({"site": enrolled.site, "creds": enrolled.creds}, 201 if enrolled.is_new else 200)

    @router.post("/sites/{name}/revoke")
    async def revoke(name: str) -> Response:
        site = await parts.changer.run(lambda change: revoke_site(change, name, parts.seeds))
        parts.claims.wake()
        parts.observed.forget([item[0].name for item in await parts.store.read(read_wanted)])
        return json_response({"site": site, "is_revoked": True})

    @router.post("/sites/{name}/resync")
    async def resync(name: str) -> Response:
        site = await parts.store.read(lambda c: read_site(c, name))
        generation = await parts.heartbeats.resync(site.name, attempts=1)
        return json_response({"site": site.name, "generation": generation})

    @router.post("/sites/{name}/cordon")
    async def cordon(name: str) -> Response:
        return json_response(await parts.changer.run(lambda change: set_cordon(change, name, is_cordoned=True)))

    @router.post("/sites/{name}/uncordon")
    async def uncordon(name: str) -> Response:
        return json_response(await parts.changer.run(lambda change: set_cordon(change, name, is_cordoned=False)))

    @router.put("/sites/{name}/data-class", openapi_extra=takes(SiteGrade))
    async def grade(name: str, request: Request) -> Response:
        most = (await read_body(request, SiteGrade)).data_class_max
        return json_response(await parts.changer.run(lambda change: set_data_class(change, name, most)))
