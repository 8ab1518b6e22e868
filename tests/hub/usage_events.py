"""Usage events and batches for tests."""

from madang.core import make_event_id, make_request_id
from madang.model import UsageEvent
from madang.wire.bus import UsageBatch, encode


def make_event(number=1, attempt=1, *, site="daegu", entry="daegu", **fields):
    """Return an event of the `number`-th request that entered at `entry`; `fields` replace any of it."""
    request_id = make_request_id(entry, 1_790_000_000_000 + number, bytes(6) + number.to_bytes(4, "big"))
    values = {
        "event_id": make_event_id(request_id, attempt),
        "request_id": request_id,
        "attempt": attempt,
        "tenant_id": "clinic",
        "key_id": "k1",
        "service": "chat",
        "model": "m",
        "endpoint": "/v1/chat/completions",
        "entry_site": entry,
        "site": site,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "started_at_s": 1_790_000_000.25,
        "duration_s": 0.5,
        "ttft_s": 0.1,
    }
    return UsageEvent(**{**values, **fields})


def make_batch(site, *events):
    """Return the bytes of a batch that names `site`."""
    return encode(UsageBatch(site=site, batch_id="b", events=events))
