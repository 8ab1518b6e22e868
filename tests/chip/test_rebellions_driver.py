"""The rebellions driver keeps the chip contract on its twins, and tells every fault of theirs by its reason."""

import pytest
from tests.chip.chip_parts import HANG_S, NODE, FakeClock, read, read_one

from madang.chip.host import MachineHost
from madang.chip.rebellions.driver import RebellionsDriver
from madang.chip.rebellions.twin import TOOL, RebellionsTwin
from madang.chip.roster import STUCK_S
from madang.core import Conflict
from madang.model import ChipHealth
from madang.testing.chip_contract import ChipDriverContract

FIRST = "rebellions-madangtwin000000-0000-21-00-0"


def make_driver(twin, clock=None, **options):
    return RebellionsDriver(NODE, clock or FakeClock(), MachineHost(twin.root, folders=(), **options))


class TestAtomPlus(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = RebellionsTwin(tmp_path, cards=4)

    def make_driver(self):
        return make_driver(self.twin)


class TestAtomMax(TestAtomPlus):
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = RebellionsTwin(tmp_path, cards=2, product="RBLN-CA25")


class TestRebelOfTheFirstSdk(TestAtomPlus):
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = RebellionsTwin(tmp_path, product="RBLN-CR03", sdk=1)


class TestWithoutTheTool(TestAtomPlus):
    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = RebellionsTwin(tmp_path, cards=2)
        self.twin.machine.uninstall(TOOL)


@pytest.fixture
def twin(tmp_path):
    return RebellionsTwin(tmp_path)


@pytest.fixture
def pair(tmp_path):
    return RebellionsTwin(tmp_path, cards=2)


def test_a_device_is_shown_with_all_that_is_known_of_it(twin):
    twin.work(0, utilisation=0.95, memory_used_bytes=6_877_879_296)
    chip = read_one(make_driver(twin))
    assert (chip.chip_id, chip.serial, chip.pci_address) == (FIRST, "MadangTwin000000", "0000:21:00.0")
    assert (chip.model, chip.health, chip.reason) == ("RBLN-CA22", ChipHealth.OK, "")
    assert (chip.memory_bytes, chip.memory_free_bytes) == (16_877_879_296, 10_000_000_000)
    assert (chip.utilisation, chip.temperature_c) == (0.95, 56.0)
    assert chip.power_w == pytest.approx(68.705)
    assert (chip.numa_node, chip.driver_version, chip.firmware_version) == (1, "3.0.0", "3.2.2")
    assert (chip.clock_mhz, chip.power_w_max, chip.is_simulated) == (None, None, True)


def test_devices_of_one_card_are_one_group_and_given_together(tmp_path):
    twin = RebellionsTwin(tmp_path, cards=2, product="RBLN-CA25")
    driver = make_driver(twin)
    chips = read(driver)
    groups = {}
    for chip in chips.values():
        groups.setdefault(chip.group, []).append(chip.chip_id)
    assert [len(members) for members in groups.values()] == [4, 4]
    card = tuple(groups["rebellions-madangtwin000001"])
    grant = driver.grant(card)
    assert grant.devices == ("rbln4", "rbln5", "rbln6", "rbln7")
    assert grant.env == {"RBLN_VISIBLE_DEVICES": "4,5,6,7", "RBLN_DEVICES": "4,5,6,7"}
    with pytest.raises(Conflict, match="all are given or none"):
        driver.grant(card[:3])


def test_the_tool_is_looked_for_in_the_vendors_order(twin):
    answers = twin.machine._answers[TOOL]
    twin.machine.uninstall(TOOL)
    assert read_one(make_driver(twin)).reason == "rbln-smi or rbln-stat is not installed"
    for place in ("/usr/local/bin/rbln-stat", "/host/usr/bin/rbln-smi", "/run/rbln/driver/usr/bin/rbln-smi"):
        twin.machine.install(place, answers)
        assert read_one(make_driver(twin)).health is ChipHealth.OK
        twin.machine.break_tool(place, "crash")  # so that only the next one, which comes before it, can answer
        assert "101" in read_one(make_driver(twin)).reason


def test_zero_uuids_and_zero_sids_do_not_merge_devices(pair):
    for device in pair.devices:
        device.sid = "0000000000000000"
    pair.refresh()
    chips = read(make_driver(pair))
    assert list(chips) == ["rebellions-pci-0000-21-00-0", "rebellions-pci-0000-22-00-0"]
    assert {(chip.group, chip.serial) for chip in chips.values()} == {("", "")}


def test_a_parent_of_virtual_functions_is_left_out_and_not_lost(pair):
    driver = make_driver(pair)
    assert len(read(driver)) == 2
    pair.devices[1].vfs = 2
    pair.refresh()
    assert list(read(driver)) == [FIRST]


def test_names_that_changed_between_two_sources_are_not_mixed_up(pair):
    answers = dict(pair.machine._answers[TOOL])
    pair.machine.remove("/sys/class/rebellions")
    pair.devices.reverse()
    pair.refresh()
    pair.machine.install(TOOL, answers)
    chips = read(make_driver(pair))
    assert {chip.health for chip in chips.values()} == {ChipHealth.UNKNOWN}
    assert all("name the device differently" in chip.reason for chip in chips.values())


def test_a_lost_device_is_failed_and_the_others_keep_their_identity(tmp_path):
    twin = RebellionsTwin(tmp_path, cards=3)
    driver = make_driver(twin)
    before = read(driver)
    twin.lose(0)
    after = read(driver)
    assert list(after) == list(before)
    assert (after[FIRST].health, after[FIRST].temperature_c) == (ChipHealth.FAILED, None)
    assert "0000:21:00.0" in after[FIRST].reason
    survivors = [chip_id for chip_id in after if chip_id != FIRST]
    assert driver.grant(tuple(survivors)).devices == ("rbln0", "rbln1")
    with pytest.raises(Conflict):
        driver.grant((FIRST,))


def test_a_device_that_the_bus_shows_and_the_tool_does_not_is_failed(pair):
    pair.devices[1].is_listed = False
    pair.refresh()
    (failed,) = [chip for chip in read(make_driver(pair)).values() if chip.health is ChipHealth.FAILED]
    assert "rbln-smi does not list it" in failed.reason


def test_a_fault_is_failed_whoever_tells_it(twin):
    twin.fault(0)
    assert read_one(make_driver(twin)).reason == "rbln-smi says status 'fault'"
    twin.devices[0].status = "normal"
    twin.refresh()
    chip = read_one(make_driver(twin))
    assert (chip.health, chip.reason) == (ChipHealth.FAILED, "the kernel driver says status 3: fault")


def test_a_number_that_may_mean_two_things_is_unknown(twin):
    twin.devices[0].status_number = 3
    twin.driver_version = "3.5.1"
    twin.refresh()
    chip = read_one(make_driver(twin))
    assert (chip.health, chip.reason) == (ChipHealth.UNKNOWN, "the kernel driver says status 3: fault or init")


def test_a_status_that_nobody_published_is_unknown(twin):
    twin.devices[0].status = "hibernating"
    twin.refresh()
    assert read_one(make_driver(twin)).health is ChipHealth.UNKNOWN


def test_a_hot_device_is_throttled(twin):
    twin.overheat(0)
    chip = read_one(make_driver(twin))
    assert (chip.health, chip.throttle_reasons) == (ChipHealth.DEGRADED, ("thermal",))
    assert chip.reason == "93 °C; it throttles from 90 °C on"


def test_values_divided_by_a_thousand_are_corrected_and_told(twin):
    twin.divide()
    chip = read_one(make_driver(twin))
    assert (chip.temperature_c, chip.power_w) == (pytest.approx(37.0), pytest.approx(19.4))
    assert chip.health is ChipHealth.DEGRADED
    assert "0.037 °C" in chip.reason


def test_a_driver_older_than_the_card_is_incompatible(twin):
    twin.mismatch()
    chip = read_one(make_driver(twin))
    assert chip.incompatibility.startswith("driver 1.2.92 with model RBLN-CA22: driver >=1.3 is needed")


def test_a_driver_version_that_is_not_told_comes_from_sysfs(twin):
    twin.machine.install(TOOL, {"-j": twin.machine._answers[TOOL]["-j"].replace('"3.0.0"', '"N/A"')})
    assert read_one(make_driver(twin)).driver_version == "3.0.0"


def test_readings_that_stand_still_under_load_are_noticed(twin):
    twin.work(0)
    clock = FakeClock()
    driver = make_driver(twin, clock)
    assert read_one(driver).health is ChipHealth.OK
    clock.move(STUCK_S + 1)
    assert "stuck reading" in read_one(driver).reason


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("hang", f"rbln-smi -j did not end in {HANG_S:g} s"),
        ("flood", "wrote more than"),
        ("garbage", "no JSON object with devices"),
        ("crash", "ended with 101: panicked"),
        ("missing", "is not installed"),
    ],
)
def test_without_the_tool_health_is_unknown_and_sysfs_gives_the_rest(twin, fault, said):
    twin.work(0)
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
    assert (chip.chip_id, chip.group) == (before.chip_id, before.group)
    assert chip.health is ChipHealth.UNKNOWN
    assert said in chip.reason
    assert (chip.utilisation, chip.temperature_c, chip.power_w) == (None, None, None)
    assert (chip.memory_free_bytes, chip.driver_version) == (before.memory_free_bytes, "3.0.0")
    twin.machine.break_tool(TOOL, "")
    twin.refresh()
    assert read_one(driver).health is ChipHealth.OK


def test_without_the_tool_a_fault_still_shows(twin):
    twin.fault(0)
    twin.machine.uninstall(TOOL)
    assert read_one(make_driver(twin)).health is ChipHealth.FAILED


def test_a_machine_without_such_cards_starts_nothing(tmp_path):
    class NoTools(MachineHost):
        async def run(self, tools, words):
            raise AssertionError("a tool was started")

    assert read(RebellionsDriver(NODE, FakeClock(), NoTools(tmp_path, folders=()))) == {}
