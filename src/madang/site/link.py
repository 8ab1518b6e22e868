"""Whether the hub is reached, judged only by what came from it.

Owns the last contact and the state that follows from it. Refuses to ask: every answer of the hub to anything is a
contact. Called by the pull agent, the forwarder and the command listener; read by heartbeats, API and metrics.
"""

from madang.core import Clock, ns_to_s
from madang.runtime.telemetry import EventLog

LINK_LOST_AFTER_S = 5.0
"""A pull is answered at least every two seconds while the link is up."""


class HubLink:
    """The link to the hub as this site sees it."""

    def __init__(self, clock: Clock, log: EventLog) -> None:
        """Start without contact in this life.

        Args:
            clock: for ages.
            log: told when the link comes and goes.

        Attributes:
            contact_wall_s: last contact, wall time; of an earlier life until there is one in this.
        """
        self._clock = clock
        self._log = log
        self._contact_ns: int | None = None
        self.contact_wall_s: float | None = None
        self._was_linked = False
        self._linked_ns = 0

    def note_contact(self) -> None:
        """Something came from the hub just now."""
        self._contact_ns = self._clock.monotonic_ns()
        self.contact_wall_s = self._clock.wall_s()
        self.check()

    def check(self) -> bool:
        """Return whether the hub is reached, and log when that has changed."""
        is_linked = (
            self._contact_ns is not None and ns_to_s(self._clock.monotonic_ns() - self._contact_ns) < LINK_LOST_AFTER_S
        )
        if is_linked != self._was_linked:
            self._was_linked = is_linked
            if is_linked:
                self._linked_ns = self._clock.monotonic_ns()
                self._log.info("hub_linked")
            else:
                self._log.warning("hub_unlinked", after_s=LINK_LOST_AFTER_S)
        return is_linked

    @property
    def state(self) -> str:
        """Return `connected`, `unreachable`, or `never_seen`."""
        if self.check():
            return "connected"
        return "never_seen" if self.contact_wall_s is None else "unreachable"

    def contact_age_s(self) -> float | None:
        """Return the age of the last contact in seconds: monotonic in this life, by wall time before; None if never."""
        if self._contact_ns is not None:
            return ns_to_s(self._clock.monotonic_ns() - self._contact_ns)
        if self.contact_wall_s is None:
            return None
        return max(0.0, self._clock.wall_s() - self.contact_wall_s)

    def linked_s(self) -> float:
        """Return for how long the hub has been reached without a break, in seconds; 0 while it is not."""
        return ns_to_s(self._clock.monotonic_ns() - self._linked_ns) if self.check() else 0.0
