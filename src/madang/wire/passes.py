"""The pass: how an entry gateway hands a request to a peer gateway.

Owns the pass's fields, its text form and its MAC. Refuses to know where session keys come from (the site
process agrees on them) and what time it is (an argument). A pass holds no key of the tenant.

On the wire the pass is the header `x-madang-pass: <base64url of msgpack>.<base64url of HMAC-SHA256>` on a POST
to the peer port with the tenant's path. The peer either refuses with a final status at once, or sends
`HTTP/1.1 102 Processing` within 1 s and again every second until the first byte of the answer, so that a hole
in the WAN is not taken for a slow prefill.
"""

import base64
import binascii
import hashlib
import hmac

import msgspec

from madang.core import KeyId, ProjectId, Rejected, RequestId, ServiceName, SiteId, TenantId
from madang.model import PriorityClass, Residency

PASS_HEADER = "x-madang-pass"
PROBE_PATH = "/probe"
"""On the peer port: HEAD is answered 200 at once, with nothing and to whoever asks, so that round trips are known."""
ACCEPT_WITHIN_S = 1.0
HEARTBEAT_PERIOD_S = 1.0
HEARTBEAT_LOST_AFTER_S = 3.0
HOPS_MAX = 1


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """What a serving gateway needs to know and may believe.

    Attributes:
        entry_site, serving_site: both ends; the MAC key belongs to this pair.
        attempt: which attempt at the request this is, from 1.
        hops: gateways passed so far, at most HOPS_MAX.
        issued_at_s, deadline_s: wall time; refused outside of it, with skew allowed by the verifier.
        body_sha256: raw digest of the request body, so that the MAC covers it.
        project_id: whose budget the entry has reserved from; empty for none.
        priority: the class that the request is served and charged in; a word of `PriorityClass`.
        charge_day: Korean day, in days since 1970-01-01, whose tariff it is charged by, so that both ends choose the
            same one at midnight; 0 leaves that to the serving site.
        covered_micro_won: what the budgets cover; what it costs beyond is overdraw. -1 where they cover all.
        is_admitted: the entry has judged limits and budgets. An entry that may not read the body cannot, and leaves
            that to the serving site.

    The last five came later: a pass without them is one of an entry that knows no money, which nobody pays for.
    """

    request_id: RequestId
    attempt: int
    tenant_id: TenantId
    key_id: KeyId
    service: ServiceName
    residency: Residency
    data_class: str
    entry_site: SiteId
    serving_site: SiteId
    hops: int
    issued_at_s: float
    deadline_s: float
    path: str
    is_stream: bool
    body_sha256: bytes
    kid: str
    version: int = 1
    project_id: ProjectId = ProjectId("")
    priority: str = PriorityClass.INTERACTIVE.value
    charge_day: int = 0
    covered_micro_won: int = -1
    is_admitted: bool = True


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, b"madang-pass-v1\n" + payload, hashlib.sha256)


def seal_pass(value: Pass, key: bytes) -> str:
    """Return the header value of a pass, authenticated under `key` (32 bytes)."""
    payload = msgspec.msgpack.encode(value)
    return f"{_b64(payload)}.{_b64(_mac(key, payload))}"


def open_pass(header: str, keys: dict[str, bytes], *, now_s: float, skew_s: float = 30.0) -> Pass:
    """Return the pass in `header`; raises Rejected when it is forged, altered, expired or too far from home.

    Args:
        header: value of `x-madang-pass`.
        keys: session keys by kid.
        now_s: wall time.
        skew_s: how far the two sites' clocks may differ.
    """
    payload_text, _, mac_text = header.partition(".")
    try:
        payload, mac = _unb64(payload_text), _unb64(mac_text)
        value = msgspec.msgpack.decode(payload, type=Pass)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise Rejected(f"pass is malformed: {error}") from error
    key = keys.get(value.kid)
    if key is None:
        raise Rejected(f"pass is under session {value.kid[:80]!r}, which this site does not hold")
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise Rejected("pass does not verify under the session key of its two sites")
    if value.version != 1:
        raise Rejected(f"pass has version {value.version}; this release knows 1")
    if not (value.issued_at_s - skew_s <= now_s <= value.deadline_s + skew_s):
        raise Rejected("pass is outside of its validity: check the clocks of both sites")
    if not 0 <= value.hops <= HOPS_MAX:
        raise Rejected(f"pass has {value.hops} hops; at most {HOPS_MAX}")
    return value


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
