"""A change of facts: one transaction that holds the change, its audit row and the desired state that follows.

Owns that the three never come apart. Refuses to know which changes there are. Called by the admin API's actions
and by enrolment.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from madang.core import Clock
from madang.hub.audit import AUDIT_LOG
from madang.hub.desired_store import replan
from madang.policy.desired import ItemKey
from madang.runtime.store import Store

T = TypeVar("T")

ACTOR_ADMIN = "admin"
ACTOR_HUB = "hub"


class Change:
    """What an action works with: the transaction, the instant, and a list of what it touched."""

    def __init__(self, connection: sa.Connection, now_s: float, actor: str) -> None:
        self.connection = connection
        self.now_s = now_s
        self._actor = actor
        self._touched: set[ItemKey] = set()
        self._is_all_touched = False

    @property
    def actor(self) -> str:
        """Return who acts."""
        return self._actor

    def touch(self, kind: str, item_id: str) -> None:
        """Note that a fact changed, so that its items are planned again."""
        self._touched.add((kind, item_id))

    def touch_all(self) -> None:
        """Note that the set of sites changed, so that everything is planned again."""
        self._is_all_touched = True

    def audit(self, action: str, target: str, detail: object) -> None:
        """Add an audit row."""
        AUDIT_LOG.append(
            self.connection, at_s=self.now_s, actor=self._actor, action=action, target=target, detail=detail
        )

    def write_fact(
        self, table: sa.Table, column: sa.Column[str], value: str, fact: msgspec.Struct, **extra: object
    ) -> None:
        """Store a fact under its id, new or replaced, with columns that queries need beside it."""
        spec = msgspec.json.encode(fact, order="deterministic").decode()
        done = self.connection.execute(table.update().where(column == value).values(spec=spec, **extra))
        if done.rowcount == 0:
            self.connection.execute(
                table.insert().values({column.name: value, "spec": spec, "created_at_s": self.now_s, **extra})
            )

    def finish(self) -> None:
        """Plan what was touched; part of the same transaction."""
        if self._is_all_touched:
            replan(self.connection, self.now_s)
        elif self._touched:
            replan(self.connection, self.now_s, self._touched)


class Changer:
    """Runs actions on the hub's store and wakes whoever sends desired state to the sites."""

    def __init__(self, store: Store, clock: Clock, wake: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake

    async def run(self, action: Callable[[Change], T], *, actor: str = ACTOR_ADMIN) -> T:
        """Run an action; everything it did is committed when this returns, and nothing if it raised."""
        now_s = self._clock.wall_s()

        def transact(connection: sa.Connection) -> T:
            change = Change(connection, now_s, actor)
            result = action(change)
            change.finish()
            return result

        result = await self._store.write(transact)
        self._wake()
        return result
