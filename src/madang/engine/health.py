"""What an engine says at `/health`, in the shape that llama.cpp gave it and ours follow.

Owns the reading of it. Refuses to ask. Called by engine codecs and drivers.
"""

import json
from dataclasses import dataclass

_REASON_CHARS_MAX = 200
_COUNT_MAX = 1 << 31


@dataclass(frozen=True)
class Health:
    """What `GET /health` said.

    Attributes:
        state: `ready`, `loading` or `sick`.
        running, waiting: requests in flight and queued; None when it does not say.
    """

    state: str
    reason: str = ""
    running: int | None = None
    waiting: int | None = None
    is_simulated: bool = False


def parse_health(status: int, body: bytes) -> Health:
    """Return what an answer of `/health` means: 200 is ready, 503 loading, anything else sick."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    fields = value if isinstance(value, dict) else {}
    is_simulated = fields.get("is_simulated") is True
    if status == 200 and fields.get("status") == "ok":
        return Health("ready", "", _count(fields.get("running")), _count(fields.get("waiting")), is_simulated)
    error = fields.get("error")
    said = error.get("message") if isinstance(error, dict) else fields.get("reason")
    words = said[:_REASON_CHARS_MAX] if isinstance(said, str) else f"health answered {status}"
    return Health("loading" if status == 503 else "sick", words, is_simulated=is_simulated)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value <= _COUNT_MAX else None
