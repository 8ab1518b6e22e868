"""The mobilint driver keeps the chip contract on its twin, and tells every fault of it by its reason."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chip.chip_parts import NODE, FakeClock, read, read_one

from madang.chip.host import MachineHost
from madang.chip.mobilint import codec
from madang.chip.mobilint.driver import MobilintDriver, fetch_metrics
from madang.chip.mobilint.twin import MobilintTwin
from madang.core import Conflict
from madang.model import ChipHealth
from madang.testing.chip_contract import ChipDriverContract

FIRST = "mobilint-pci-0000-41-00-0"


def make_driver(twin, url=None):
    host = MachineHost(twin.machine.root)
    return MobilintDriver(NODE, FakeClock(), host, lambda: fetch_metrics(url or twin.url))


@pytest.fixture
def make_twin(tmp_path):
    made = []

    def make(**options):
        made.append(MobilintTwin(tmp_path, **options))
        return made[-1]

    yield make
    for twin in made:
        twin.close()


class TestMobilint(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def machine(self, make_twin):
        self.twin = make_twin(cards=2)

    def make_driver(self):
        return make_driver(self.twin)


def test_a_card_is_shown_with_all_that_is_known_of_it(make_twin):
    twin = make_twin(cards=2)
    twin.cards[1].utilisation, twin.cards[1].memory_used_bytes = 0.25, 1024**3
    chip = read(make_driver(twin))["mobilint-pci-0000-42-00-0"]
    assert (chip.health, chip.utilisation, chip.temperature_c, chip.power_w) == (ChipHealth.OK, 0.25, 45.0, 12.5)
    assert (chip.memory_bytes, chip.memory_free_bytes, chip.clock_mhz) == (16 * 1024**3, 15 * 1024**3, 1200.0)
    assert (chip.driver_version, chip.firmware_version, chip.numa_node) == ("1.11.0", "1.3.2", 0)


def test_one_card_is_matched_without_a_parent_and_two_are_not(tmp_path, make_twin):
    assert read_one(make_driver(make_twin(has_parents=False))).health is ChipHealth.OK


def test_of_two_cards_without_parents_nothing_is_guessed(make_twin):
    driver = make_driver(make_twin(cards=2, has_parents=False))
    chips = read(driver)
    assert {(chip.health, chip.utilisation) for chip in chips.values()} == {(ChipHealth.UNKNOWN, None)}
    with pytest.raises(Conflict):
        driver.grant((FIRST,))


def test_minus_one_is_no_reading(make_twin):
    twin = make_twin()
    twin.cards[0].temperature = twin.cards[0].power = twin.cards[0].utilisation = -1
    chip = read_one(make_driver(twin))
    assert (chip.temperature_c, chip.power_w, chip.utilisation) == (None, None, None)


def test_a_card_that_the_exporter_cannot_read_is_failed(make_twin):
    twin = make_twin()
    twin.cards[0].health = 0
    assert read_one(make_driver(twin)).reason == "the exporter cannot read aries0"


def test_a_card_that_the_exporter_does_not_list_is_failed(make_twin):
    twin = make_twin(cards=2)
    del twin.cards[1]
    assert read(make_driver(twin))["mobilint-pci-0000-42-00-0"].reason == "the exporter does not list aries1"


def test_a_lost_card_is_failed(make_twin):
    twin = make_twin(cards=2)
    driver = make_driver(twin)
    assert len(read(driver)) == 2
    twin.machine.remove_pci("0000:41:00.0")
    assert read(driver)[FIRST].health is ChipHealth.FAILED


def test_without_the_exporter_health_is_unknown(make_twin):
    twin = make_twin()
    chip = read_one(make_driver(twin, url="http://127.0.0.1:1/metrics"))
    assert (chip.health, chip.memory_bytes, chip.utilisation) == (ChipHealth.UNKNOWN, 0, None)
    assert "does not answer" in chip.reason


def test_garbage_and_silence_are_unknown_or_failed(make_twin):
    twin = make_twin()
    twin.text = bytes(range(256))
    assert read_one(make_driver(twin)).health is ChipHealth.FAILED
    twin.is_hanging = True
    driver = make_driver(twin)
    driver._exporter._wait_s_max = 0.05
    assert "did not return" in read_one(driver).reason


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_arbitrary_bytes_raise_nothing(data):
    codec.parse_metrics(data)


@given(st.sampled_from(["temperature_celsius", "power_watts", "utilization_ratio", "clock_npu_hz"]), st.floats())
def test_arbitrary_numbers_stay_in_range(name, value):
    text = f'mobilint_npu_{name}{{device="aries0"}} {value!r}\n'.encode()
    for reading in codec.parse_metrics(text):
        for number in (reading.temperature_c, reading.power_w, reading.utilisation, reading.clock_mhz):
            assert number is None or (math.isfinite(number) and number >= 0)
