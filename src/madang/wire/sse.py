"""Server-sent events as inference engines send them: `data:` payloads out of a byte stream, and back.

Owns the framing (WHATWG HTML section 9.2, the part that engines use). Refuses to know what a payload means.
"""

from madang.core import Rejected

EVENT_BYTES_MAX = 1024 * 1024
"""One event; a stream with a longer one is broken, not patient."""
DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"


class SseSplitter:
    """Cuts a stream into payloads; holds back at most one unfinished event."""

    def __init__(self) -> None:
        self._held = b""

    @property
    def has_rest(self) -> bool:
        """Whether bytes of an event that is not complete are held back."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads of the events that `data` completes, in order; raises as `cut` does."""
        return split_payloads(self.cut(data))

    def cut(self, data: bytes) -> bytes:
        """Return the events that `data` completes, every line end a single LF; the rest is held back.

        Raises:
            Rejected: an event is too long.
        """
        if self._held:
            data = self._held + data
        tail = b""
        if b"\r" in data:
            # A CR at the very end waits for its LF: taken as it is, it would split one line end in two.
            if data.endswith(b"\r"):
                data, tail = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n")
        if not tail and data.endswith(b"\n\n"):
            self._held = b""
            return data
        end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        self._held = data[end:] + tail
        if len(self._held) > EVENT_BYTES_MAX:
            raise Rejected(f"the engine's stream has an event over {EVENT_BYTES_MAX} bytes")
        return data[:end]


def split_payloads(events: bytes) -> list[bytes]:
    """Return the payloads of whole events, in order.

    Comments and fields other than `data` are dropped, except `error`, the name under which some engines send a
    payload that reports a failure.
    """
    payloads = (sse_payload(event) for event in events.split(b"\n\n") if event)
    return [payload for payload in payloads if payload is not None]


def sse_payload(event: bytes) -> bytes | None:
    """Return the payload of one event, without its line ends, or None when it has none."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    return _payload(event)


def _payload(event: bytes) -> bytes | None:
    lines: list[bytes] = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name in (b"data", b"error"):
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def encode_event(payload: bytes) -> bytes:
    """Return the event that carries `payload`, which must not hold a line end."""
    return b"data: " + payload + b"\n\n"
