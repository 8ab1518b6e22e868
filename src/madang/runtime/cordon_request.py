"""The body of a request to cordon: optional, with the reason.

Owns its shape. Called by the hub's and the sites' admin APIs.
"""

import msgspec
from fastapi import Request

from madang.runtime.admin_http import read_body


class CordonReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why something is cordoned, for people."""

    reason: str = ""


async def read_reason(request: Request) -> str:
    """Return the reason in a request's body, empty without a body; raises Rejected for another body."""
    return (await read_body(request, CordonReason)).reason if await request.body() else ""
