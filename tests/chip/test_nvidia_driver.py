"""The nvidia driver keeps the chip contract on its twin, and tells every fault of it by its reason."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chip.chip_parts import NODE, FakeClock, read, read_one

from madang.chip.host import MachineHost
from madang.chip.manifest import load_manifest
from madang.chip.nvidia import codec
from madang.chip.nvidia.driver import NvidiaDriver
from madang.chip.nvidia.twin import NvidiaTwin
from madang.core import Conflict, Unavailable
from madang.model import ChipHealth
from madang.testing.chip_contract import ChipDriverContract

FIRST = "nvidia-madangtwin-0000"


def make_driver(twin, clock=None, load=None):
    return NvidiaDriver(NODE, clock or FakeClock(), MachineHost(twin.machine.root), load or (lambda: twin))


class TestNvidia(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def machine(self, tmp_path):
        self.twin = NvidiaTwin(tmp_path, gpus=3)

    def make_driver(self):
        return make_driver(self.twin)


@pytest.fixture
def twin(tmp_path):
    return NvidiaTwin(tmp_path)


def test_a_gpu_is_shown_with_all_that_is_known_of_it(twin):
    twin.gpus[0].memory_used = 8 * 1024**3
    twin.gpus[0].utilisation = 75
    chip = read_one(make_driver(twin))
    assert (chip.chip_id, chip.serial, chip.pci_address) == (FIRST, "MadangTwin-0000", "0000:c1:00.0")
    assert (chip.memory_bytes, chip.memory_free_bytes) == (48 * 1024**3, 40 * 1024**3)
    assert (chip.utilisation, chip.temperature_c, chip.power_w, chip.power_w_max) == (0.75, 41.0, 62.0, 300.0)
    assert (chip.clock_mhz, chip.throttle_reasons, chip.numa_node) == (1740.0, (), 0)
    assert (chip.driver_version, chip.firmware_version) == ("580.95.05", "95.02.66.00.02")
    assert (chip.sdk_version, chip.health, chip.is_simulated) == ("CUDA 13.0", ChipHealth.OK, True)


def test_a_gpu_without_serial_is_known_by_uuid(twin):
    twin.gpus[0].serial = ""
    assert read_one(make_driver(twin)).chip_id == "nvidia-gpu-00000000-0000-4000-8000-000000000000"


def test_a_grant_names_uuids(twin):
    driver = make_driver(twin)
    read_one(driver)
    grant = driver.grant((FIRST,))
    assert grant.env["CUDA_VISIBLE_DEVICES"] == twin.gpus[0].uuid
    assert grant.cpus == (0, 1)


def test_what_a_gpu_does_not_support_is_none(twin):
    gpu = twin.gpus[0]
    gpu.power = gpu.power_limit = gpu.temperature = gpu.utilisation = gpu.clock = gpu.ecc_uncorrected = None
    chip = read_one(make_driver(twin))
    values = (chip.power_w, chip.power_w_max, chip.temperature_c, chip.utilisation, chip.clock_mhz)
    assert values == (None,) * 5
    assert chip.health is ChipHealth.OK


@pytest.mark.parametrize(
    ("field", "value", "health", "said"),
    [
        ("clock_events", 0x4 | 0x1, ChipHealth.DEGRADED, "throttled: sw_power_cap"),
        ("clock_events", 0x40, ChipHealth.DEGRADED, "throttled: hw_thermal_slowdown"),
        ("ecc_uncorrected", 2, ChipHealth.FAILED, "2 uncorrected ECC errors"),
        ("remap_failure", 1, ChipHealth.FAILED, "remapping of a broken memory row failed"),
    ],
)
def test_faults_have_reasons(twin, field, value, health, said):
    setattr(twin.gpus[0], field, value)
    chip = read_one(make_driver(twin))
    assert (chip.health, said in chip.reason) == (health, True)


def test_a_gpu_that_is_lost_keeps_its_identity(tmp_path):
    twin = NvidiaTwin(tmp_path, gpus=2)
    driver = make_driver(twin)
    before = read(driver)
    twin.gpus[0].is_lost = True
    for _ in range(2):
        after = read(driver)
        assert list(after) == list(before)
        assert (after[FIRST].health, after[FIRST].temperature_c) == (ChipHealth.FAILED, None)
        assert "lost" in after[FIRST].reason
    with pytest.raises(Conflict):
        driver.grant((FIRST,))
    twin.machine.remove_pci("0000:c1:00.0")
    del twin.gpus[0]
    assert read(driver)[FIRST].health is ChipHealth.FAILED


def test_a_gpu_that_the_bus_shows_and_nvml_does_not_is_failed(tmp_path):
    twin = NvidiaTwin(tmp_path, gpus=2)
    del twin.gpus[1]
    failed = read(make_driver(twin))["nvidia-pci-0000-c2-00-0"]
    assert failed.health is ChipHealth.FAILED
    assert "NVML does not list it" in failed.reason


def test_without_driver_or_package_health_is_unknown(twin):
    driver = make_driver(twin)
    assert read_one(driver).health is ChipHealth.OK
    twin.is_loaded = False
    chip = read_one(driver)
    assert (chip.chip_id, chip.health, chip.utilisation) == (FIRST, ChipHealth.UNKNOWN, None)
    assert "NVML cannot be initialised" in chip.reason

    def missing():
        raise Unavailable("nvidia-ml-py is not installed")

    chip = read_one(make_driver(twin, load=missing))
    assert (chip.chip_id, chip.reason) == ("nvidia-pci-0000-c1-00-0", "nvidia-ml-py is not installed")


def test_a_hanging_nvml_is_given_up(twin):
    driver = make_driver(twin)
    driver._nvml._wait_s_max = 0.05
    twin.hang_s = 0.5
    chip = read_one(driver)
    assert (chip.health, "NVML did not return" in chip.reason) == (ChipHealth.UNKNOWN, True)
    assert "still hangs" in read_one(driver).reason


def test_the_package_is_not_imported_without_a_gpu(tmp_path):
    def load():
        raise AssertionError("imported")

    driver = NvidiaDriver(NODE, FakeClock(), MachineHost(tmp_path), load)
    assert asyncio.run(driver.read()) == ()


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("00000000:01:00.0")
FIELDS = [
    "name", "serial", "uuid", "bus_id", "memory_total", "memory_free", "temperature", "power", "power_limit",
    "utilisation", "clock", "clock_events", "ecc_uncorrected", "remap_pending", "remap_failure", "is_lost",
    "driver", "cuda",
]  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUE), max_size=3))
def test_arbitrary_values_raise_nothing_and_stay_in_range(raws):
    manifest = load_manifest("madang.chip.nvidia")
    for seen in codec.read_gpus(tuple(raws), "", (), manifest, NODE, 1.0, is_twin_machine=False):
        chip = seen.chip
        assert bool(chip.reason) == (chip.health is not ChipHealth.OK)
        assert chip.utilisation is None or 0 <= chip.utilisation <= 1
        assert chip.memory_free_bytes is None or 0 <= chip.memory_free_bytes <= chip.memory_bytes
        for value in (chip.power_w, chip.temperature_c, chip.clock_mhz):
            assert value is None or (math.isfinite(value) and value > 0)
