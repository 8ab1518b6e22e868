"""The site's database with its trouble known: full disk, missing permission, damage.

Owns the state "cannot be written" and its log lines, once each way. Refuses to retry: every loop has its own pace.
Called by everything that writes.
"""

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from madang.core import Fault, Unavailable
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog
from madang.site.signal import Signal

T = TypeVar("T")


class GuardedStore:
    """A store whose failures to write close admission until a write succeeds."""

    def __init__(self, store: Store, log: EventLog) -> None:
        """Watch a store.

        Attributes:
            trouble: why the last write failed, for people; empty when it did not.
            changed: rises when `trouble` begins or ends.
        """
        self._store = store
        self._log = log
        self.trouble = ""
        self.changed = Signal()

    async def write(self, action: Callable[[sa.Connection], T]) -> T:
        """Run `action` in one transaction; raises as `Store.write` does, and remembers that it did."""
        try:
            result = await self._store.write(action)
        except (Unavailable, Fault) as error:
            self._note(error.message)
            raise
        self._note("")
        return result

    async def read(self, action: Callable[[sa.Connection], T]) -> T:
        """Run `action` on a snapshot of the last commit."""
        return await self._store.read(action)

    def _note(self, trouble: str) -> None:
        if bool(trouble) == bool(self.trouble):
            return
        self.trouble = trouble
        self.changed.rise()
        if trouble:
            self._log.error("site_store_unwritable", reason=trouble)
        else:
            self._log.info("site_store_writable")
