"""Leases under any order of deaths: the engine's, the node program's, both; readings late, repeated and missing.

The world below is what is true: which processes live, how much memory each left behind. The node program knows of it
only what it reads and what it stored. Two engines on one card or core, a card or core given with memory in use, and one
that stays held once faults cease are failures. Engines on parts of a card use half of their share, so that the card's
memory says nothing of a part: which cores are occupied does.
"""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from madang.core import ChipId, NodeId, ReplicaId, s_to_ns
from madang.machine.chip_lease import LeaseRules, LeaseTable, resume, step, strip
from madang.machine.chip_lease_events import (
    Acquire,
    Adopt,
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
from madang.model import Chip, ChipHealth, ChipLeaseState

GIB = 1024**3
MEMORY = 48 * GIB
RULES = LeaseRules()
CORES = 4
SETS = ((0, 1), (2, 3))
PLACES = (  # what a site may plan: whole chips, core sets, a card of two, a shared processor
    (("n0",), ()),
    (("n1",), ()),
    (("n1",), (0, 1)),
    (("n1",), (2, 3)),
    (("g0", "g1"), ()),
    (("cpu0",), ()),
)
HOLDERS = tuple(ReplicaId(name) for name in "abc")


class FakeMachine:
    """What is true: engines that live, and the memory that dead ones still occupy."""

    def __init__(self):
        self.engines = {}  # holder -> (chip ids, cores)
        self.left = []  # (chip id, cores, bytes) of dead engines

    def start(self, holder, chip_ids, cores):
        assert holder not in self.engines, "two engines of one replica"
        for chip_id in chip_ids:
            if chip_id == "cpu0":
                continue
            wanted = set(cores or range(CORES))
            for other_ids, other_cores in self.engines.values():
                taken = set(other_cores or range(CORES)) if chip_id in other_ids else set()
                assert not wanted & taken, f"two engines on {chip_id}"
            for left_id, left_cores, _ in self.left:
                assert left_id != chip_id or not wanted & left_cores, f"{chip_id} was given with memory in use"
        self.engines[holder] = (chip_ids, cores)

    def kill(self, holder):
        chip_ids, cores = self.engines.pop(holder)
        for chip_id in chip_ids:
            if chip_id != "cpu0":
                self.left.append((chip_id, set(cores or range(CORES)), self.share(cores)))

    def check_free(self, lease):
        assert self.engines.get(lease.holder) != (lease.chip_ids, lease.cores), "a lease ended before its engine"
        for left_id, left_cores, _ in self.left:
            is_left = left_id in lease.chip_ids and left_cores & set(lease.cores or range(CORES))
            assert not is_left, f"the lease of {left_id} ended with memory in use"

    @staticmethod
    def share(cores):
        return MEMORY * len(cores) // CORES // 2 if cores else MEMORY

    def occupied(self, name):
        open_cores = [set(cores or range(CORES)) for chip_ids, cores in self.engines.values() if name in chip_ids]
        left = [left_cores for left_id, left_cores, _ in self.left if left_id == name]
        return tuple(sorted(set().union(*open_cores, *left)))

    def read(self, at_s, *, is_blind=False):
        chips = []
        for name in ("n0", "n1", "g0", "g1", "cpu0"):
            used = sum(size for left_id, _, size in self.left if left_id == name)
            # Engines take their memory when they start.
            used += sum(self.share(cores) for chip_ids, cores in self.engines.values() if name in chip_ids)
            is_cpu = name == "cpu0"
            chips.append(
                Chip(
                    chip_id=ChipId(name),
                    node=NodeId("n"),
                    kind="cpu" if is_cpu else "npu",
                    model="m",
                    memory_bytes=MEMORY,
                    memory_free_bytes=None if is_blind else MEMORY if is_cpu else MEMORY - used,
                    engines_max=8 if is_cpu else 1,
                    health=ChipHealth.OK,
                    group="s" if name[0] == "g" else "",
                    cores=1 if is_cpu else CORES,
                    core_sets=SETS if name == "n1" else (),
                    cores_occupied=self.occupied(name) if name == "n1" and not is_blind else None,
                    observed_at_s=at_s,
                )
            )
        return tuple(chips)


class LeaseLife(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.machine = FakeMachine()
        self.now_s = 1000.0
        self.disk = msgspec.json.encode(LeaseTable())
        self.held = set()  # cordons, stored beside the table
        self.is_up = False
        self.is_lost = False
        self.table = LeaseTable()
        self.readings = []  # on their way: (asked_ns, chips)
        self.last = None
        self.born_s = 0.0
        self.start_node()

    @property
    def now_ns(self):
        return s_to_ns(self.now_s)

    def feed(self, event):
        before = self.table
        self.table, effects = step(before, event, self.now_ns, RULES)
        for lease in before.leases:
            if not any(
                (one.holder, one.chip_ids, one.cores) == (lease.holder, lease.chip_ids, lease.cores)
                for one in self.table.leases
            ):
                self.machine.check_free(lease)
        for effect in effects:
            match effect:
                case Hold(chip_id=chip_id, reason=reason):
                    assert reason
                    self.held.add(chip_id)
                case Lift(chip_id=chip_id):
                    self.held.discard(chip_id)
                case Freed() | Granted() | Refused():
                    pass
                case _:
                    raise AssertionError(effect)
        self.disk = msgspec.json.encode(strip(self.table))
        return effects

    # The node program

    @precondition(lambda self: self.is_up)
    @rule()
    def kill_node(self):
        self.is_up = False
        self.readings = []

    @precondition(lambda self: not self.is_up)
    @rule()
    def start_node(self):
        """Adopt what lives, give back what does not: as the program does before anything else."""
        self.is_up = True
        self.born_s = self.now_s
        self.table = resume(msgspec.json.decode(self.disk, type=LeaseTable), self.now_ns)
        self.now_s += 0.1
        self.feed(Seen(self.machine.read(self.now_s), self.now_ns))
        self.last = None
        for holder, (chip_ids, cores) in self.machine.engines.items():
            assert self.feed(Adopt(holder, chip_ids, cores)) == (Granted(holder),)
        for holder in self.table.holders_with_engine():
            if holder not in self.machine.engines:
                self.feed(Gone(holder))

    @precondition(lambda self: not self.is_up)
    @rule()
    def lose_records(self):
        """The file with the leases is gone; engines are found by their own records, and memory tells the rest."""
        self.disk = msgspec.json.encode(LeaseTable())
        self.held.clear()
        self.is_lost = True

    @precondition(lambda self: self.is_up)
    @rule(holder=st.integers(0, 2), place=st.sampled_from(PLACES), dies=st.sampled_from([False] * 4 + [True]))
    def launch(self, holder, place, dies):
        idle = [one for one in HOLDERS if one not in self.machine.engines]
        if not idle:
            return
        holder = idle[holder % len(idle)]
        self.feed(Gone(holder))  # the keeper saw to it that nothing of it lives
        chip_ids = tuple(ChipId(name) for name in place[0])
        granted = self.feed(Acquire(holder, chip_ids, place[1]))[0]
        if dies:
            self.kill_node()  # between the lease on disk and the process
        elif isinstance(granted, Granted):
            self.machine.start(holder, chip_ids, place[1])
        else:
            assert granted.reason

    @precondition(lambda self: self.is_up)
    @rule()
    def launch_everywhere(self):
        """Whatever is given too early is found out by asking for everything."""
        for place in PLACES:
            self.launch(0, place, False)

    @precondition(lambda self: self.is_up)
    @rule()
    def notice(self):
        """Look for the engines, as keepers do five times a second."""
        for holder in HOLDERS:
            if holder not in self.machine.engines:
                self.feed(Gone(holder))

    @precondition(lambda self: self.is_up)
    @rule(holder=st.sampled_from(HOLDERS), is_leaving=st.booleans())
    def drain(self, holder, is_leaving):
        self.feed(Leaving(holder) if is_leaving else Staying(holder))

    @precondition(lambda self: self.is_up)
    @rule(pass_s=st.sampled_from([0.2, 5.0, 61.0, 700.0]))
    def pass_time(self, pass_s):
        self.now_s += pass_s
        self.feed(Tick())

    # The machine

    @precondition(lambda self: self.machine.engines)
    @rule(holder=st.integers(0, 2), is_noticed=st.booleans())
    def kill_engine(self, holder, is_noticed):
        live = sorted(self.machine.engines)
        self.machine.kill(live[holder % len(live)])
        if is_noticed and self.is_up:
            self.notice()

    @rule()
    def free_memory(self):
        if self.machine.left:
            self.machine.left.pop(0)

    # Readings

    @precondition(lambda self: self.is_up)
    @rule(is_blind=st.sampled_from([False, False, True]))
    def ask_reading(self, is_blind):
        self.now_s += 0.1
        # Of a chip that nobody ever saw tell its memory, nobody can know that it stays silent.
        is_blind = is_blind and not self.is_lost
        self.readings.append((self.now_ns, self.machine.read(self.now_s, is_blind=is_blind)))

    @precondition(lambda self: self.is_up)
    @rule(is_blind=st.sampled_from([False, False, True]))
    def read(self, is_blind):
        self.ask_reading(is_blind)
        self.answer_reading(0.0)

    @precondition(lambda self: self.is_up and self.readings)
    @rule(delay_s=st.sampled_from([0.0, 3.0, 29.0]))
    def answer_reading(self, delay_s):
        self.now_s += delay_s
        asked_ns, chips = self.readings.pop(0)
        self.last = chips
        self.is_lost = False
        self.feed(Seen(chips, asked_ns))

    @precondition(lambda self: self.is_up)
    @rule(place=st.sampled_from(PLACES), is_late=st.booleans())
    def live_shorter_than_a_reading(self, place, is_late):
        """A reading of before an engine arrives after its end, late or once more."""
        self.ask_reading(False)
        if not is_late:
            self.answer_reading(0.0)
        self.launch(0, place, False)
        for holder in list(self.machine.engines):
            self.machine.kill(holder)
        self.notice()
        if is_late and self.readings:
            self.answer_reading(0.0)
        self.repeat_reading()

    @precondition(lambda self: self.is_up and self.last)
    @rule()
    def repeat_reading(self):
        """A driver that is stuck gives its last reading for a new one."""
        self.now_s += 0.1
        if self.last and {chip.observed_at_s for chip in self.last} == {
            chip.observed_at_s for chip in self.table.chips.values()
        }:
            self.feed(Seen(self.last, self.now_ns))

    # What must hold

    @invariant()
    def holds(self):
        if not self.is_up:
            return
        leases = self.table.leases
        for chip_id in ("n0", "n1", "g0", "g1"):
            taken = [core for one in leases if chip_id in one.chip_ids for core in one.cores or range(CORES)]
            assert len(taken) == len(set(taken)), "a core in two leases"
        for one in leases:
            assert ("g0" in one.chip_ids) == ("g1" in one.chip_ids), "half a card"
        with_engine = self.table.holders_with_engine()
        assert len(with_engine) == len(set(with_engine))
        for holder, (chip_ids, cores) in self.machine.engines.items():
            assert any((one.holder, one.chip_ids, one.cores) == (holder, chip_ids, cores) for one in leases)
        assert self.held <= {chip_id for one in leases if one.is_held for chip_id in one.chip_ids}

    def teardown(self):
        """Faults cease: whatever is left of dead engines goes, and every chip can be given again without a person."""
        if not self.is_up:
            self.start_node()
        self.machine.left = []
        self.notice()
        self.now_s += 1.0
        self.feed(Seen(self.machine.read(self.now_s), self.now_ns))
        assert {one.holder for one in self.table.leases} == set(self.machine.engines)
        assert all(one.state is not ChipLeaseState.CLEARING for one in self.table.leases)
        for holder in list(self.machine.engines):
            self.machine.kill(holder)
            self.feed(Gone(holder))
        # While their memory stays, everything that must be seen is cordoned within the bound.
        self.now_s += RULES.clear_s_max
        self.feed(Tick())
        assert all(one.is_held for one in self.table.leases)
        self.machine.left = []
        self.now_s += 1.0
        self.feed(Seen(self.machine.read(self.now_s), self.now_ns))
        assert self.table.leases == ()
        assert self.held == set()
        for index, (chip_ids, cores) in enumerate([PLACES[0], PLACES[1], PLACES[4], PLACES[5]]):
            wanted = tuple(ChipId(name) for name in chip_ids)
            assert self.feed(Acquire(ReplicaId(f"new{index}"), wanted, cores)) == (Granted(ReplicaId(f"new{index}")),)


TestLeaseLife = LeaseLife.TestCase
TestLeaseLife.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
