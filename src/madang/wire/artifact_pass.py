"""How a site proves to another one that it may have artifacts: a MAC under the session key of both.

Owns the header's form and its check. Refuses to know where session keys come from and what time it is. Sites agree on
session keys with their identities (`madang.site.kex`), so whoever is not a site of the federation, or was revoked, has
none.

On the wire: `x-madang-artifact-pass: <base64url of msgpack>.<base64url of HMAC-SHA256>`. It names the path, so that
one that was seen on the way opens nothing else, and ages within minutes; what it opens is no secret to the two sites.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

import msgspec

from madang.core import Rejected, SiteId

ARTIFACT_PASS_HEADER = "x-madang-artifact-pass"
LIFETIME_S = 120.0
"""A pass opens one request; the clocks of both sites may differ by as much."""
_HEADER_MAX = 2048


class ArtifactPass(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks whom for what, and when."""

    asking_site: SiteId
    serving_site: SiteId
    path: str
    issued_at_s: float
    kid: str
    version: int = 1


def seal_artifact_pass(value: ArtifactPass, key: bytes) -> str:
    """Return the header's value, authenticated under `key` (32 bytes)."""
    payload = msgspec.msgpack.encode(value)
    return f"{_b64(payload)}.{_b64(_mac(key, payload))}"


def open_artifact_pass(
    header: str, keys: Mapping[str, bytes], *, serving_site: str, path: str, now_s: float
) -> ArtifactPass:
    """Return the pass in `header`; raises Rejected when it is forged, aged, or for something else.

    Args:
        header: value of `x-madang-artifact-pass`.
        keys: session keys by kid.
        serving_site: who is asked.
        path: what is asked for.
        now_s: wall time.
    """
    payload_text, _, mac_text = header[:_HEADER_MAX].partition(".")
    try:
        payload, mac = _unb64(payload_text), _unb64(mac_text)
        value = msgspec.msgpack.decode(payload, type=ArtifactPass)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise Rejected(f"artifact pass is malformed: {error}") from error
    key = keys.get(value.kid)
    if key is None:
        raise Rejected(f"artifact pass is under session {value.kid[:80]!r}, which this site does not hold")
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise Rejected("artifact pass does not verify under the session key of its two sites")
    if value.version != 1:
        raise Rejected(f"artifact pass has version {value.version}; this release knows 1")
    if (value.serving_site, value.path) != (serving_site, path):
        raise Rejected(f"artifact pass is for {value.path[:200]} of site {value.serving_site[:40]}")
    if abs(now_s - value.issued_at_s) > LIFETIME_S:
        raise Rejected("artifact pass is too old: check the clocks of both sites")
    return value


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, b"madang-artifact-pass-v1\n" + payload, hashlib.sha256)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
