"""W3C Trace Context: the header by which a request keeps one trace through several programs.

Owns its grammar (W3C Recommendation "Trace Context", section 3.2). Refuses to know what is traced or where spans go.
A header that is malformed is as good as none: the recommendation asks for a new trace, never for an error.
"""

import re

import msgspec

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
TRACESTATE_BYTES_MAX = 512
"""What section 3.3.1.5 asks a vendor to pass on at least; longer ones are dropped, as it allows."""
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_SAMPLED = 0x01


class TraceParent(msgspec.Struct, frozen=True):
    """Where a request stands in its trace.

    Attributes:
        trace_id: 16 bytes, as an integer.
        span_id: 8 bytes of the caller's span, as an integer.
        is_sampled: whether the caller may have recorded it.
    """

    trace_id: int
    span_id: int
    is_sampled: bool

    def encode(self) -> bytes:
        """Return the header's value, version 00."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, _SAMPLED if self.is_sampled else 0)


def parse_traceparent(value: bytes | None) -> TraceParent | None:
    """Return the parent that a `traceparent` value names, None for a malformed one.

    Versions after 00 may carry more after what 00 knows (section 3.2.2.1); version ff is forbidden, and so are ids of
    zeros only.
    """
    match = None if value is None else _PARENT.match(value)
    if match is None:
        return None
    version, trace_hex, span_hex, flags_hex, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    trace_id, span_id = int(trace_hex, 16), int(span_hex, 16)
    if not trace_id or not span_id:
        return None
    return TraceParent(trace_id, span_id, bool(int(flags_hex, 16) & _SAMPLED))
