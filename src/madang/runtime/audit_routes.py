"""The routes of an audit chain, the same in the admin APIs of hub and site.

Owns their parameters. Refuses to judge who may ask: the admin API they are added to does.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol, TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, Query, Response

from madang.runtime.admin_http import json_response
from madang.runtime.audit_log import ROWS_PER_PAGE_MAX, AuditFilter, AuditLog

T = TypeVar("T")
Text = Annotated[str, Query(max_length=128)]


class Store(Protocol):
    """Where the chain is read."""

    def read(self, action: Callable[[sa.Connection], T]) -> Awaitable[T]:
        """Run `action` on a snapshot of the last commit."""


def add_audit_routes(router: APIRouter, audit: AuditLog, store: Store) -> None:
    """Add `/audit`, a page of the chain, and `/audit/verify`, whether all of it holds."""

    @router.get("/audit", tags=["audit"])
    async def list_audit(
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=ROWS_PER_PAGE_MAX)] = 100,
        newest: bool = False,
        actor: Text = "",
        action: Text = "",
        target: Text = "",
    ) -> Response:
        """Rows, oldest first: of an actor, of actions that begin so, on a target; the first of them or the newest."""
        only = AuditFilter(actor=actor, action=action, target=target)
        return json_response(
            await store.read(
                lambda connection: audit.read(connection, after=after, limit=limit, is_newest=newest, only=only)
            )
        )

    @router.get("/audit/verify", tags=["audit"])
    async def verify_audit() -> Response:
        """Walk the whole chain; whoever does not believe this program reads the rows and walks them himself."""
        return json_response(await store.read(audit.verify))
