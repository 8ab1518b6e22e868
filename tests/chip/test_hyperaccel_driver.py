"""The hyperaccel driver finds cards, keeps the chip contract, and never claims to know more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chip.chip_parts import NODE, FakeClock, read, read_one

from madang.chip.host import MachineHost
from madang.chip.hyperaccel import codec
from madang.chip.hyperaccel.driver import HyperaccelDriver
from madang.chip.hyperaccel.twin import HyperaccelTwin
from madang.model import ChipHealth
from madang.testing.chip_contract import ChipDriverContract


def make_driver(twin):
    return HyperaccelDriver(NODE, FakeClock(), MachineHost(twin.machine.root))


class TestHyperaccel(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = HyperaccelTwin(tmp_path, cards=2)

    def make_driver(self):
        return make_driver(self.twin)


def test_a_card_is_found_and_nothing_is_claimed_of_it(tmp_path):
    driver = make_driver(HyperaccelTwin(tmp_path))
    chip = read_one(driver)
    assert (chip.chip_id, chip.health, chip.memory_bytes) == ("hyperaccel-pci-0000-61-00-0", ChipHealth.UNKNOWN, 0)
    assert (chip.temperature_c, chip.power_w, chip.utilisation) == (None, None, None)
    assert driver.grant((chip.chip_id,)).devices == ("renderD128",)


def test_a_lost_card_is_failed(tmp_path):
    twin = HyperaccelTwin(tmp_path, cards=2)
    driver = make_driver(twin)
    first, second = read(driver)
    twin.lose(0)
    after = read(driver)
    assert (after[first].health, after[second].health) == (ChipHealth.FAILED, ChipHealth.UNKNOWN)


def test_a_xilinx_card_without_the_vendors_runtime_is_none_of_these(tmp_path):
    twin = HyperaccelTwin(tmp_path)
    twin.uninstall()
    assert read(make_driver(twin)) == {}


@given(st.lists(st.text(max_size=20) | st.just("0000:61:00.0"), max_size=6).map(tuple))
def test_arbitrary_names_raise_nothing(names):
    for address in codec.parse_cards(names):
        assert codec.work_function(address).endswith(".1")
    codec.parse_render_node(names)
