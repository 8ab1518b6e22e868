"""Admin routes over access records. Owns nothing; who reads them is written down in the site's audit log.

Law asks that access records be looked through every month: the audit rows are the proof that somebody did.
"""

import asyncio
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Query, Response

from madang.runtime.admin_http import json_response
from madang.runtime.signing import is_signed_by
from madang.site.access_query import Filter, Page, Verification, list_records, verify_records
from madang.site.audit import AUDIT_LOG
from madang.site.parts import SiteParts
from madang.wire.access_log import AccessRecord
from madang.wire.receipts import make_kid

RECORDS_PER_PAGE_MAX = 1000
_ACTOR = "admin"


def add_access_routes(router: APIRouter, parts: SiteParts) -> None:
    """Add the routes to the site's admin API."""

    @router.get("/access-log", tags=["records"])
    async def list_access(
        since_s: float | None = None,
        until_s: float | None = None,
        tenant: str | None = None,
        key: str | None = None,
        address: str | None = None,
        request: str | None = None,
        status: int | None = None,
        before: int | None = Query(default=None, ge=1),
        limit: int = Query(default=100, ge=1, le=RECORDS_PER_PAGE_MAX),
    ) -> Response:
        """Who asked for what, when and from where, newest first."""
        wanted = Filter(
            since_ms=None if since_s is None else round(since_s * 1000),
            until_ms=None if until_s is None else round(until_s * 1000),
            tenant=tenant,
            key=key,
            address=address,
            request=request,
            status=status,
        )
        await _audit(parts, "access.list", {**msgspec.structs.asdict(wanted), "before": before, "limit": limit})
        archive = parts.access
        entries = list(archive.chain.entries.values())
        page: Page = await asyncio.to_thread(list_records, archive.folder, entries, wanted, limit=limit, before=before)
        return json_response(
            {"records": [_show(one) for one in page.records], "before": page.before, "unreadable": page.unreadable}
        )

    @router.get("/access-log/verify", tags=["records"])
    async def verify_access(after: int = Query(default=0, ge=0)) -> Response:
        """Check a stretch of the chain of seals, and what they seal."""
        if after == 0:
            await _audit(parts, "access.verify", {})
        archive = parts.access
        kid = make_kid(archive.public_key)
        check = partial(_is_own, archive.public_key)
        found: Verification = await asyncio.to_thread(verify_records, archive.folder, archive.site, check, {kid}, after)
        row: dict[str, Any] = msgspec.to_builtins(found)
        if archive.problem and found.following is None:
            row["problems"] = [*row["problems"], archive.problem]
        return json_response(row)


def _is_own(public_key: bytes, _kid: str, signature: bytes, message: bytes) -> bool:
    return is_signed_by(public_key, signature, message)


def _show(record: AccessRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


async def _audit(parts: SiteParts, action: str, detail: dict[str, Any]) -> None:
    now_s = parts.clock.wall_s()
    given = {name: value for name, value in detail.items() if value is not None}
    await parts.store.write(
        lambda connection: AUDIT_LOG.append(
            connection, at_s=now_s, actor=_ACTOR, action=action, target=parts.settings.name, detail=given
        )
    )
