"""What the envelope allows at this instant, for those who obey it inside the site.

Owns the newest envelope and what holds when it has run out. Refuses to decide: the authority does. Read by the feed's
writer, by digests, by the planner and by the admin API; written by the authority's shell.
"""

import msgspec

from madang.core import Clock, s_to_ns
from madang.model import Envelope, NodeEnvelope, NodeState, PriorityClass

NOT_YET = "nobody has said yet what power and cooling allow"
EXPIRED = "the envelope has run out: nobody knows what power and cooling allow"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What requests are subject to.

    Attributes:
        until_ns: monotonic instant at which the envelope runs out; 0 where the site has no facility to obey.
    """

    shed_from: PriorityClass | None = None
    is_spilling: bool = False
    reason: str = ""
    until_ns: int = 0


class Allowed:
    """The newest envelope.

    Args:
        is_expected: the site has a facility; until its first envelope it is as if one had run out. False: there never
            is any, and nothing is limited.
    """

    def __init__(self, clock: Clock, *, is_expected: bool = False) -> None:
        self._clock = clock
        self._is_expected = is_expected
        self._envelope: Envelope | None = None

    @property
    def envelope(self) -> Envelope | None:
        """Return the newest envelope, run out or not."""
        return self._envelope

    def take(self, envelope: Envelope) -> bool:
        """Take a newer envelope; an older generation is refused."""
        if self._envelope is not None and envelope.generation <= self._envelope.generation:
            return False
        self._envelope = envelope
        return True

    def limits(self) -> Limits:
        """Return what requests are subject to now."""
        envelope = self._envelope
        if envelope is None:
            if not self._is_expected:
                return Limits()
            now_ns = self._clock.monotonic_ns()
            return Limits(shed_from=_stricter(None), is_spilling=True, reason=NOT_YET, until_ns=now_ns)
        left_s = envelope.valid_until_s - self._clock.wall_s()
        until_ns = self._clock.monotonic_ns() + s_to_ns(left_s)
        if left_s <= 0.0:
            return Limits(shed_from=_stricter(envelope.shed_from), is_spilling=True, reason=EXPIRED, until_ns=until_ns)
        return Limits(
            shed_from=envelope.shed_from,
            is_spilling=envelope.is_spilling,
            reason="; ".join(envelope.causes),
            until_ns=until_ns,
        )

    def nodes(self) -> dict[str, NodeEnvelope]:
        """Return the nodes that may not simply run, by name."""
        if self._envelope is None:
            return {}
        return {str(one.node): one for one in self._envelope.nodes if one.state is not NodeState.RUN}

    def accepts_placements(self) -> bool:
        """Return whether new replicas may come."""
        envelope = self._envelope
        if envelope is None:
            return not self._is_expected
        return envelope.accepts_placements and self._clock.wall_s() < envelope.valid_until_s


def _stricter(shed_from: PriorityClass | None) -> PriorityClass:
    """Return at least `batch`: what is shed already stays shed."""
    return PriorityClass.BATCH if shed_from is None else shed_from
