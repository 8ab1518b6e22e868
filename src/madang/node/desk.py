"""The chip desk: gives chips to engines, takes them back, and cordons the bad ones; all of it survives the program.

Owns `<state>/chips.json`: leases, what idle chips look like, and the cordons of this node's own rules. Refuses to
decide (`machine.chip_lease` and `machine.chip_watch` do) and to read chips (the chip book does). Called by the node
program, the chip book and the keepers of replicas. What is decided is on disk before anybody acts on it.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import msgspec

from madang.core import ChipId, Clock, Conflict, ReplicaId, Unavailable
from madang.machine.chip_lease import LeaseRules, LeaseTable, resume, step, strip
from madang.machine.chip_lease_events import (
    Acquire,
    Adopt,
    Dismissed,
    Effect,
    Event,
    Freed,
    Gone,
    Granted,
    Hold,
    Leaving,
    Lift,
    Refused,
    Seen,
    Staying,
    Tick,
)
from madang.machine.chip_watch import ChipTrack, WatchRules, may_cordon_for_deaths, note_death, note_reading
from madang.model import Chip, ChipCordon, ChipLease, CordonCause, ReplicaSpec
from madang.policy.allocation import is_shared
from madang.runtime.files import replace_file
from madang.runtime.telemetry import EventLog

_TICK_S = 1.0
_BY_RULE = "node"


class DeskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk."""

    table: LeaseTable
    cordons: tuple[ChipCordon, ...] = ()
    version: int = 1


class ChipDesk:
    """The desk of one node.

    Args:
        state_dir: where `chips.json` lies.
        clock: time.
        log: gets refusals, cordons and their end.
        on_change: called when leases or cordons changed.
        on_freed: called when chips can be leased again.
        lease_rules, watch_rules: bounds.
    """

    def __init__(
        self,
        state_dir: Path,
        clock: Clock,
        log: EventLog,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_freed: Callable[[], None] = lambda: None,
        lease_rules: LeaseRules | None = None,
        watch_rules: WatchRules | None = None,
    ) -> None:
        self._path = state_dir / "chips.json"
        self._clock = clock
        self._log = log
        self._on_change = on_change
        self._on_freed = on_freed
        self._rules = lease_rules or LeaseRules()
        self._watch = watch_rules or WatchRules()
        self._table = LeaseTable()
        self._cordons: dict[tuple[ChipId, CordonCause], ChipCordon] = {}
        self._tracks: dict[ChipId, ChipTrack] = {}
        self._deaths: dict[tuple[ChipId, tuple[int, ...]], ChipTrack] = {}
        self._seen = b""
        self._trouble = ""

    def load(self) -> None:
        """Take what an earlier life left; a damaged file is put aside, for engines that run are found without it."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            record = msgspec.json.decode(data, type=DeskRecord)
        except msgspec.MsgspecError as error:
            aside = self._path.with_suffix(".damaged")
            self._path.replace(aside)
            self._log.error("chip_records_damaged", kept_as=str(aside), reason=str(error))
            return
        self._seen = data
        self._table = resume(record.table, self._clock.monotonic_ns())
        self._cordons = {(cordon.chip_id, cordon.cause): cordon for cordon in record.cordons}

    async def run(self) -> None:
        """Notice that time has passed, for ever."""
        while True:
            self._feed(Tick())
            await asyncio.sleep(_TICK_S)

    # What others see

    @property
    def leases(self) -> tuple[ChipLease, ...]:
        """Return every lease."""
        return self._table.show()

    @property
    def cordons(self) -> tuple[ChipCordon, ...]:
        """Return every cordon of this node's rules, by chip and cause."""
        return tuple(self._cordons[key] for key in sorted(self._cordons))

    @property
    def is_waiting(self) -> bool:
        """Return whether a chip waits for a reading."""
        return self._table.is_waiting

    def lock_files(self, spec: ReplicaSpec) -> tuple[str, ...]:
        """Return the files that the shim of an engine on these chips locks: the kernel lets no second one in.

        One for each core of each chip that is not shared. Raises Unavailable when their folder cannot be made.
        """
        folder = Path(os.path.abspath(self._path.parent)) / "locks"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot create {folder}: {error.strerror}") from error
        chips = [chip for chip_id in spec.chip_ids if (chip := self._table.chips.get(chip_id)) is not None]
        return tuple(
            str(folder / f"{quote(chip.chip_id, safe='')}.{core}")
            for chip in chips
            if not is_shared(chip)
            for core in (spec.cores or range(chip.cores))
        )

    # Leases

    def acquire(self, spec: ReplicaSpec) -> None:
        """Lease a replica's chips to it; raises Conflict saying why not, Unavailable when that cannot be stored."""
        effects = self._feed(_ask(Acquire, spec), is_strict=True)
        refused = next((effect for effect in effects if isinstance(effect, Refused)), None)
        if refused is not None:
            raise Conflict(refused.reason, next_step="it is tried again as soon as that has changed")

    def adopt(self, spec: ReplicaSpec) -> bool:
        """Note whose chips a running engine is on; return False when it must be ended, since another one has them."""
        effects = self._feed(_ask(Adopt, spec))
        for effect in effects:
            if isinstance(effect, Refused):
                self._log.error("engine_not_adopted", replica_id=spec.replica_id, reason=effect.reason)
        return any(isinstance(effect, Granted) for effect in effects)

    def list_holders(self) -> list[ReplicaId]:
        """Return the replicas whose engines may exist."""
        return self._table.holders_with_engine()

    def leaving(self, holder: ReplicaId) -> None:
        """Note that an engine is being ended."""
        self._feed(Leaving(holder))

    def staying(self, holder: ReplicaId) -> None:
        """Note that an engine serves after all."""
        self._feed(Staying(holder))

    def gone(self, holder: ReplicaId) -> None:
        """Note that no process of an engine lives."""
        self._feed(Gone(holder))

    # Readings and cordons

    def see(self, chips: tuple[Chip, ...], asked_ns: int) -> None:
        """Take what one driver answered."""
        now_ns = self._clock.monotonic_ns()
        for chip in chips:
            track = self._tracks.get(chip.chip_id, ChipTrack())
            self._tracks[chip.chip_id], found = note_reading(track, chip, now_ns, self._watch)
            for cause, reason in found:
                # A shared processor is all that its node has: slow or not, people decide about it.
                if cause is CordonCause.INCOMPATIBLE or not is_shared(chip):
                    self._cordon(chip.chip_id, cause, reason)
            if not chip.incompatibility:
                self._lift(chip.chip_id, CordonCause.INCOMPATIBLE)
        self._feed(Seen(chips, asked_ns))

    def engine_died(self, chip_ids: tuple[ChipId, ...], cores: tuple[int, ...] = ()) -> None:
        """Count the unwanted end of an engine for which its chips, or these cores, may be to blame."""
        for chip_id in chip_ids:
            chip = self._table.chips.get(chip_id)
            if chip is None or is_shared(chip):
                continue  # a processor that is shared would take everybody's engines with it
            # Each part by itself: engines on the other cores of a card say nothing of these.
            track = self._deaths.get((chip_id, cores), ChipTrack())
            self._deaths[chip_id, cores], found = note_death(track, self._clock.monotonic_ns(), self._watch)
            cordoned = frozenset(one for one, cause in self._cordons if cause is CordonCause.ENGINE_DEATHS)
            if found is None:
                continue
            if chip_id in cordoned or may_cordon_for_deaths(chip, tuple(self._table.chips.values()), cordoned):
                self._cordon(chip_id, *found, cores)
            else:
                self._log.warning("chip_not_cordoned", chip_id=chip_id, reason=f"{found[1]}, but on others as well")
        self._feed(Tick())

    def uncordon(self, chip_id: ChipId) -> int:
        """Lift every cordon of this node's rules from a chip, forget what led to them, and return how many."""
        found = [cause for one, cause in self._cordons if one == chip_id]
        for cause in found:
            self._lift(chip_id, cause)
        self._tracks.pop(chip_id, None)
        self._deaths = {place: track for place, track in self._deaths.items() if place[0] != chip_id}
        self._feed(Dismissed(chip_id))
        return len(found)

    def _cordon(self, chip_id: ChipId, cause: CordonCause, reason: str, cores: tuple[int, ...] = ()) -> None:
        known = self._cordons.get((chip_id, cause))
        if known is not None:
            # The first reason stays: later ones only count further, or concern more of the chip.
            wider = tuple(sorted({*known.cores, *cores})) if known.cores and cores else ()
            self._cordons[chip_id, cause] = msgspec.structs.replace(known, cores=wider)
            return
        self._cordons[chip_id, cause] = ChipCordon(
            chip_id=chip_id, cause=cause, reason=reason, by=_BY_RULE, since_s=self._clock.wall_s(), cores=cores
        )
        self._log.error("chip_cordoned", chip_id=chip_id, cores=cores, cause=cause.value, reason=reason)

    def _lift(self, chip_id: ChipId, cause: CordonCause) -> None:
        if self._cordons.pop((chip_id, cause), None) is not None:
            self._log.info("chip_uncordoned", chip_id=chip_id, cause=cause.value)

    # The machine

    def _feed(self, event: Event, *, is_strict: bool = False) -> tuple[Effect, ...]:
        """Take one step; strictly, it has not happened when it cannot be stored (raises Unavailable)."""
        before = self._table
        self._table, effects = step(before, event, self._clock.monotonic_ns(), self._rules)
        for effect in effects:
            match effect:
                case Hold(chip_id=chip_id, reason=reason, cores=cores):
                    self._cordon(chip_id, CordonCause.NOT_RELEASED, reason, cores)
                case Lift(chip_id=chip_id):
                    self._lift(chip_id, CordonCause.NOT_RELEASED)
        try:
            self._store()
        except Unavailable:
            if is_strict:
                self._table = before
                raise
        if any(isinstance(effect, Freed) for effect in effects):
            self._on_freed()
        return effects

    def _store(self) -> None:
        """Write what changed; raises Unavailable, said once. What was not stored is tried again with the next event.

        An older file only makes a next life more careful: it waits for chips that are free, and finds engines without
        a lease by their own records. A grant alone must be stored, which whoever asks for it sees to.
        """
        data = msgspec.json.encode(DeskRecord(table=strip(self._table), cordons=self.cordons))
        if data == self._seen:
            return
        try:
            replace_file(self._path, data, is_durable=True)
        except Unavailable as error:
            if not self._trouble:
                self._log.error("chip_records_not_stored", reason=str(error))
            self._trouble = error.message
            self._on_change()
            raise
        self._trouble = ""
        self._seen = data
        self._on_change()


def _ask(kind: type[Acquire] | type[Adopt], spec: ReplicaSpec) -> Acquire | Adopt:
    return kind(
        holder=spec.replica_id,
        chip_ids=spec.chip_ids,
        cores=spec.cores,
        memory_bytes=spec.artifact.memory_bytes,
    )
