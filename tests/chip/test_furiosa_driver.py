"""The furiosa driver keeps the chip contract on its twins, and tells every fault of theirs by its reason."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chip.chip_parts import HANG_S, NODE, FakeClock, read, read_one
from tests.depth import depth

from madang.chip.furiosa.driver import FuriosaDriver
from madang.chip.furiosa.twin import TOOL, FuriosaTwin
from madang.chip.host import MachineHost
from madang.chip.roster import STUCK_S
from madang.core import Conflict, ReplicaId
from madang.engine.furiosa_llm.codec import parse_devices
from madang.machine.chip_lease import LeaseRules, LeaseTable, step
from madang.machine.chip_lease_events import Acquire, Gone, Granted, Seen
from madang.model import ChipHealth
from madang.policy.allocation import Ask, Refusal, Use, choose_chips
from madang.testing.chip_contract import ChipDriverContract

GIB = 1024**3
FIRST = "furiosa-madangtwin-rngd-0000"


def make_driver(twin, clock=None, **options):
    return FuriosaDriver(NODE, clock or FakeClock(), MachineHost(twin.root, **options))


class TestRngd(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = FuriosaTwin(tmp_path, cards=4)

    def make_driver(self):
        return make_driver(self.twin)


class TestWarboy(TestRngd):
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = FuriosaTwin(tmp_path, cards=2, arch="warboy")


class TestRngdWithoutTheTool(TestRngd):
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = FuriosaTwin(tmp_path, cards=2)
        self.twin.machine.uninstall(TOOL)


@pytest.fixture
def twin(tmp_path):
    return FuriosaTwin(tmp_path)


@pytest.fixture
def pair(tmp_path):
    return FuriosaTwin(tmp_path, cards=2)


def test_a_card_is_shown_with_all_that_is_known_of_it(twin):
    twin.work(0, utilisation=0.5, memory_used_bytes=1_002_736_640)
    chip = read_one(make_driver(twin))
    assert (chip.chip_id, chip.serial, chip.pci_address) == (FIRST, "MadangTwin-RNGD-0000", "0000:81:00.0")
    assert (chip.model, chip.cores, len(chip.core_sets)) == ("RNGD", 8, 15)
    assert (chip.health, chip.reason, chip.incompatibility) == (ChipHealth.OK, "", "")
    assert (chip.memory_bytes, chip.memory_free_bytes) == (51_002_736_640, 50_000_000_000)
    assert (chip.utilisation, chip.temperature_c, chip.power_w) == (0.5, 55.98, 169.0)
    assert (chip.clock_mhz, chip.power_w_max, chip.numa_node) == (2000.0, 300.0, 0)
    assert (chip.driver_version, chip.firmware_version) == ("2026.3.1, e28c5c0", "2026.2.2, c96cc0d")
    assert (chip.sdk_version, chip.is_simulated) == ("2026.1.1", True)


def test_warboy_is_asked_in_its_own_way(tmp_path):
    chip = read_one(make_driver(FuriosaTwin(tmp_path, arch="warboy")))
    assert (chip.model, chip.cores, chip.health) == ("Warboy", 2, ChipHealth.OK)
    assert (chip.utilisation, chip.power_w, chip.memory_bytes) == (0.0, 1.37, 16 * 1024**3)
    assert chip.memory_free_bytes is None


def test_a_grant_names_the_cards_as_they_are_numbered_now(pair):
    driver = make_driver(pair)
    first, second = read(driver)
    grant = driver.grant((second, first))
    assert (grant.devices, grant.cpus) == (("npu:1", "npu:0"), (0, 1))
    pair.first_index = 4
    pair.machine.remove("/sys/class/rngd_mgmt")
    pair.refresh()
    assert list(read(driver)) == [first, second]
    assert driver.grant((second,)).devices == ("npu:5",)


def test_parts_of_a_card_are_named_as_furiosa_llm_takes_them(pair):
    driver = make_driver(pair)
    first, second = read(driver)
    assert driver.grant_cores(second, (7, 6, 5, 4)).devices == ("npu:1:4-7",)
    assert driver.grant_cores(second, (3,)).devices == ("npu:1:3",)
    assert driver.grant_cores(first, tuple(range(8))) == driver.grant((first,))
    part = driver.grant_cores(first, (0, 1))
    assert (part.cpus, part.cpu_threads) == ((0, 1), 1), "near CPUs are shared by the parts, threads by their size"
    for cores in ((), (1, 2), (0, 1, 2), (8,), (0, 0)):
        with pytest.raises(Conflict, match="are not a set that may be given; it has 0; 1; "):
            driver.grant_cores(first, cores)
    with pytest.raises(Conflict, match="are not here"):
        driver.grant_cores("furiosa-other", (0,))


def test_a_core_is_occupied_when_the_tool_or_the_kernel_driver_says_so(twin):
    driver = make_driver(twin)
    assert read_one(driver).cores_occupied == ()
    twin.cards[0].pes_occupied, twin.cards[0].memory_used_bytes = (4, 5), 9 * GIB + 1
    twin.refresh()
    chip = read_one(driver)
    assert (chip.cores_occupied, chip.memory_bytes - chip.memory_free_bytes) == ((4, 5), 9 * GIB + 1)
    answers = twin.machine._answers[TOOL]
    twin.cards[0].pes_occupied = (5, 6)
    twin.refresh()
    twin.machine.install(TOOL, answers)
    assert read_one(driver).cores_occupied == (4, 5, 6)
    twin.machine.uninstall(TOOL)
    chip = read_one(driver)
    assert (chip.cores_occupied, chip.memory_bytes - chip.memory_free_bytes) == ((5, 6), 9 * GIB + 1)
    twin.machine.garble("/sys/class/rngd_mgmt/rngd!npu0mgmt/pe_occupancy")
    assert read_one(driver).cores_occupied is None


WANTED = st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40)


@settings(max_examples=depth(40, 1000), deadline=None)
@given(wanted=WANTED)
def test_whatever_is_asked_and_given_back_no_two_engines_are_told_the_same_pe(two_cards, wanted):
    """Choice, lease machine, grant and what the engine reads in it, together: PEs of those who hold are disjoint."""
    driver, chips = two_cards
    table, held = LeaseTable(), {}
    table, _ = step(table, Seen(tuple(chips.values()), 1), 1, LeaseRules())
    for number, (cores, is_given_back) in enumerate(wanted):
        if is_given_back and held:
            holder = sorted(held)[cores % len(held)]
            del held[holder]
            table, _ = step(table, Gone(holder), 2 * number, LeaseRules())
            fresh = tuple(msgspec.structs.replace(chip, observed_at_s=number + 2.0) for chip in chips.values())
            table, _ = step(table, Seen(fresh, 2 * number + 1), 2 * number + 1, LeaseRules())
            continue
        ask = Ask(kinds=("furiosa",), cores=cores)
        leases = [(lease, chip_id) for lease in table.leases for chip_id in lease.chip_ids]
        uses = [Use(chip_id=chip_id, holder=lease.holder, cores=lease.cores) for lease, chip_id in leases]
        found = choose_chips(ask, chips.values(), uses)
        if isinstance(found, Refusal):
            continue
        holder = ReplicaId(f"r{number:03}")
        table, effects = step(table, Acquire(holder, found.chip_ids, found.cores), 2 * number, LeaseRules())
        assert effects == (Granted(holder),)
        chip_id, *rest = found.chip_ids
        grant = driver.grant_cores(chip_id, found.cores) if found.cores else driver.grant(found.chip_ids)
        held[holder] = {(card, pe) for card, pes in parse_devices(grant.devices) for pe in pes}
        assert not rest
        assert len(held[holder]) >= (cores or 8)
    told = [place for places in held.values() for place in places]
    assert len(told) == len(set(told))


@pytest.fixture(scope="module")
def two_cards(tmp_path_factory):
    driver = make_driver(FuriosaTwin(tmp_path_factory.mktemp("machine"), cards=2))
    return driver, read(driver)


def test_a_lost_card_is_failed_and_the_others_keep_their_identity(tmp_path):
    twin = FuriosaTwin(tmp_path, cards=4)
    driver = make_driver(twin)
    before = read(driver)
    twin.lose(1)
    after = read(driver)
    assert list(after) == list(before)
    lost = after["furiosa-madangtwin-rngd-0001"]
    assert (lost.health, lost.power_w, lost.memory_free_bytes) == (ChipHealth.FAILED, None, None)
    assert "lost" in lost.reason
    assert "0000:82:00.0" in lost.reason
    assert [chip.health for chip in after.values()].count(ChipHealth.OK) == 3
    with pytest.raises(Conflict):
        driver.grant((lost.chip_id,))
    assert driver.grant(("furiosa-madangtwin-rngd-0003",)).devices == ("npu:2",)


def test_a_card_that_the_bus_shows_and_the_tool_does_not_is_failed(pair):
    pair.cards[1].is_listed = False
    pair.refresh()
    chips = read(make_driver(pair))
    failed = chips["furiosa-madangtwin-rngd-0001"]
    assert (failed.health, failed.temperature_c) == (ChipHealth.FAILED, 40.98)
    assert "furiosa-smi does not list it" in failed.reason


def test_a_dead_card_is_failed(twin):
    twin.kill(0)
    chip = read_one(make_driver(twin))
    assert (chip.health, chip.reason) == (ChipHealth.FAILED, "furiosa-smi status says liveness 'dead'")


def test_a_dead_card_is_failed_without_the_tool_too(twin):
    twin.kill(0)
    twin.machine.uninstall(TOOL)
    chip = read_one(make_driver(twin))
    assert (chip.health, chip.reason) == (ChipHealth.FAILED, "the kernel driver says device_state '1', and not alive")


def test_a_throttled_card_is_degraded_with_the_vendors_reason(twin):
    twin.throttle(0)
    chip = read_one(make_driver(twin))
    assert chip.health is ChipHealth.DEGRADED
    assert chip.reason == "throttled: app_power_cap (power limit 225 W)"
    assert (chip.throttle_reasons, chip.power_w_max, chip.clock_mhz) == (("app_power_cap",), 225.0, 1700.0)


def test_a_newer_sdk_over_an_older_driver_is_incompatible(twin):
    twin.mismatch()
    chip = read_one(make_driver(twin))
    assert chip.health is ChipHealth.OK
    assert chip.incompatibility.startswith("driver 2026.3.1, e28c5c0 with model RNGD, sdk 2026.4.0")


def test_readings_that_stand_still_under_load_are_noticed(twin):
    twin.work(0)
    clock = FakeClock()
    driver = make_driver(twin, clock)
    assert read_one(driver).health is ChipHealth.OK
    clock.move(STUCK_S + 1)
    chip = read_one(driver)
    assert (chip.health, "stuck reading" in chip.reason) == (ChipHealth.DEGRADED, True)
    twin.cards[0].temperature_c += 0.01
    twin.refresh()
    assert read_one(driver).health is ChipHealth.OK


def test_an_idle_card_may_stand_still(twin):
    clock = FakeClock()
    driver = make_driver(twin, clock)
    read_one(driver)
    clock.move(10 * STUCK_S)
    assert read_one(driver).health is ChipHealth.OK


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("hang", f"furiosa-smi info --format json did not end in {HANG_S:g} s"),
        ("flood", "wrote more than"),
        ("garbage", "did not answer with a JSON array"),
        ("crash", "ended with status 101: panicked"),
        ("missing", "furiosa-smi is not installed"),
    ],
)
def test_without_the_tool_health_is_unknown_and_sysfs_gives_the_rest(twin, fault, said):
    twin.work(0, utilisation=1.0)
    twin.cards[0].temperature_c, twin.cards[0].power_w = 70.0, 273.0
    twin.refresh()
    driver = make_driver(twin, tool_s_max=30.0)
    before = read_one(driver)
    if fault == "missing":
        twin.machine.uninstall(TOOL)
    else:
        twin.machine.break_tool(TOOL, fault)
    if fault == "hang":
        driver._host = MachineHost(twin.root, tool_s_max=HANG_S)
    chip = read_one(driver)
    driver._host = MachineHost(twin.root, tool_s_max=30.0)
    assert (chip.chip_id, chip.serial) == (before.chip_id, before.serial)
    assert chip.health is ChipHealth.UNKNOWN
    assert said in chip.reason
    assert chip.utilisation is None
    assert (chip.memory_free_bytes, chip.clock_mhz) == (before.memory_free_bytes, before.clock_mhz)
    assert (chip.temperature_c, chip.power_w, chip.power_w_max) == (70.0, 273.0, 300.0)
    assert chip.driver_version == "2026.3.1, e28c5c0"
    twin.machine.break_tool(TOOL, "")
    twin.machine.install(TOOL, {})
    twin.refresh()
    assert read_one(driver).health is ChipHealth.OK


def test_without_tool_and_kernel_driver_only_the_bus_speaks(twin):
    driver = make_driver(twin)
    read_one(driver)
    twin.machine.uninstall(TOOL)
    for path in ("/sys/class/rngd_mgmt", "/sys/bus/pci/devices/0000:81:00.0/hwmon"):
        twin.machine.remove(path)
    chip = read_one(driver)
    assert (chip.chip_id, chip.health) == (FIRST, ChipHealth.UNKNOWN)
    assert (chip.temperature_c, chip.power_w, chip.utilisation) == (None, None, None)
    # A driver that starts now has never seen the serial.
    assert read_one(make_driver(twin)).chip_id == "furiosa-pci-0000-81-00-0"


def test_a_card_known_by_its_place_is_not_lost_when_its_serial_is_learnt(twin):
    twin.machine.uninstall(TOOL)
    twin.machine.remove("/sys/class/rngd_mgmt")
    driver = make_driver(twin)
    assert read_one(driver).chip_id == "furiosa-pci-0000-81-00-0"
    twin.machine.install(TOOL, {})
    twin.refresh()
    assert read_one(driver).chip_id == FIRST


def test_sensors_that_the_tool_cannot_read_come_from_hwmon_or_are_none(twin):
    twin.cards[0].power_w = twin.cards[0].temperature_c = None
    twin.refresh()
    chip = read_one(make_driver(twin))
    assert (chip.power_w, chip.temperature_c) == (38.0, 40.98)  # hwmon kept its last files
    twin.machine.remove("/sys/bus/pci/devices/0000:81:00.0/hwmon")
    chip = read_one(make_driver(twin))
    assert (chip.power_w, chip.temperature_c, chip.health) == (None, None, ChipHealth.OK)


def test_numbers_that_cannot_be_are_refused_and_named(twin):
    twin.cards[0].temperature_c, twin.cards[0].power_w = 4098.0, 0.04
    twin.refresh()
    twin.machine.remove("/sys/bus/pci/devices/0000:81:00.0/hwmon")
    chip = read_one(make_driver(twin))
    assert (chip.temperature_c, chip.power_w, chip.health) == (None, None, ChipHealth.DEGRADED)
    assert chip.reason == "not plausible, so not used: temperature 4098 °C, power 0.04 W"


def test_numbering_that_changed_between_two_sources_is_not_mixed_up(pair):
    driver = make_driver(pair)
    pair.machine.remove("/sys/class/rngd_mgmt")
    answers = dict(pair.machine._answers[TOOL])
    pair.cards.reverse()
    pair.refresh()
    pair.machine.install(TOOL, answers)
    chips = read(driver)
    assert {chip.health for chip in chips.values()} == {ChipHealth.UNKNOWN}
    assert all("number the cards differently" in chip.reason for chip in chips.values())
    assert {chip.utilisation for chip in chips.values()} == {None}


def test_two_cards_with_one_serial_are_told_apart_by_place(pair):
    pair.cards[1].serial = pair.cards[0].serial
    pair.refresh()
    assert list(read(make_driver(pair))) == ["furiosa-pci-0000-81-00-0", "furiosa-pci-0000-82-00-0"]


def test_a_function_with_virtual_functions_is_left_out_and_not_lost(pair):
    driver = make_driver(pair)
    assert len(read(driver)) == 2
    pair.machine.write("/sys/bus/pci/devices/0000:82:00.0/sriov_numvfs", "4\n")
    assert list(read(driver)) == [FIRST]


def test_a_machine_without_such_cards_starts_nothing(tmp_path):
    class NoTools(MachineHost):
        async def run(self, tools, words):
            raise AssertionError("a tool was started")

    assert read(FuriosaDriver(NODE, FakeClock(), NoTools(tmp_path, folders=()))) == {}


def test_the_tool_alone_is_enough_as_first_on_the_path(twin):
    twin.machine.remove("/sys")
    chip = read_one(make_driver(twin))
    assert (chip.chip_id, chip.health, chip.is_simulated) == (FIRST, ChipHealth.OK, True)
