"""Who may speak to a Redfish twin: sessions and basic authentication.

Owns tokens, bounded in number and in idle time. Refuses to know resources. Called by the twin.
"""

import base64
import binascii
import hmac
import secrets

import msgspec

from madang.facility.contract import Secret

SESSIONS_MAX = 32
IDLE_S_MAX = 1800.0


class _Session(msgspec.Struct):
    session_id: str
    user: str
    used_s: float


class Sessions:
    """Sessions of one twin.

    Args:
        secret: user and `password`; without a user everybody may do all.
    """

    def __init__(self, secret: Secret) -> None:
        self._user = secret.user
        self._password = secret.words.get("password", "")
        self._by_token: dict[str, _Session] = {}
        self._made = 0

    def ids(self, now_s: float) -> dict[str, str]:
        """Return the users of the sessions there are, by the sessions' ids."""
        self._expire(now_s)
        return {one.session_id: one.user for one in self._by_token.values()}

    def open(self, user: str, password: str, now_s: float) -> tuple[str, str] | None:
        """Return id and token of a new session; None for wrong credentials or, with id "", when there are too many."""
        if not self._knows(user, password):
            return None
        self._expire(now_s)
        if len(self._by_token) >= SESSIONS_MAX:
            return "", ""
        self._made += 1
        token = secrets.token_hex(16)
        self._by_token[token] = _Session(str(self._made), user, now_s)
        return str(self._made), token

    def end(self, session_id: str) -> bool:
        """End a session; False when there is none of that id."""
        found = [token for token, one in self._by_token.items() if one.session_id == session_id]
        for token in found:
            del self._by_token[token]
        return bool(found)

    def allows(self, headers: dict[str, str], now_s: float) -> bool:
        """Return whether a request may be answered."""
        if not self._user:
            return True
        self._expire(now_s)
        session = self._by_token.get(headers.get("x-auth-token", ""))
        if session is not None:
            session.used_s = now_s
            return True
        kind, _, text = headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return self._knows(user, password)

    def _knows(self, user: str, password: str) -> bool:
        if not self._user:
            return True
        is_user = hmac.compare_digest(user.encode(), self._user.encode())
        return hmac.compare_digest(password.encode(), self._password.encode()) and is_user

    def _expire(self, now_s: float) -> None:
        old = [token for token, one in self._by_token.items() if now_s - one.used_s > IDLE_S_MAX]
        for token in old:
            del self._by_token[token]
