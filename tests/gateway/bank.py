"""What a site process does with its workers' purses, as far as a gateway sees it: pots, grants, hints, recalls."""

import time
from pathlib import Path

from tests.gateway.lab import wait_until

from madang.machine.lease_periods import span_of
from madang.model.lease import Period, PotKey, Scope
from madang.policy.pricing import kst_day, kst_month
from madang.runtime.files import replace_file
from madang.site.leases.tables import SlotState, WorkerTables, open_tables
from madang.wire.purse import DIRECTORY_FILE, PotEntry, PurseDirectory, encode_directory

FOREVER_S = 4e9


class Bank:
    """The test's hand in place of the site process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pots: list[PotEntry] = []
        self.states: dict[tuple[int, int], SlotState] = {}
        self._tables: dict[int, WorkerTables] = {}

    def add(
        self,
        account: str,
        *,
        scope: Scope = Scope.TENANT,
        period: Period = Period.MONTH,
        is_overdraw: bool = False,
        starts_at_s: float = 0.0,
        ends_at_s: float = FOREVER_S,
        label: str = "x",
    ) -> PotEntry:
        """Tell workers of a pot."""
        key = PotKey(scope=scope, account=account, period=period, label=label, is_overdraw=is_overdraw)
        slot = len(self.pots)
        entry = PotEntry(key=key, number=1000 + slot, slot=slot, starts_at_s=starts_at_s, ends_at_s=ends_at_s)
        self.pots.append(entry)
        replace_file(self.folder / DIRECTORY_FILE, encode_directory(PurseDirectory(pots=tuple(self.pots))))
        return entry

    def tables(self, worker: int = 0) -> WorkerTables:
        """A worker's tables, of its present life."""

        def find() -> WorkerTables | None:
            known = self._tables.get(worker)
            found = known if known is not None else open_tables(self.folder, worker)
            return found if found is not None and found.life else None

        found = self._tables[worker] = wait_until(find, f"worker {worker} has a purse")
        found.begin_life()
        return found

    def grant(self, pot: PotEntry, granted: int, worker: int = 0) -> None:
        """Raise what a worker was granted to this."""
        self.tables(worker).grant(pot.slot, pot.number, granted)

    def state(self, pot: PotEntry, worker: int = 0) -> SlotState:
        """What a worker says of a pot."""
        for slot, state in self.tables(worker).read_changes():
            self.states[worker, slot] = state
        return self.states.get((worker, pot.slot), SlotState(0, 0, 0, 0, 0))

    def close(self) -> None:
        for tables in self._tables.values():
            tables.close()


def present_spans() -> tuple[tuple[float, float], tuple[float, float]]:
    """When the present Korean day and month begin and end."""
    now_s = time.time()
    return span_of(Period.DAY, kst_day(now_s)), span_of(Period.MONTH, kst_month(now_s))
