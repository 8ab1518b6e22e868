"""The cpu driver keeps the chip contract on this machine and on its twin, and survives the twin's faults."""

import asyncio

import pytest

from madang.chip.cpu.driver import CHIP_ID, CpuDriver
from madang.chip.cpu.twin import CpuTwin
from madang.core import NodeId
from madang.model import ChipHealth
from madang.runtime.clock import SystemClock
from madang.testing.chip_contract import ChipDriverContract


class FakeClock:
    """Time that the test moves."""

    def __init__(self):
        self.now_ns = 1

    def monotonic_ns(self):
        return self.now_ns

    def wall_s(self):
        return 1.0 + self.now_ns / 1e9


class TestOnThisMachine(ChipDriverContract):
    is_simulated = False

    def make_driver(self):
        return CpuDriver(NodeId("n"), SystemClock())


class TestOnTheTwin(ChipDriverContract):
    is_simulated = True

    @pytest.fixture(autouse=True)
    def twin_root(self, tmp_path):
        self.root = CpuTwin(tmp_path).root

    def make_driver(self):
        return CpuDriver(NodeId("n"), FakeClock(), self.root)


@pytest.fixture
def machine(tmp_path):
    return CpuTwin(tmp_path)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def driver(machine, clock):
    return CpuDriver(NodeId("n"), clock, machine.root)


def read(driver):
    (chip,) = asyncio.run(driver.read())
    return chip


def test_utilisation_power_and_temperature_are_averaged_between_readings(machine, driver, clock):
    first = read(driver)
    assert (first.utilisation, first.power_w) == (None, None)
    machine.advance(10, utilisation=0.25, power_w=80, temperature_c=60.5)
    clock.now_ns += 10_000_000_000
    second = read(driver)
    assert second.utilisation == pytest.approx(0.25)
    assert second.power_w == pytest.approx(80.0)
    assert second.temperature_c == 60.5
    assert second.health is ChipHealth.OK


def test_a_hot_machine_is_degraded_with_a_reason(machine, driver):
    machine.advance(1, temperature_c=99)
    chip = read(driver)
    assert chip.health is ChipHealth.DEGRADED
    assert "99 °C" in chip.reason


@pytest.mark.parametrize("path", ["sys/class/hwmon/hwmon0/temp1_input", "sys/class/powercap/intel-rapl:0/energy_uj"])
@pytest.mark.parametrize("fault", ["remove", "garble", "forbid"])
def test_a_broken_sensor_is_none_and_never_zero(machine, driver, clock, path, fault):
    read(driver)
    machine.advance(1)
    clock.now_ns += 1_000_000_000
    getattr(machine, fault)(path)
    chip = read(driver)
    assert (chip.temperature_c if "temp" in path else chip.power_w) is None
    assert chip.health is ChipHealth.OK


@pytest.mark.parametrize("path", ["proc/meminfo", "proc/stat"])
@pytest.mark.parametrize("fault", ["remove", "garble", "forbid"])
def test_without_basic_readings_health_is_unknown_with_a_reason(machine, driver, path, fault):
    getattr(machine, fault)(path)
    chip = read(driver)
    assert chip.health is ChipHealth.UNKNOWN
    assert path in chip.reason


def test_a_sensor_that_comes_back_is_read_again(machine, driver):
    machine.remove("sys/class/hwmon/hwmon0/temp1_input")
    assert read(driver).temperature_c is None
    machine.advance(1, temperature_c=50)
    assert read(driver).temperature_c == 50.0


def test_cgroup_limits_of_any_ancestor_bind(machine, driver):
    machine.limit(cpus=1.5, memory_bytes=1024**3, used_bytes=1024**2)
    chip = read(driver)
    assert chip.memory_bytes == 1024**3
    assert chip.memory_free_bytes == 1024**3 - 1024**2
    assert driver.grant((CHIP_ID,)).cpu_threads == 2


def test_a_limit_above_the_machine_changes_nothing(machine, driver):
    machine.limit(memory_bytes=1024**5)
    assert read(driver).memory_bytes == 16 * 1024**3


def test_affinity_bounds_the_grant(machine, driver):
    machine.write("proc/self/status", "Cpus_allowed_list:\t1,3\n")
    read(driver)
    assert driver.grant((CHIP_ID,)).cpus == (1, 3)


def test_clock_limit_node_and_kernel_are_shown(machine, driver):
    chip = read(driver)
    assert (chip.clock_mhz, chip.power_w_max, chip.numa_node) == (2500.0, 125.0, 0)
    assert (chip.driver_version, chip.throttle_reasons) == ("6.8.0-madangtwin", ())


def test_a_machine_of_several_nodes_is_on_none(machine, driver):
    machine.write("sys/devices/system/node/node1/cpulist", "2-3\n")
    assert read(driver).numa_node is None


def test_throttling_between_two_readings_is_told_and_passes(machine, driver):
    read(driver)
    machine.throttle()
    chip = read(driver)
    assert (chip.health, chip.throttle_reasons) == (ChipHealth.DEGRADED, ("thermal",))
    assert read(driver).health is ChipHealth.OK


def test_without_frequency_scaling_the_clock_is_that_of_cpuinfo_or_none(machine, driver):
    machine.remove("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq")
    assert read(driver).clock_mhz is None
    machine.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: x\ncpu MHz\t\t: 2496.248\n")
    assert read(driver).clock_mhz == 2496.248
