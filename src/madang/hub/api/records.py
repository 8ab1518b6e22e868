"""Routes about usage and audit."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from madang.core import Rejected
from madang.hub.audit import AUDIT_LOG
from madang.hub.ledger import (
    EVENTS_PER_PAGE_MAX,
    GROUPS,
    read_events,
    read_refusals,
    sum_usage,
)
from madang.hub.parts import HubParts
from madang.hub.site_keys import read_site_keys
from madang.runtime.admin_http import json_response
from madang.runtime.audit_routes import add_audit_routes
from madang.wire.receipts import make_keys

Limit = Annotated[int, Query(ge=1, le=EVENTS_PER_PAGE_MAX)]


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes behind the token."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/usage", tags=["usage"])
    async def show_usage(
        tenant: str | None = None, since_s: float | None = None, until_s: float | None = None, group_by: str = "tenant"
    ) -> Response:
        groups = [name for name in group_by.split(",") if name]
        unknown = set(groups) - set(GROUPS)
        if unknown:
            raise Rejected(f"group_by {min(unknown)!r} is not known: expected some of {', '.join(GROUPS)}")
        span = {"tenant_id": tenant, "since_s": since_s, "until_s": until_s}
        rows, totals = await parts.store.read(
            lambda c: (sum_usage(c, **span, group_by=groups), sum_usage(c, **span, group_by=()))  # type: ignore[arg-type]
        )
        return json_response({"rows": rows if groups else totals, "totals": totals[0]})

    @router.get("/usage/events", tags=["usage"])
    async def list_events(limit: Limit = 100, after: int | None = None) -> Response:
        return json_response(await parts.store.read(lambda c: read_events(c, after=after, limit=limit)))

    @router.get("/usage/refused", tags=["usage"])
    async def list_refused(limit: Limit = 100) -> Response:
        return json_response(await parts.store.read(lambda c: read_refusals(c, limit=limit)))

    add_audit_routes(router, AUDIT_LOG, parts.store)

    @router.get("/site-keys", tags=["audit"])
    async def list_site_keys() -> Response:
        """The public keys that sites sign receipts with, those of revoked sites included."""
        keys = await parts.store.read(read_site_keys)
        return json_response(make_keys(parts.clock.wall_s(), keys))

    return router
