"""Units, ids, time and chance as arguments, error classes. Imports nothing of ours; everybody calls it."""

from madang.core.chance import Draw, draw_unit, mix64
from madang.core.clock import Clock, Entropy
from madang.core.errors import Conflict, Fault, MadangError, Rejected, Unavailable
from madang.core.ids import (
    ChipId,
    EventId,
    KeyId,
    NodeId,
    ReplicaId,
    RequestId,
    ServiceName,
    SiteId,
    TenantId,
    check_entity_id,
    check_site_name,
    make_event_id,
    make_request_id,
    parse_event_id,
    site_of_request,
)
from madang.core.units import Bytes, Generation, MicroWon, Nanoseconds, Seconds, Tokens, ns_to_s, s_to_ns

__all__ = [
    "Bytes",
    "ChipId",
    "Clock",
    "Conflict",
    "Draw",
    "Entropy",
    "EventId",
    "Fault",
    "Generation",
    "KeyId",
    "MadangError",
    "MicroWon",
    "Nanoseconds",
    "NodeId",
    "Rejected",
    "ReplicaId",
    "RequestId",
    "Seconds",
    "ServiceName",
    "SiteId",
    "TenantId",
    "Tokens",
    "Unavailable",
    "check_entity_id",
    "check_site_name",
    "draw_unit",
    "make_event_id",
    "make_request_id",
    "mix64",
    "ns_to_s",
    "parse_event_id",
    "s_to_ns",
    "site_of_request",
]
