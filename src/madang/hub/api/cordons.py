"""Routes that cordon nodes and chips through the hub: the order goes to the site, which owns them and carries it out.

The hub keeps nothing of it but a row in its audit log; the site has its own. A site that is cut off is asked at its
own admin API.
"""

from fastapi import APIRouter, Request, Response

from madang.core import Rejected, Unavailable
from madang.hub.enrolment import read_site
from madang.hub.parts import HubParts
from madang.runtime.admin_http import NotFound, json_response, takes
from madang.runtime.cordon_request import CordonReason, read_reason
from madang.wire.bus import CordonOrder, encode

_ACTOR = "hub:admin"
_ANSWER_S_MAX = 20.0
"""A site may have to ask a node, which it gives fifteen seconds."""


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1", tags=["observed"])

    @router.post("/sites/{site}/nodes/{node}/{verb}", openapi_extra=takes(CordonReason))
    async def change_node(site: str, node: str, verb: str, request: Request) -> Response:
        """Cordon (no new replicas), drain (those that are there leave too) or uncordon a node of a site."""
        order = CordonOrder(verb=verb, node=node, reason=await read_reason(request), actor=_ACTOR)
        return json_response(await _order(parts, site, order))

    @router.post("/sites/{site}/nodes/{node}/chips/{chip_id}/{verb}", openapi_extra=takes(CordonReason))
    async def change_chip(site: str, node: str, chip_id: str, verb: str, request: Request) -> Response:
        """Cordon one chip alone, or lift every cordon from it."""
        reason = await read_reason(request)
        order = CordonOrder(verb=verb, node=node, chip_id=chip_id, reason=reason, actor=_ACTOR)
        return json_response(await _order(parts, site, order))

    return router


async def _order(parts: HubParts, site_name: str, order: CordonOrder) -> dict[str, str]:
    site = await parts.store.read(lambda c: read_site(c, site_name))
    try:
        reply = await parts.caller.call(site.name, "cordon", encode(order), timeout_s=_ANSWER_S_MAX)
    except Unavailable as error:
        raise Unavailable(error.message, next_step=f"ask the site itself: add --site {site.name}") from error
    if not reply.is_ok:
        kind = {"not_found": NotFound, "unavailable": Unavailable}.get(reply.code, Rejected)
        raise kind(f"site {site.name}: {reply.message}")
    noun = "chip" if order.chip_id else "node"
    target = "/".join(filter(None, (site.name, order.node, order.chip_id)))
    detail = {"reason": order.reason} if order.reason else {}
    await parts.changer.run(lambda change: change.audit(f"{noun}.{order.verb}", target, detail))
    return {"site": site.name, "node": order.node, "chip_id": order.chip_id, "verb": order.verb}
