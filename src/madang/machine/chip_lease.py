"""Who holds which chip of a node: given to one engine at a time, and given on only when its memory is seen to be free.

Owns every decision about the leases of one node. Refuses to touch devices, files, processes and clocks: the node's
chip desk feeds events in, stores the table before it acts, and performs the effects.

    state    | engine    | left by
    ---------|-----------|--------------------------------------------------------------------------------------
    (none)   | no        | acquire -> leased; adopt -> leased
    leased   | may exist | leaving -> draining; gone -> clearing
    draining | may exist | staying -> leased; gone -> clearing; after end_s_max the chips are cordoned and stay held
    clearing | no        | memory of every chip seen free -> (none); dismissed -> (none); after clear_s_max the chips
             |           | that were not are cordoned and stay held until they are

Invariants: a chip that is not shared, or a core of it, is in one lease at most; a card is leased whole; a replica has
one lease with an engine at most; no lease with an engine ends without Gone; a chip that does not come back is
cordoned within a bounded time and the cordon lifted when it does.

A chip that tells which of its cores are occupied gives no core back, and none away, that somebody still has open.

Memory counts as free in a reading that was asked for after the engine's end (one that a driver repeats is as old as
it was the first time), when at least as much is free as the chip showed while nobody had it, less a slack, less the
shares of leases on other cores that were there when it was asked for. Memory is told of the chip and not of its cores:
what an engine left behind may hide in a share that its neighbour does not use, and is found when the last lease of the
chip ends. A chip that never told its memory is free when
the engine is gone: nothing more can be known of it. One that did tell and does not any more is not free. Shared chips
are free at once.
"""

from collections.abc import Callable

import msgspec

from madang.core import ChipId, ReplicaId, s_to_ns
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
from madang.model import Chip, ChipLease, ChipLeaseState
from madang.policy.allocation import Use, find_obstacle, have_common_core, is_shared


class LeaseRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the life of a lease.

    Attributes:
        clear_s_max: from the engine's end until its chips' memory must have been seen free.
        end_s_max: from the wish to end an engine until it must be gone; longer than any engine may drain.
        slack_ratio: share of a chip's memory by which two readings of an idle chip may differ.
        stranger_ratio: an exclusive chip that nobody leased and that has more than this share in use is somebody
            else's: vendors' tools list only the caller's own processes, memory shows all.
    """

    clear_s_max: float = 60.0
    end_s_max: float = 600.0
    slack_ratio: float = 0.02
    stranger_ratio: float = 0.1


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """One lease.

    Attributes:
        since_ns: when it came into its state.
        granted_ns: when it was given, or found in this life.
        uncleared: while clearing, chips whose memory was not seen free.
        is_held: its chips were cordoned for not coming back.
    """

    holder: ReplicaId
    chip_ids: tuple[ChipId, ...]
    cores: tuple[int, ...] = ()
    memory_bytes: int = 0
    state: ChipLeaseState = ChipLeaseState.LEASED
    since_ns: int = 0
    granted_ns: int = 0
    uncleared: tuple[ChipId, ...] = ()
    is_held: bool = False


class LeaseTable(msgspec.Struct, frozen=True, kw_only=True):
    """The leases of a node.

    Attributes:
        leases: oldest first.
        idle_free_bytes: by chip, what was free when nobody had it; a chip that is named here tells its memory.
        chips: newest reading of each chip, of this life.
        asked_ns: when it was asked for, the first time where a driver repeats itself.
        dismissed: by chip, cores that a person called free although they are told to be occupied.
    """

    leases: tuple[Lease, ...] = ()
    idle_free_bytes: dict[ChipId, int] = {}
    chips: dict[ChipId, Chip] = {}
    asked_ns: dict[ChipId, int] = {}
    dismissed: dict[ChipId, tuple[int, ...]] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether a reading is waited for; not any more for what has been cordoned for not coming back."""
        return any(lease.state is ChipLeaseState.CLEARING and not lease.is_held for lease in self.leases)

    def holders_with_engine(self) -> list[ReplicaId]:
        """Return the replicas whose engines may exist."""
        return [lease.holder for lease in self.leases if lease.state is not ChipLeaseState.CLEARING]

    def show(self) -> tuple[ChipLease, ...]:
        """Return the leases as others see them."""
        return tuple(
            ChipLease(
                holder=lease.holder,
                chip_ids=lease.chip_ids,
                cores=lease.cores,
                state=lease.state,
                memory_bytes=lease.memory_bytes,
                reason=_REASONS[lease.state],
            )
            for lease in self.leases
        )


Step = tuple[LeaseTable, tuple[Effect, ...]]

_REASONS = {
    ChipLeaseState.LEASED: "",
    ChipLeaseState.DRAINING: "its engine is ending",
    ChipLeaseState.CLEARING: "its memory was not seen to be free yet",
}


def resume(stored: LeaseTable, now_ns: int) -> LeaseTable:
    """Return the table of an earlier life of the node program: its instants mean nothing any more.

    Waiting starts anew, so every life is bounded by itself.
    """
    leases = tuple(msgspec.structs.replace(lease, since_ns=now_ns, granted_ns=now_ns) for lease in stored.leases)
    return LeaseTable(leases=leases, idle_free_bytes=stored.idle_free_bytes, dismissed=stored.dismissed)


def strip(table: LeaseTable) -> LeaseTable:
    """Return what of a table has to survive the program."""
    leases = tuple(msgspec.structs.replace(lease, since_ns=0, granted_ns=0) for lease in table.leases)
    return LeaseTable(leases=leases, idle_free_bytes=table.idle_free_bytes, dismissed=table.dismissed)


def step(table: LeaseTable, event: Event, now_ns: int, rules: LeaseRules) -> Step:
    """Return the next table and what to do; the table is to be stored before the effects are performed."""
    return _Brain(table, now_ns, rules).take(event)


class _Brain:
    """One step, with the table as it becomes."""

    def __init__(self, table: LeaseTable, now_ns: int, rules: LeaseRules) -> None:
        self.leases = list(table.leases)
        self.idle = dict(table.idle_free_bytes)
        self.chips = dict(table.chips)
        self.asked = dict(table.asked_ns)
        self.dismissed = dict(table.dismissed)
        self.now_ns = now_ns
        self.rules = rules
        self.effects: list[Effect] = []

    def take(self, event: Event) -> Step:
        match event:
            case Acquire():
                self._on_acquire(event)
            case Adopt():
                self._on_adopt(event)
            case Leaving(holder=holder):
                self._move(holder, ChipLeaseState.DRAINING)
            case Staying(holder=holder):
                self._move(holder, ChipLeaseState.LEASED)
            case Gone(holder=holder):
                self._on_gone(holder)
            case Seen():
                self._on_seen(event)
            case Dismissed(chip_id=chip_id):
                self._on_dismissed(chip_id)
            case Tick():
                pass
        self._check_bounds()
        table = LeaseTable(
            leases=tuple(self.leases),
            idle_free_bytes=self.idle,
            chips=self.chips,
            asked_ns=self.asked,
            dismissed=self.dismissed,
        )
        return table, tuple(self.effects)

    # Giving

    def _on_acquire(self, event: Acquire) -> None:
        reason = self._find_reason(event)
        if reason:
            self.effects.append(Refused(event.holder, reason))
        else:
            self._grant(event)

    def _find_reason(self, event: Acquire) -> str:
        if self._find_live(event.holder) is not None:
            return f"replica {event.holder} has an engine on this node already"
        reason = find_obstacle(event.chip_ids, event.cores, self.chips.values(), self._list_uses())
        if reason:
            return self._add_states(reason, event.chip_ids)
        reasons = (self._find_chip_reason(self.chips[chip_id], event.cores) for chip_id in event.chip_ids)
        return next(filter(None, reasons), "")

    def _find_chip_reason(self, chip: Chip, cores: tuple[int, ...]) -> str:
        """Return why a chip, or cores of it, that nobody has leased cannot be given."""
        if chip.incompatibility:
            return f"chip {chip.chip_id} must not be used: {chip.incompatibility}"
        if chip.memory_free_bytes is None and chip.chip_id in self.idle and not is_shared(chip):
            return f"the memory of chip {chip.chip_id} cannot be read now, so nobody knows whether it is free"
        if self._is_strangers(chip):
            used = chip.memory_bytes - (chip.memory_free_bytes or 0)
            return f"chip {chip.chip_id} is in use by a program of somebody else: {used} of {chip.memory_bytes} bytes"
        occupied = self._list_occupied(chip, cores)
        if occupied:
            return f"cores {occupied} of chip {chip.chip_id} are occupied by a program of somebody else"
        return ""

    def _list_occupied(self, chip: Chip, cores: tuple[int, ...]) -> str:
        """Return which of these cores (none named: of all) somebody has open, in words; empty for none or unknown."""
        if is_shared(chip) or chip.cores_occupied is None:
            return ""
        wanted = set(cores or range(chip.cores)) - set(self.dismissed.get(chip.chip_id, ()))
        return ", ".join(str(core) for core in chip.cores_occupied if core in wanted)

    def _add_states(self, reason: str, chip_ids: tuple[ChipId, ...]) -> str:
        """Say of chips that are on their way back what is waited for."""
        for lease in self.leases:
            if set(lease.chip_ids) & set(chip_ids) and _REASONS[lease.state]:
                return f"{reason}; {_REASONS[lease.state]}"
        return reason

    def _is_strangers(self, chip: Chip) -> bool:
        if is_shared(chip) or chip.memory_free_bytes is None:
            return False
        owed_bytes = self._owed_bytes(chip, self._list_leases(chip.chip_id))
        return owed_bytes - chip.memory_free_bytes > self.rules.stranger_ratio * chip.memory_bytes

    def _owed_bytes(self, chip: Chip, leases: list[Lease]) -> int:
        """Return what must be free of a chip while nobody but these leases is on it, each with its whole share."""
        asked_ns = self.asked[chip.chip_id]
        cores = sum(len(lease.cores) or chip.cores for lease in leases if lease.granted_ns < asked_ns)
        share_bytes = chip.memory_bytes * min(cores, chip.cores) // max(1, chip.cores)
        return self.idle.get(chip.chip_id, chip.memory_bytes) - share_bytes

    def _on_adopt(self, event: Adopt) -> None:
        live = self._find_live(event.holder)
        if live is not None and (live.chip_ids, live.cores) == (event.chip_ids, event.cores):
            self._replace(live, state=ChipLeaseState.LEASED, since_ns=self.now_ns)
            self.effects.append(Granted(event.holder))
            return
        if live is not None:
            self._on_gone(event.holder)
        others = [use for use in self._list_uses() if use.chip_id in event.chip_ids]
        exclusive = {chip_id for chip_id in event.chip_ids if not self._is_shared(chip_id)}
        for use in others:
            if use.chip_id in exclusive and have_common_core(use.cores, event.cores):
                self.effects.append(Refused(event.holder, f"chip {use.chip_id} is leased to {use.holder}"))
                return
        self._grant(event)

    def _grant(self, event: Acquire | Adopt) -> None:
        for chip_id in event.chip_ids:
            # From now on it is this engine that has them open, and nobody's word speaks for its end.
            self._keep_dismissed(chip_id, lambda core: bool(event.cores) and core not in event.cores)
        self.leases.append(
            Lease(
                holder=event.holder,
                chip_ids=event.chip_ids,
                cores=event.cores,
                memory_bytes=event.memory_bytes,
                since_ns=self.now_ns,
                granted_ns=self.now_ns,
            )
        )
        self.effects.append(Granted(event.holder))

    # Getting back

    def _move(self, holder: ReplicaId, state: ChipLeaseState) -> None:
        live = self._find_live(holder)
        if live is None or live.state is state:
            return
        if live.is_held:
            self._lift(live)
        self._replace(live, state=state, since_ns=self.now_ns, is_held=False)

    def _on_gone(self, holder: ReplicaId) -> None:
        live = self._find_live(holder)
        if live is None:
            return
        uncleared = tuple(chip_id for chip_id in live.chip_ids if self._must_be_seen(chip_id))
        clearing = self._replace(live, state=ChipLeaseState.CLEARING, since_ns=self.now_ns, uncleared=uncleared)
        if not uncleared:
            self._free(clearing)

    def _must_be_seen(self, chip_id: ChipId) -> bool:
        chip = self.chips.get(chip_id)
        if chip is None:
            return True  # not read in this life yet: the first reading tells what it is
        tells = chip.memory_free_bytes is not None or chip.cores_occupied is not None
        return not is_shared(chip) and (chip_id in self.idle or tells)

    def _on_seen(self, event: Seen) -> None:
        for chip in event.chips:
            known = self.chips.get(chip.chip_id)
            if known is None or known.observed_at_s != chip.observed_at_s:
                self.asked[chip.chip_id] = event.asked_ns
            self.chips[chip.chip_id] = chip
            self._note_idle(chip)
            occupied = chip.cores_occupied
            if occupied is not None:
                self._keep_dismissed(chip.chip_id, lambda core, occupied=occupied: core in occupied)  # type: ignore[misc]
        for lease in list(self.leases):
            if lease.state is ChipLeaseState.CLEARING:
                self._keep_uncleared(lease, lambda chip_id, lease=lease: not self._is_clear(lease, chip_id))  # type: ignore[misc]

    def _keep_uncleared(self, lease: Lease, is_uncleared: Callable[[ChipId], bool]) -> None:
        still = tuple(chip_id for chip_id in lease.uncleared if is_uncleared(chip_id))
        if still != lease.uncleared:
            left = self._replace(lease, uncleared=still)
            if not still:
                self._free(left)

    def _note_idle(self, chip: Chip) -> None:
        free_bytes = chip.memory_free_bytes
        if free_bytes is None or is_shared(chip):
            return
        # From now on it is known to tell its memory; empty is what it is taken to be when nobody has it.
        self.idle.setdefault(chip.chip_id, chip.memory_bytes)
        if self._list_leases(chip.chip_id) or self._list_occupied(chip, ()):
            return
        # An idle chip's memory flickers; what survives the program need not follow each reading.
        is_new = abs(free_bytes - self.idle[chip.chip_id]) > self.rules.slack_ratio * chip.memory_bytes / 2
        if is_new and not self._is_strangers(chip):
            self.idle[chip.chip_id] = free_bytes

    def _is_clear(self, lease: Lease, chip_id: ChipId) -> bool:
        chip = self.chips.get(chip_id)
        if chip is None or self.asked[chip_id] <= lease.since_ns:
            return False
        if not self._must_be_seen(chip_id):
            return True
        if self._list_occupied(chip, lease.cores):
            return False
        if chip.memory_free_bytes is None:
            return chip_id not in self.idle
        owed_bytes = self._owed_bytes(chip, [one for one in self._list_leases(chip_id) if one is not lease])
        return chip.memory_free_bytes >= owed_bytes - self.rules.slack_ratio * chip.memory_bytes

    def _on_dismissed(self, chip_id: ChipId) -> None:
        for lease in self._list_leases(chip_id):
            if lease.state is ChipLeaseState.CLEARING:
                self._keep_uncleared(lease, lambda other: other != chip_id)
        chip = self.chips.get(chip_id)
        if chip is not None and chip.cores_occupied:
            taken = {core for lease in self._list_leases(chip_id) for core in lease.cores or range(chip.cores)}
            self.dismissed[chip_id] = tuple(core for core in chip.cores_occupied if core not in taken)
        # What nobody is on shows the memory of an idle chip, however much that is.
        if chip is not None and chip.memory_free_bytes is not None and not self._list_leases(chip_id):
            self.idle[chip_id] = chip.memory_free_bytes

    def _keep_dismissed(self, chip_id: ChipId, is_kept: Callable[[int], bool]) -> None:
        kept = tuple(core for core in self.dismissed.pop(chip_id, ()) if is_kept(core))
        if kept:
            self.dismissed[chip_id] = kept

    def _free(self, lease: Lease) -> None:
        self.leases.remove(lease)
        self.effects.append(Freed(lease.chip_ids))
        if lease.is_held:
            self._lift(lease)

    def _lift(self, lease: Lease) -> None:
        held = {chip_id for other in self.leases if other.is_held and other is not lease for chip_id in other.chip_ids}
        self.effects += [Lift(chip_id) for chip_id in lease.chip_ids if chip_id not in held]

    # Bounds

    def _check_bounds(self) -> None:
        for lease in list(self.leases):
            held: list[Effect] = []
            waited_ns = self.now_ns - lease.since_ns
            if lease.is_held:
                continue
            if lease.state is ChipLeaseState.DRAINING and waited_ns >= s_to_ns(self.rules.end_s_max):
                reason = f"the engine of {lease.holder} does not end"
                held += [Hold(chip_id, reason, lease.cores) for chip_id in lease.chip_ids]
            elif lease.state is ChipLeaseState.CLEARING and waited_ns >= s_to_ns(self.rules.clear_s_max):
                held += [Hold(chip_id, self._describe_rest(chip_id, lease), lease.cores) for chip_id in lease.uncleared]
            if held:
                self.effects += held
                self._replace(lease, is_held=True)

    def _describe_rest(self, chip_id: ChipId, lease: Lease) -> str:
        """Return what is still on a chip, or on cores of it."""
        chip = self.chips.get(chip_id)
        after = f"{self.rules.clear_s_max:g} s after the engine of {lease.holder} ended"
        if chip is None or self.asked.get(chip_id, 0) < lease.since_ns:
            return f"its memory could not be read {after}"
        occupied = self._list_occupied(chip, lease.cores)
        if occupied:
            return f"cores {occupied} were still occupied {after}"
        if chip.memory_free_bytes is None:
            return f"its memory could not be read {after}"
        return f"{chip.memory_bytes - chip.memory_free_bytes} of {chip.memory_bytes} bytes were still in use {after}"

    # The table

    def _find_live(self, holder: ReplicaId) -> Lease | None:
        return next(
            (one for one in self.leases if one.holder == holder and one.state is not ChipLeaseState.CLEARING), None
        )

    def _list_leases(self, chip_id: ChipId) -> list[Lease]:
        return [lease for lease in self.leases if chip_id in lease.chip_ids]

    def _list_uses(self) -> list[Use]:
        return [
            Use(chip_id=chip_id, holder=lease.holder, cores=lease.cores)
            for lease in self.leases
            for chip_id in lease.chip_ids
        ]

    def _is_shared(self, chip_id: ChipId) -> bool:
        chip = self.chips.get(chip_id)
        return chip is not None and is_shared(chip)

    def _replace(self, lease: Lease, **changes: object) -> Lease:
        changed = msgspec.structs.replace(lease, **changes)
        # By identity: two leases may be equal only in what they say.
        place = next(index for index, one in enumerate(self.leases) if one is lease)
        self.leases[place] = changed
        return changed
