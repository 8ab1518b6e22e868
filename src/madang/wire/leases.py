"""Messages about money leases, on `lease.<site>`: a site asks for itself, the hub answers.

Owns their shapes and the subject. Refuses to know NATS. Decoders ignore fields that they do not know.
"""

import msgspec

from madang.core import Rejected, SiteId
from madang.model.lease import PotKey

POTS_PER_ASK_MAX = 500
LEASE_SUBJECTS = "lease.*"


class PotAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What a site says of one pot: `machine.lease.Ask`, but for who asks."""

    key: PotKey
    granted: int = 0
    returned: int = 0
    spent: int = 0
    needed: int = 0
    wished: int = 0


class LeaseAsk(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="lease_ask"):
    """What a site says of some of its pots; `life` names its database, so that a lost one is not taken for it."""

    site: SiteId
    life: str
    pots: tuple[PotAsk, ...]
    version: int = 1


class PotAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub says of one pot: `machine.lease.Grant`; `has_budget` is false where no budget is, or no right."""

    key: PotKey
    granted: int = 0
    recall: int = 0
    left: int = 0
    has_budget: bool = True


class LeaseAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="lease_answer"):
    """The hub's answer, durable there before it is sent; `error` says why there is none."""

    life: str
    pots: tuple[PotAnswer, ...] = ()
    error: str = ""
    version: int = 1


def lease_subject(site: str) -> str:
    """Return `lease.<site>`."""
    return f"lease.{site}"


_ask_decoder = msgspec.json.Decoder(LeaseAsk)
_answer_decoder = msgspec.json.Decoder(LeaseAnswer)


def encode_lease(message: LeaseAsk | LeaseAnswer) -> bytes:
    """Return the JSON bytes of a message."""
    return msgspec.json.encode(message)


def decode_ask(data: bytes) -> LeaseAsk:
    """Return the ask in `data`; raises Rejected when it is none, or one with impossible numbers."""
    try:
        ask = _ask_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(f"bus message is no lease ask: {error}") from error
    if ask.version != 1:
        raise Rejected(f"lease ask has version {ask.version}; this release knows 1")
    if len(ask.pots) > POTS_PER_ASK_MAX or not 0 < len(ask.life) <= 32:
        raise Rejected(f"lease ask has {len(ask.pots)} pots, expected at most {POTS_PER_ASK_MAX}, and a life's name")
    for pot in ask.pots:
        numbers = (pot.granted, pot.returned, pot.spent, pot.needed, pot.wished)
        if min(numbers) < 0 or max(numbers) > 2**53 or pot.returned > pot.granted:
            raise Rejected(f"lease ask for {pot.key.text[:100]!r} has impossible numbers {numbers}")
    return ask


def decode_answer(data: bytes) -> LeaseAnswer:
    """Return the answer in `data`; raises Rejected when it is none."""
    try:
        answer = _answer_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(f"bus message is no lease answer: {error}") from error
    if answer.version != 1:
        raise Rejected(f"lease answer has version {answer.version}; this release knows 1")
    return answer
