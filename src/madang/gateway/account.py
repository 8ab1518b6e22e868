"""One request's account: the tariff it is charged by, what it reserved, and how that is settled.

Owns the settling, once, by whoever first knows how the request ended. Refuses to judge whether it may begin: admission
does. Called by journeys and legs. A request is settled by its last attempt, which is the one that is billed.
"""

import msgspec

from madang.gateway.metrics import Meter
from madang.gateway.rates import Claim
from madang.gateway.reservation import Reservation
from madang.model import Outcome, Tariff
from madang.policy.pricing import charge_micro_won

CHARGE_FIELD = b"x-madang-charge"
"""What a serving site tells the entry with the end of an answer: micro-won and tokens, as in its event."""


class Account:
    """What one request costs and holds."""

    __slots__ = (
        "_claim",
        "_is_open",
        "_meter",
        "_prompt_tokens_max",
        "_reservation",
        "_worst",
        "covered",
        "day",
        "tariff",
    )

    def __init__(
        self,
        meter: Meter | None,
        tariff: Tariff | None,
        day: int = 0,
        covered: int | None = None,
        claim: Claim | None = None,
        prompt_tokens_max: int = 0,
        reservation: Reservation | None = None,
        worst: int = 0,
    ) -> None:
        """Open it.

        Attributes:
            tariff: None where nothing is charged.
            day: whose tariff it is, as in a pass.
            covered: what budgets cover of the charge, None for all of it.
        """
        self._meter = meter
        self._claim = claim
        self._reservation = reservation
        self._worst = worst
        self._prompt_tokens_max = prompt_tokens_max
        self._is_open = claim is not None or reservation is not None
        self.tariff = tariff
        self.day = day
        self.covered = covered

    @property
    def fields(self) -> bytes:
        """Header lines that say how the key stands; none for a key without such limits."""
        return b"" if self._claim is None else self._claim.fields

    @property
    def tariff_id(self) -> str:
        """What it is charged by, empty where nothing is."""
        return "" if self.tariff is None else self.tariff.tariff_id

    def charge(
        self,
        outcome: Outcome,
        prompt_tokens: int,
        completion_tokens: int,
        audio_ms: int,
        images: int = 0,
        samples: int = 0,
    ) -> int:
        """Return what an attempt costs, micro-won."""
        if self.tariff is None:
            return 0
        return charge_micro_won(self.tariff, outcome, prompt_tokens, completion_tokens, audio_ms, images, samples)

    def overdraw(self, charge: int) -> int:
        """Return the part of a charge that no budget covers."""
        return 0 if self.covered is None or charge <= self.covered else charge - self.covered

    def close(self, charge: int, tokens: int) -> None:
        """The request is over; only the first call counts."""
        if not self._is_open:
            return
        self._is_open = False
        if self._reservation is not None:
            self._reservation.settle(charge)
            if self.covered is not None and self._meter is not None:
                self._meter.overdraw_micro_won += self.overdraw(charge)
        if self._claim is not None:
            self._claim.end(tokens)

    # --- what a peer served

    def close_as_told(self, said: bytes, status: int, pieces: list[bytes], events: int) -> None:
        """Close with a peer's whole answer.

        Args:
            said: the value of CHARGE_FIELD, empty from a peer of an older release.
            status: of the answer.
            pieces: its body; none when it was a stream.
            events: that a stream had.
        """
        if not self._is_open:
            return
        charge, _, tokens = said.partition(b" ")
        if charge.isdigit() and tokens.isdigit():
            self.close(int(charge), int(tokens))
        elif status != 200:
            self.close(0, 0)
        elif pieces:
            count = _read_usage(b"".join(pieces))
            self._close_by(Outcome.COMPLETED, count.prompt_tokens, count.completion_tokens)
        else:
            self._close_by(Outcome.COMPLETED, self._prompt_tokens_max, events)

    def close_unheard(self, events: int, *, is_stream: bool) -> None:
        """Close for an answer of a peer that broke off, or whose client left: nobody will say what it cost.

        Args:
            events: that were passed on of a stream; each is about a token.
            is_stream: the client was to get a stream. Of a whole answer, and of a sound, nobody here knows how far it
                was, so all that was reserved stays spent.
        """
        if is_stream and self._prompt_tokens_max:
            self._close_by(Outcome.CLIENT_GONE, self._prompt_tokens_max if events else 0, events)
        else:
            self.close(self._worst, 0 if self._claim is None else self._claim.tokens)

    def _close_by(self, outcome: Outcome, prompt_tokens: int, completion_tokens: int) -> None:
        charge = self.charge(outcome, prompt_tokens, completion_tokens, 0)
        self.close(min(charge, self._worst), prompt_tokens + completion_tokens)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Usage = msgspec.field(default_factory=_Usage)


def _read_usage(body: bytes) -> _Usage:
    try:
        return msgspec.json.decode(body, type=_Answer).usage
    except msgspec.MsgspecError:
        return _Usage()


NO_ACCOUNT = Account(None, None)
"""Of a request that costs nothing and holds nothing; closing it does nothing."""
