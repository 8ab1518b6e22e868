"""Routes about money: the price book, budgets and invoices."""

from fastapi import APIRouter, Request, Response

from madang.hub import prices_admin as prices
from madang.hub.money_views import show_budgets, show_invoice
from madang.hub.parts import HubParts
from madang.runtime.admin_http import json_response, read_body, takes


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api/v1", tags=["money"])
    _add_prices(router, parts)
    _add_views(router, parts)
    return router


def _add_prices(router: APIRouter, parts: HubParts) -> None:
    @router.get("/tariffs")
    async def list_tariffs(service: str | None = None) -> Response:
        return json_response(await parts.store.read(lambda c: prices.list_tariffs(c, service)))

    @router.post("/tariffs", openapi_extra=takes(prices.TariffRequest))
    async def put_tariff(request: Request) -> Response:
        body = await read_body(request, prices.TariffRequest)
        tariff, is_new = await parts.changer.run(lambda change: prices.put_tariff(change, body))
        return json_response(tariff, 201 if is_new else 200)

    @router.delete("/tariffs/{tariff_id}")
    async def delete_tariff(tariff_id: str) -> Response:
        await parts.changer.run(lambda change: prices.delete_tariff(change, tariff_id))
        return json_response({"tariff_id": tariff_id, "is_deleted": True})


def _add_views(router: APIRouter, parts: HubParts) -> None:
    @router.get("/tenants/{tenant_id}/budgets")
    async def budgets(tenant_id: str) -> Response:
        """Budgets of a tenant and its projects in the present periods, as leased, spent and possibly overshot.

        `overshoot_max_micro_won` bounds how far spending can exceed a budget: by the overdraw, by what sites hold
        beyond a budget that was lowered, and by what they say they spent beyond what they hold. The last is not known
        before they say it: a request on its way to another site costs more than was reserved when its price is raised
        in that very moment.
        """
        now_s = parts.clock.wall_s()
        return json_response(await parts.store.read(lambda c: show_budgets(c, tenant_id, now_s)))

    @router.get("/tenants/{tenant_id}/invoice")
    async def invoice(tenant_id: str, month: str) -> Response:
        """What a tenant owes for a Korean month, `YYYY-MM`."""
        now_s = parts.clock.wall_s()
        return json_response(await parts.store.read(lambda c: show_invoice(c, tenant_id, month, now_s)))
