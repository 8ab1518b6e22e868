"""The life of a lease, playbook by playbook, and its bounds."""

import msgspec
import pytest

from madang.core import ChipId, NodeId, ReplicaId, s_to_ns
from madang.machine.chip_lease import LeaseRules, LeaseTable, resume, step, strip
from madang.machine.chip_lease_events import (
    Acquire,
    Adopt,
    Dismissed,
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
RULES = LeaseRules(clear_s_max=60.0, end_s_max=600.0)
A, B = ReplicaId("a"), ReplicaId("b")
N0, N1, CPU = ChipId("n0"), ChipId("n1"), ChipId("cpu0")


def chip(name, used=0, **changes):
    values = {"memory_bytes": 48 * GIB, "health": ChipHealth.OK, "memory_free_bytes": 48 * GIB - used}
    return Chip(chip_id=ChipId(name), node=NodeId("n"), kind="npu", model="m", **{**values, **changes})


class Desk:
    """Feeds one table and remembers what came out."""

    def __init__(self):
        self.table = LeaseTable()
        self.now_s = 100.0
        self.out = []

    def feed(self, event, after_s=0.0):
        self.now_s += after_s
        self.table, effects = step(self.table, event, s_to_ns(self.now_s), RULES)
        self.out = list(effects)
        return self.out

    def see(self, *chips, after_s=1.0, asked_s=None):
        """Let a reading arrive that was asked for just now, or at `asked_s`."""
        self.now_s += after_s
        asked_ns = s_to_ns(self.now_s if asked_s is None else asked_s)
        stamped = tuple(msgspec.structs.replace(one, observed_at_s=one.observed_at_s or self.now_s) for one in chips)
        return self.feed(Seen(stamped, asked_ns))

    def states(self):
        return [(lease.holder, lease.state) for lease in self.table.leases]


@pytest.fixture
def desk():
    made = Desk()
    made.see(chip("n0"), chip("n1"), chip("cpu0", engines_max=8))
    return made


def test_a_chip_is_given_to_one_and_back_when_its_memory_is_seen_free(desk):
    assert desk.feed(Acquire(A, (N0,))) == [Granted(A)]
    (refused,) = desk.feed(Acquire(B, (N0,)))
    assert refused == Refused(B, "leased to a")
    desk.see(chip("n0", used=40 * GIB))
    assert desk.feed(Gone(A)) == []
    assert "its memory was not seen to be free yet" in desk.feed(Acquire(B, (N0,)))[0].reason
    assert desk.see(chip("n0", used=40 * GIB)) == []
    assert desk.see(chip("n0")) == [Freed((N0,))]
    assert desk.feed(Acquire(B, (N0,))) == [Granted(B)]


def test_a_reading_of_before_frees_nothing(desk):
    desk.feed(Acquire(A, (N0,)))
    desk.feed(Gone(A), after_s=10)
    ended_s = desk.now_s
    assert desk.see(chip("n0"), asked_s=ended_s - 0.1) == [], "asked before the engine ended"
    old = desk.table.chips[N0]
    desk.feed(Acquire(B, (N1,)))
    desk.feed(Gone(B))
    stuck = desk.table.chips[N1]
    assert desk.see(stuck) == [], "the very reading that was known when the engine ended"
    assert desk.see(msgspec.structs.replace(old, observed_at_s=desk.now_s)) == [Freed((N0,))]


def test_a_shared_chip_is_free_at_once(desk):
    assert desk.feed(Acquire(A, (CPU,))) == [Granted(A)]
    assert desk.feed(Acquire(B, (CPU,))) == [Granted(B)]
    assert desk.feed(Gone(B)) == [Freed((CPU,))]


def test_a_chip_that_never_told_its_memory_is_free_with_its_engine(desk):
    desk.see(chip("x", memory_free_bytes=None))
    desk.feed(Acquire(A, (ChipId("x"),)))
    assert desk.feed(Gone(A)) == [Freed((ChipId("x"),))]


def test_a_chip_that_told_its_memory_and_does_not_any_more_is_not_free(desk):
    desk.feed(Acquire(A, (N0,)))
    desk.feed(Gone(A))
    assert desk.see(chip("n0", memory_free_bytes=None)) == []
    assert desk.feed(Tick(), after_s=60) == [Hold(N0, "its memory could not be read 60 s after the engine of a ended")]
    assert desk.see(chip("n0")) == [Freed((N0,)), Lift(N0)]


def test_memory_that_stays_in_use_is_held_against_the_chip_until_it_is_free(desk):
    desk.feed(Acquire(A, (N0, N1)))
    desk.feed(Gone(A))
    desk.see(chip("n0", used=GIB * 2), chip("n1"))
    (hold,) = desk.feed(Tick(), after_s=60)
    assert hold.chip_id == N0
    assert f"{2 * GIB} of {48 * GIB} bytes were still in use 60 s after" in hold.reason
    assert desk.feed(Tick(), after_s=600) == [], "said once"
    assert desk.see(chip("n0")) == [Freed((N0, N1)), Lift(N0), Lift(N1)]


def test_an_engine_that_does_not_end_is_held_against_its_chips(desk):
    desk.feed(Acquire(A, (N0,)))
    desk.feed(Leaving(A))
    assert desk.feed(Tick(), after_s=599) == []
    assert desk.feed(Tick(), after_s=1) == [Hold(N0, "the engine of a does not end")]
    assert desk.feed(Staying(A)) == [Lift(N0)]
    assert desk.states() == [(A, ChipLeaseState.LEASED)]


def test_somebody_says_that_nothing_is_on_the_chip(desk):
    desk.feed(Acquire(A, (N0,)))
    assert desk.feed(Dismissed(N0)) == [], "an engine is on it"
    desk.see(chip("n0", used=20 * GIB))
    desk.feed(Gone(A))
    desk.feed(Tick(), after_s=60)
    assert desk.feed(Dismissed(N0)) == [Freed((N0,)), Lift(N0)]
    assert desk.feed(Acquire(B, (N0,))) == [Granted(B)], "what is left there is taken for granted from now on"


def test_a_chip_that_somebody_else_uses_is_not_given(desk):
    desk.see(chip("n0", used=40 * GIB))
    (refused,) = desk.feed(Acquire(A, (N0,)))
    assert "in use by a program of somebody else" in refused.reason


def test_cores_of_one_chip_are_apart_and_cleared_apart(desk):
    sets = ((0, 1), (2, 3), (0, 1, 2, 3))
    npu = {"cores": 4, "core_sets": sets}
    desk.see(chip("n0", **npu))
    assert desk.feed(Acquire(A, (N0,), (0, 1))) == [Granted(A)]
    assert desk.feed(Acquire(B, (N0,), (2, 3))) == [Granted(B)]
    assert isinstance(desk.feed(Acquire(ReplicaId("c"), (N0,), (0, 1, 2, 3)))[0], Refused)
    desk.see(chip("n0", used=48 * GIB, **npu))
    desk.feed(Gone(A))
    assert desk.see(chip("n0", used=48 * GIB, **npu)) == []
    assert desk.see(chip("n0", used=24 * GIB, **npu)) == [Freed((N0,))]


DIVIDED = {"cores": 4, "core_sets": ((0, 1), (2, 3), (0, 1, 2, 3)), "cores_occupied": ()}


def test_a_core_that_somebody_has_open_is_not_given_back_whatever_the_memory_says(desk):
    """The neighbour uses a quarter of its share, so that what is left of the dead engine would hide in the rest."""
    desk.see(chip("n0", **DIVIDED))
    desk.feed(Acquire(A, (N0,), (0, 1)))
    desk.feed(Acquire(B, (N0,), (2, 3)))
    desk.see(chip("n0", used=30 * GIB, **{**DIVIDED, "cores_occupied": (0, 1, 2, 3)}))
    desk.feed(Gone(A))
    assert desk.see(chip("n0", used=12 * GIB, **{**DIVIDED, "cores_occupied": (0, 2, 3)})) == []
    (hold,) = desk.feed(Tick(), after_s=60)
    assert hold == Hold(N0, "cores 0 were still occupied 60 s after the engine of a ended", (0, 1))
    assert desk.see(chip("n0", used=6 * GIB, **{**DIVIDED, "cores_occupied": (2, 3)})) == [Freed((N0,)), Lift(N0)]
    assert desk.states() == [(B, ChipLeaseState.LEASED)]
    assert desk.feed(Acquire(A, (N0,), (0, 1))) == [Granted(A)]


def test_what_hid_in_a_neighbours_share_is_found_when_the_last_part_is_given_back(desk):
    desk.see(chip("n0", **DIVIDED))
    desk.feed(Acquire(A, (N0,), (0, 1)))
    desk.feed(Acquire(B, (N0,), (2, 3)))
    desk.feed(Gone(A))
    assert desk.see(chip("n0", used=20 * GIB, **{**DIVIDED, "cores_occupied": (2, 3)})) == [Freed((N0,))]
    desk.feed(Gone(B))
    assert desk.see(chip("n0", used=10 * GIB, **DIVIDED)) == []
    assert desk.see(chip("n0", **DIVIDED)) == [Freed((N0,))]


def test_cores_that_a_stranger_has_open_are_not_given_and_the_others_are(desk):
    desk.see(chip("n0", used=GIB, **{**DIVIDED, "cores_occupied": (1,)}))
    for cores in ((0, 1), ()):
        (refused,) = desk.feed(Acquire(A, (N0,), cores))
        assert refused.reason == "cores 1 of chip n0 are occupied by a program of somebody else"
    assert desk.feed(Acquire(A, (N0,), (2, 3))) == [Granted(A)]


def test_a_person_may_say_that_an_occupied_core_is_free_for_one_engine(desk):
    desk.see(chip("n0", **{**DIVIDED, "cores_occupied": (1,)}))
    desk.feed(Acquire(B, (N0,), (2, 3)))
    desk.see(chip("n0", **{**DIVIDED, "cores_occupied": (1, 2, 3)}))
    assert desk.feed(Dismissed(N0)) == []
    stored = msgspec.json.decode(msgspec.json.encode(strip(desk.table)), type=LeaseTable)
    assert resume(stored, 0).dismissed == {"n0": (1,)}
    assert desk.feed(Acquire(A, (N0,), (0, 1))) == [Granted(A)]
    desk.feed(Gone(A))
    assert desk.see(chip("n0", **{**DIVIDED, "cores_occupied": (1, 2, 3)})) == [], "its word was for what was there"
    assert desk.see(chip("n0", **{**DIVIDED, "cores_occupied": (2, 3)})) == [Freed((N0,))]


def test_a_chip_that_tells_its_cores_and_not_its_memory_is_free_when_they_are(desk):
    blind = {**DIVIDED, "memory_free_bytes": None}
    desk.see(chip("x", **blind))
    assert desk.feed(Acquire(A, (ChipId("x"),), (0, 1))) == [Granted(A)]
    desk.feed(Gone(A))
    assert desk.see(chip("x", **{**blind, "cores_occupied": (0, 1)})) == []
    assert desk.see(chip("x", **blind)) == [Freed((ChipId("x"),))]


def test_failed_and_incompatible_chips_and_half_cards_are_refused(desk):
    desk.see(
        chip("n0", health=ChipHealth.FAILED, reason="lost"),
        chip("n1", incompatibility="old driver"),
        chip("g0", group="s"),
        chip("g1", group="s"),
    )
    for chip_ids, told in (((N0,), "failed: lost"), ((N1,), "old driver"), ((ChipId("g0"),), "same card"), ((), "no")):
        (refused,) = desk.feed(Acquire(A, chip_ids))
        assert told in refused.reason


def test_a_restart_keeps_leases_and_waits_anew(desk):
    desk.feed(Acquire(A, (N0,)))
    desk.feed(Acquire(B, (N1,)))
    desk.feed(Gone(B))
    stored = msgspec.json.decode(msgspec.json.encode(strip(desk.table)), type=LeaseTable)
    desk.table = resume(stored, s_to_ns(5.0))
    desk.now_s = 5.0
    assert desk.feed(Adopt(A, (N0,))) == [Granted(A)]
    assert desk.table.holders_with_engine() == [A]
    assert desk.feed(Tick(), after_s=59) == []
    assert desk.see(chip("n1")) == [Freed((N1,))]
    assert isinstance(desk.feed(Adopt(B, (N0,)))[0], Refused), "two engines on one chip: one is ended"


def test_an_engine_that_is_found_without_a_lease_gets_one(desk):
    assert desk.feed(Adopt(A, (N0,))) == [Granted(A)]
    assert desk.states() == [(A, ChipLeaseState.LEASED)]
    assert desk.feed(Adopt(A, (N1,))) == [Granted(A)]
    assert desk.states() == [(A, ChipLeaseState.CLEARING), (A, ChipLeaseState.LEASED)]
