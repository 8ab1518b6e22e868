"""Routes about energy: what a site's month cost, and who bears it."""

import asyncio

from fastapi import APIRouter, Response

from madang.hub.energy_view import By, EnergyQuestion, Kind, read_energy, show_energy
from madang.hub.parts import HubParts
from madang.runtime.admin_http import json_response
from madang.runtime.korean_days import korean_holidays


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1", tags=["money"])

    @router.get("/sites/{site}/energy")
    async def energy(
        site: str, month: str, by: By = "time", kind: Kind = "", tenant: str = "", trace: bool = False
    ) -> Response:
        """Energy of a Korean month by band, what it cost and who bears it; holds with the site cut off.

        Readings are of one kind: simulated ones and real ones are never billed together.
        """
        question = EnergyQuestion(site=site, month=month, by=by, kind=kind, tenant=tenant, is_traced=trace)
        facts = await parts.store.read(lambda c: read_energy(c, question))
        now_s = parts.clock.wall_s()
        return json_response(await asyncio.to_thread(show_energy, facts, question, korean_holidays, now_s))

    return router
