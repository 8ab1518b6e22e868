"""Says once that something does not work, and once that it works again.

Owns that rule for loops that try again and again. Refuses to retry.
"""

from madang.runtime.telemetry import EventLog


class Trouble:
    """Whether a loop works, and its log of that; starts as not working, with nothing said."""

    def __init__(self, log: EventLog, *, failed: str, works: str) -> None:
        """Prepare.

        Args:
            log: where it is said.
            failed: event of a failure; a new reason is said again.
            works: event of success after failure, or of the first success.
        """
        self._log = log
        self._failed = failed
        self._works = works
        self._reason = "not tried yet"
        self.is_working = False

    @property
    def reason(self) -> str:
        """Return why it does not work; empty when it does."""
        return self._reason

    def note_failure(self, reason: str) -> None:
        """Remember a failure; the same reason in a row is said once."""
        if self.is_working or reason != self._reason:
            self._log.warning(self._failed, reason=reason)
        self.is_working, self._reason = False, reason

    def note_success(self) -> None:
        """Remember a success."""
        if not self.is_working:
            self._log.info(self._works)
        self.is_working, self._reason = True, ""
