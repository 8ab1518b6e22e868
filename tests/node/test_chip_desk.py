"""The chip desk on disk: what survives it, what does not stop it, and which readings condemn a chip."""

import io
import json

import msgspec
import pytest
from tests.node.test_node_parts import make_spec

from madang.core import ChipId, Conflict, NodeId, ReplicaId, Unavailable
from madang.machine.chip_lease import LeaseRules
from madang.machine.chip_watch import WatchRules
from madang.model import Chip, ChipHealth, ChipLeaseState, CordonCause
from madang.node.desk import ChipDesk
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog

GIB = 1024**3


class FakeClock:
    """Time that passes when a test says so."""

    def __init__(self):
        self.now_s = 1000.0

    def monotonic_ns(self):
        return round(self.now_s * 1e9)

    def wall_s(self):
        return self.now_s


class Bench:
    """A desk in a folder, and its next lives."""

    def __init__(self, folder):
        self.folder = folder
        self.clock = FakeClock()
        self.said = io.StringIO()
        self.freed = self.changes = 0
        self.start()

    def start(self):
        self.desk = ChipDesk(
            self.folder,
            self.clock,
            EventLog(SystemClock(), self.said),
            on_change=self._count_change,
            on_freed=self._count_freed,
            lease_rules=LeaseRules(),
            watch_rules=WatchRules(),
        )
        self.desk.load()
        return self

    def _count_change(self):
        self.changes += 1

    def _count_freed(self):
        self.freed += 1

    def see(self, *chips):
        self.clock.now_s += 5.0
        chips = tuple(msgspec.structs.replace(one, observed_at_s=self.clock.now_s) for one in chips)
        self.desk.see(chips, self.clock.monotonic_ns())

    def events(self):
        return [json.loads(line)["event"] for line in self.said.getvalue().splitlines()]

    def causes(self):
        return [(cordon.chip_id, cordon.cause) for cordon in self.desk.cordons]


def chip(name="n0", used=0, **changes):
    values = {"health": ChipHealth.OK, "memory_bytes": 48 * GIB, "memory_free_bytes": 48 * GIB - used, **changes}
    return Chip(chip_id=ChipId(name), node=NodeId("daegu-1"), kind="npu", model="m", **values)


def spec(replica_id="r-1", *chip_ids):
    return make_spec(replica_id, chip_ids=tuple(ChipId(name) for name in chip_ids or ("n0",)))


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.see(chip("n0"), chip("n1"))
    return made


def test_a_lease_survives_the_program(bench):
    bench.desk.acquire(spec())
    bench.start()
    (lease,) = bench.desk.leases
    assert (lease.holder, lease.chip_ids, lease.state) == ("r-1", ("n0",), ChipLeaseState.LEASED)
    assert bench.desk.list_holders() == ["r-1"]
    bench.see(chip("n0"), chip("n1"))
    with pytest.raises(Conflict, match="leased to r-1"):
        bench.desk.acquire(spec("r-2"))
    bench.desk.gone(ReplicaId("r-1"))
    assert bench.desk.is_waiting
    bench.see(chip("n0"), chip("n1"))
    assert (bench.desk.leases, bench.freed) == ((), 1)


def test_a_lease_that_cannot_be_stored_is_none(bench, tmp_path):
    # A folder in the place of the temporary file: not even root can write there.
    path = tmp_path / "chips.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(Unavailable, match=r"chips\.json"):
        bench.desk.acquire(spec())
    assert bench.desk.leases == ()
    bench.see(chip("n0", health=ChipHealth.FAILED, reason="lost"))  # and nothing else stops
    assert bench.events().count("chip_records_not_stored") == 1
    path.rmdir()
    bench.desk.acquire(spec("r-1", "n1"))
    assert bench.start().desk.list_holders() == ["r-1"]


def test_a_card_that_fails_three_times_is_cordoned_alone_and_only_a_person_lifts_it(bench):
    lost = chip("n1", health=ChipHealth.FAILED, reason="link down", memory_free_bytes=None)
    for _ in range(3):
        assert bench.causes() == []
        bench.see(chip("n0"), lost)
    assert bench.causes() == [("n1", CordonCause.FAILED)]
    assert "link down" in bench.desk.cordons[0].reason
    bench.see(chip("n0"), chip("n1"))
    assert bench.start().causes() == [("n1", CordonCause.FAILED)]
    assert bench.desk.uncordon(ChipId("n1")) == 1
    bench.see(chip("n0"), lost)
    assert bench.causes() == [], "what led to it is forgotten"
    assert bench.start().causes() == []


def test_versions_that_do_not_fit_cordon_until_they_do(bench):
    bench.see(chip("n0", incompatibility="driver 1, firmware 9"), chip("n1"))
    assert bench.causes() == [("n0", CordonCause.INCOMPATIBLE)]
    bench.see(chip("n0"), chip("n1"))
    assert bench.causes() == []


def test_a_shared_processor_is_not_cordoned_for_being_slow(bench):
    slow = {"health": ChipHealth.DEGRADED, "reason": "hot", "throttle_reasons": ("thermal",)}
    for _ in range(200):
        bench.see(chip("cpu0", engines_max=8, **slow), chip("n1", **slow))
    assert {name for name, _ in bench.causes()} == {"n1"}


def test_memory_that_is_not_freed_cordons_and_its_freeing_lifts_it(bench):
    bench.desk.acquire(spec())
    bench.see(chip("n0", used=40 * GIB), chip("n1"))
    bench.desk.gone(ReplicaId("r-1"))
    assert bench.desk.is_waiting
    for _ in range(12):
        bench.see(chip("n0", used=GIB), chip("n1"))
    assert not bench.desk.is_waiting, "vendors' tools are not asked every second for a card that does not come back"
    assert bench.causes() == [("n0", CordonCause.NOT_RELEASED)]
    assert bench.start().causes() == [("n0", CordonCause.NOT_RELEASED)]
    bench.see(chip("n0"), chip("n1"))
    assert (bench.causes(), bench.desk.leases) == ([], ())


def test_the_deaths_of_engines_condemn_half_of_the_cards_at_most(bench):
    bench.see(*(chip(f"n{n}") for n in range(4)), chip("cpu0", engines_max=8))
    for name in ("n0", "n1", "n2", "n3", "cpu0"):
        for _ in range(5):
            bench.desk.engine_died((ChipId(name),))
    assert bench.causes() == [("n0", CordonCause.ENGINE_DEATHS), ("n1", CordonCause.ENGINE_DEATHS)]
    assert "chip_not_cordoned" in bench.events()


def test_engines_that_die_on_one_part_of_a_card_say_nothing_of_the_others(bench):
    for _ in range(4):
        bench.desk.engine_died((ChipId("n0"),), (0, 1))
        bench.desk.engine_died((ChipId("n0"),), (2, 3))
    assert bench.causes() == []
    bench.desk.engine_died((ChipId("n0"),), (0, 1))
    (cordon,) = bench.desk.cordons
    assert (cordon.cause, cordon.cores) == (CordonCause.ENGINE_DEATHS, (0, 1))
    bench.desk.engine_died((ChipId("n0"),), (2, 3))
    assert [cordon.cores for cordon in bench.start().desk.cordons] == [(0, 1, 2, 3)]
    bench.desk.uncordon(ChipId("n0"))
    bench.desk.engine_died((ChipId("n0"),), (0, 1))
    assert bench.causes() == []


def test_readings_of_idle_cards_write_nothing(bench):
    before = bench.changes
    for used in (0, 1000, 0, 3000):
        bench.see(chip("n0", used=used), chip("n1"))
    assert bench.changes == before


def test_locks_are_one_a_core_of_chips_that_are_not_shared(bench, tmp_path):
    bench.see(chip("n0", cores=2), chip("cpu0", engines_max=8), chip("0000:03:00.0"))
    assert bench.desk.lock_files(spec("r", "cpu0")) == ()
    assert bench.desk.lock_files(spec("r", "n0")) == tuple(str(tmp_path / "locks" / f"n0.{core}") for core in (0, 1))
    part = msgspec.structs.replace(spec("r", "n0"), cores=(1,))
    assert bench.desk.lock_files(part) == (str(tmp_path / "locks" / "n0.1"),)
    assert bench.desk.lock_files(spec("r", "0000:03:00.0"))[0].endswith("0000%3A03%3A00.0.0")
