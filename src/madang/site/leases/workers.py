"""All gateway workers' purse tables of one site: who has one, who lives, and which life is over for good.

Owns the mapped tables. Refuses to decide amounts. Called by the keeper, on its event loop.
"""

from collections.abc import Iterator
from pathlib import Path

from madang.core import Clock, ns_to_s
from madang.machine.lease import SitePot
from madang.site.leases.tables import SlotState, WorkerTables, find_workers, open_tables

LOOK_PERIOD_S = 1.0


class Workers:
    """The tables. A life that is over never comes back: another name is made for the next."""

    def __init__(self, folder: Path, boot: int, clock: Clock) -> None:
        """Know nobody yet.

        Args:
            folder: of the feed.
            boot: of the machine.
            clock: says when to look again.

        Attributes:
            live: lives whose process runs and may be given money.
        """
        self._folder = folder
        self._boot = boot
        self._clock = clock
        self._tables: dict[int, WorkerTables] = {}
        self._found: dict[int, int] | None = None
        self._looked_ns = 0
        self.live: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """Workers that live."""
        return len(self.live)

    def look(self) -> tuple[list[WorkerTables], bool]:
        """Once a LOOK_PERIOD_S: see which tables there are.

        Returns:
            Tables whose life is new to this process, and whether anything about lives changed.

        Raises:
            Unavailable: the folder cannot be read; what was known stays.
        """
        now_ns = self._clock.monotonic_ns()
        if self._looked_ns and ns_to_s(now_ns - self._looked_ns) < LOOK_PERIOD_S:
            return [], False
        found = find_workers(self._folder)
        self._looked_ns = now_ns
        has_changed = found != self._found
        self._found = found
        for worker, tables in list(self._tables.items()):
            if found.get(worker) != tables.inode:
                tables.close()
                del self._tables[worker]
        for worker in found:
            opened = None if worker in self._tables else open_tables(self._folder, worker)
            if opened is not None:
                self._tables[worker] = opened
        begun = [tables for tables in self._tables.values() if tables.begin_life()]
        live = frozenset(
            tables.life
            for tables in self._tables.values()
            if tables.life and tables.is_of(self._boot) and tables.is_live()
        )
        has_changed = has_changed or bool(begun) or live != self.live
        if live != self.live:
            self.forget()  # what a worker lacks is not kept of those that do not live
        self.live = live
        return begun, has_changed

    def is_gone(self, life: str) -> bool:
        """Return whether a life is certainly over: its table vanished, is another's, or is of before a reboot."""
        worker = int(life.partition(".")[0])
        tables = self._tables.get(worker)
        if tables is None:
            return self._found is not None and worker not in self._found
        if not tables.life:
            return False  # just being made
        return tables.life != life or not tables.is_of(self._boot)

    def read_changes(self) -> Iterator[tuple[str, int, SlotState]]:
        """Yield what workers published since the last time: life, slot, and what it says."""
        for tables in self._tables.values():
            life = tables.life
            if life:
                for slot, state in tables.read_changes():
                    yield life, slot, state

    def forget(self) -> None:
        """Have every slot reported again."""
        for tables in self._tables.values():
            tables.forget()

    def publish(self, slot: int, number: int, pot: SitePot) -> None:
        """Tell each worker what it was granted of a pot, which is durable already."""
        for tables in self._tables.values():
            share = pot.shares.get(tables.life)
            if share is not None:
                tables.grant(slot, number, share.granted)

    def recall(self, slot: int, number: int, lives: frozenset[str]) -> None:
        """Ask some workers to give back what they have not reserved of a pot."""
        for tables in self._tables.values():
            if tables.life in lives:
                tables.recall(slot, number)

    def hint(self, slot: int, number: int, hint: int) -> None:
        """Tell every worker what its clients should expect of a pot."""
        for tables in self._tables.values():
            if tables.life:
                tables.hint(slot, number, hint)

    def close(self) -> None:
        """Give the tables back."""
        for tables in self._tables.values():
            tables.close()
        self._tables = {}
