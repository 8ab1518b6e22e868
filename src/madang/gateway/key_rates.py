"""What a key may use in a minute and at once: the judgement, its words for clients, and the headers of their answers.

Owns the limits of one key at this site. Refuses to keep counts: `rates` does, over all workers. Called by admission.
"""

import hashlib

from madang.core import KeyId
from madang.gateway.rates import MINUTE_NS, SLOTS_MAX, Claim, Counts, RateTable, Tally
from madang.machine.rates import MINUTE_MS, clear_ms, has_room, span_text, used_of, wait_ms
from madang.model import KeyPolicy

STREAMS_RETRY_S = 1.0
"""Nobody knows when a request under way ends."""


class Excess:
    """Why a request may not begin: the limit that is used up, and when there is room again."""

    __slots__ = ("fields", "kind", "limit", "retry_after_s", "used")

    def __init__(self, kind: str, limit: int, used: int, retry_after_s: float, fields: bytes) -> None:
        """Keep it.

        Attributes:
            kind: `requests`, `tokens`, `streams`, or `slots` where no more keys can be counted.
            fields: header lines that say how the key stands.
        """
        self.kind = kind
        self.limit = limit
        self.used = used
        self.retry_after_s = retry_after_s
        self.fields = fields


class KeyRates:
    """The limits of one key."""

    __slots__ = ("_key", "_requests_max", "_streams_max", "_table", "_tally", "_template", "_tokens_max", "_words")

    def __init__(
        self,
        table: RateTable,
        key_id: KeyId,
        requests_max: int | None,
        tokens_max: int | None,
        streams_max: int | None,
    ) -> None:
        self._table = table
        self._key = int.from_bytes(hashlib.sha256(key_id.encode()).digest()[:8], "little") or 1
        self._requests_max = _BEYOND if requests_max is None else requests_max
        self._tokens_max = _BEYOND if tokens_max is None else tokens_max
        self._streams_max = _BEYOND if streams_max is None else streams_max
        self._template = _template("requests", requests_max) + _template("tokens", tokens_max)
        self._words = (2 if requests_max is not None else 0) + (1 if tokens_max is not None else 0)
        self._tally: Tally | None = None

    def admit(self, tokens: int) -> Claim | Excess:
        """Count a request in, or say which limit forbids it.

        Args:
            tokens: the most that it can use.
        """
        table, tally = self._table, self._tally
        minute, elapsed_ns = divmod(table.now_ns(), MINUTE_NS)
        elapsed_ms = elapsed_ns // 1_000_000
        if tally is None or tally.base < 0:
            tally = self._tally = table.tally_of(self._key, minute)
            if tally is None:
                return Excess("slots", SLOTS_MAX, SLOTS_MAX, STREAMS_RETRY_S, b"")
        if tally.minute != minute:
            table.turn(tally, minute)
        counts = tally.requests, tally.requests_before, tally.tokens, tally.tokens_before, tally.streams
        if table.others:
            counts = table.add_others(self._key, minute, counts)
        requests, requests_before, used, used_before, streams = counts
        # No more than both minutes together can be in use; mostly that is enough to know that there is room.
        if (
            streams >= self._streams_max
            or requests + requests_before >= self._requests_max
            or used + used_before + tokens > self._tokens_max
        ):
            excess = self._find_excess(counts, tokens, elapsed_ms)
            if excess is not None:
                return excess
        table.take(tally, tokens)
        fields = b""
        if self._words:
            reset = (2 * MINUTE_MS - elapsed_ms + 999) // 1000  # what was taken now is back when the next minute ends
            fields = self._fields(requests + 1, requests_before, used + tokens, used_before, elapsed_ms, reset, reset)
        return Claim(table, tally, tokens, fields)

    def _find_excess(self, counts: Counts, tokens: int, elapsed_ms: int) -> Excess | None:
        requests, requests_before, used, used_before, streams = counts
        found: tuple[str, int, int, float] | None = None
        if streams >= self._streams_max:
            found = "streams", self._streams_max, streams, STREAMS_RETRY_S
        else:
            for kind, limit, present, former, needed in (
                ("requests", self._requests_max, requests, requests_before, 1),
                ("tokens", self._tokens_max, used, used_before, tokens),
            ):
                in_use = used_of(present, former, elapsed_ms)
                if not has_room(in_use, needed, limit):
                    found = kind, limit, in_use, wait_ms(present, former, elapsed_ms, needed, limit) / 1000
                    break
        if found is None:
            return None
        resets = (
            -(-clear_ms(present, former, elapsed_ms) // 1000)
            for present, former in ((requests, requests_before), (used, used_before))
        )
        return Excess(*found, self._fields(requests, requests_before, used, used_before, elapsed_ms, *resets))

    def _fields(
        self,
        requests: int,
        requests_before: int,
        used: int,
        used_before: int,
        elapsed_ms: int,
        requests_reset_s: int,
        tokens_reset_s: int,
    ) -> bytes:
        """Return OpenAI's header lines for the limits that the key has."""
        words = self._words
        left = self._requests_max - (used_of(requests, requests_before, elapsed_ms) if requests_before else requests)
        for_requests = max(0, left), _RESETS[requests_reset_s]
        if words == _REQUESTS_ONLY:
            return self._template % for_requests
        left = self._tokens_max - (used_of(used, used_before, elapsed_ms) if used_before else used)
        for_tokens = max(0, left), _RESETS[tokens_reset_s]
        if words == _TOKENS_ONLY:
            return self._template % for_tokens
        return self._template % (*for_requests, *for_tokens) if words else b""


_BEYOND = 2**62
"""Stands for no limit."""
_TOKENS_ONLY, _REQUESTS_ONLY = 1, 2
_RESETS = tuple(span_text(1000 * second).encode() for second in range(2 * MINUTE_MS // 1000 + 1))


def _template(kind: str, limit: int | None) -> bytes:
    if limit is None:
        return b""
    lines = (
        f"x-ratelimit-limit-{kind}: {limit}",
        f"x-ratelimit-remaining-{kind}: %d",
        f"x-ratelimit-reset-{kind}: %b",
        "",
    )
    return "\r\n".join(lines).encode()


def rates_of(table: RateTable, policy: KeyPolicy) -> KeyRates | None:
    """Return how a key is judged, None for one without limits."""
    limits = policy.requests_per_minute, policy.tokens_per_minute, policy.streams_max
    return None if limits == (None, None, None) else KeyRates(table, policy.key_id, *limits)
