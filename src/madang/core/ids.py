"""Names and ids: their alphabets, how they are made and taken apart.

Owns the grammar. Refuses to know who stores them. A request id names the site that the request entered; an
event id is a request id and an attempt, so no two sites can make the same one and nothing a client sends
takes part in it.
"""

import re
from typing import NewType

from madang.core.errors import Rejected

SiteId = NewType("SiteId", str)
NodeId = NewType("NodeId", str)
ChipId = NewType("ChipId", str)
ReplicaId = NewType("ReplicaId", str)
ServiceName = NewType("ServiceName", str)
TenantId = NewType("TenantId", str)
KeyId = NewType("KeyId", str)
ProjectId = NewType("ProjectId", str)
RequestId = NewType("RequestId", str)
EventId = NewType("EventId", str)

_SITE = re.compile(r"[a-z0-9_]{1,32}\Z")
# One NATS subject token or several joined by single dots; also safe as a file name and in a URL path.
_ENTITY = re.compile(r"[a-z0-9](?:[a-z0-9_-]|\.(?=[a-z0-9])){0,62}\Z")
_REQUEST = re.compile(r"(?P<site>[a-z0-9_]{1,32})-(?P<unique>[0-9a-f]{32})\Z")
_EVENT = re.compile(r"(?P<request>[a-z0-9_]{1,32}-[0-9a-f]{32})\.(?P<attempt>[1-9][0-9]?)\Z")


def check_site_name(name: str) -> SiteId:
    """Return `name` as a site id; raises Rejected unless it matches `[a-z0-9_]{1,32}`."""
    if not _SITE.match(name):
        raise Rejected(
            f"site name {name!r} is not valid: expected 1 to 32 of a-z, 0-9 and _",
            next_step="choose a name such as 'daegu' or 'gumi_2'",
        )
    return SiteId(name)


def check_entity_id(kind: str, name: str) -> str:
    """Return `name` if it can be a tenant, key, service, model or node id; raises Rejected otherwise."""
    if not _ENTITY.match(name):
        raise Rejected(
            f"{kind} name {name!r} is not valid: expected 1 to 63 of a-z, 0-9, '_', '-' and single dots, "
            "starting with a letter or digit",
            next_step=f"choose a {kind} name such as 'gumi-parts' or 'qwen2.5-coder'",
        )
    return name


def make_request_id(site: SiteId, unix_ms: int, entropy: bytes) -> RequestId:
    """Return `<site>-<32 hex>`: 48 bits of milliseconds, then 80 random bits, so ids sort by time.

    Args:
        site: the site that the request entered.
        unix_ms: wall time in milliseconds.
        entropy: at least 10 unpredictable bytes.
    """
    return RequestId(f"{site}-{unix_ms & 0xFFFFFFFFFFFF:012x}{entropy[:10].hex()}")


def site_of_request(request_id: str) -> SiteId:
    """Return the entry site that a request id names; raises Rejected when it is malformed."""
    match = _REQUEST.match(request_id)
    if match is None:
        raise Rejected(f"request id {request_id[:80]!r} is malformed: expected <site>-<32 hex digits>")
    return SiteId(match["site"])


def make_event_id(request_id: RequestId, attempt: int) -> EventId:
    """Return `<request id>.<attempt>`; attempts count from 1 to 99."""
    assert 1 <= attempt <= 99
    return EventId(f"{request_id}.{attempt}")


def parse_event_id(event_id: str) -> tuple[RequestId, int]:
    """Return the request id and attempt of an event id; raises Rejected when it is malformed."""
    match = _EVENT.match(event_id)
    if match is None:
        raise Rejected(f"event id {event_id[:80]!r} is malformed: expected <request id>.<attempt>")
    return RequestId(match["request"]), int(match["attempt"])
