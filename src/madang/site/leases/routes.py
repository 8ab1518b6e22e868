"""The site's admin API about money: what was applied of projects, limits and prices, and what of budgets is held here.

Owns these routes. Refuses to change anything. Called by `madang.site.api`.
"""

from fastapi import APIRouter, Response

from madang.runtime.admin_http import json_response
from madang.site.parts import SiteParts


def add_lease_routes(router: APIRouter, parts: SiteParts) -> None:
    """Add the routes."""
    view, keeper = parts.view, parts.leases.keeper

    @router.get("/projects", tags=["desired"])
    async def list_projects() -> Response:
        return json_response([view.projects[name] for name in sorted(view.projects)])

    @router.get("/key-policies", tags=["desired"])
    async def list_key_policies() -> Response:
        return json_response([view.key_policies[name] for name in sorted(view.key_policies)])

    @router.get("/tariffs", tags=["desired"])
    async def list_tariffs() -> Response:
        return json_response([view.tariffs[name] for name in sorted(view.tariffs)])

    @router.get("/budgets", tags=["observed"])
    async def list_budgets(is_all: bool = False) -> Response:
        """What of each budget is held, spent and left here; of the present periods unless all are wanted."""
        return json_response(
            {
                "site": parts.settings.name,
                "life": keeper.life,
                "hub_link": parts.link.state,
                "budgets": keeper.list_budgets(is_all=is_all),
            }
        )
