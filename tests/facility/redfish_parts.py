"""What tests of the Redfish and NUT drivers share: a twin that runs in a test, and where independent peers are."""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

import pytest

from madang.facility.contract import Device, Secret
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver, make_twin
from madang.testing.facility_contract import HANG_S, PATIENT_S, HeldPlant, StandingClock

SECRET = Secret(user="madang", words={"password": "Pine-needle-47"})
BMC = {
    "power": 612.0,
    "energy": 1234500.0,
    "power_limit": 800.0,
    "power_limit_min": 300.0,
    "power_limit_max": 1500.0,
    "state_power_limit": 1.0,
    "temperature_inlet": 24.5,
    "temperature_outlet": 38.25,
    "speed_fan": 45.0,
    "state_power": 1.0,
    "state_health": 0.0,
    "state_health_power": 1.0,
    "state_health_cooling": 0.0,
    "alarm_leak": 0.0,
    "alarm_intrusion": 0.0,
    "health[drive0]": 97.0,
    "state_health[drive0]": 0.0,
    "alarm_failing[drive0]": 0.0,
    "health[drive3]": 12.0,
    "state_health[drive3]": 1.0,
    "alarm_failing[drive3]": 1.0,
}
RACK_PDU = {
    "power": 7210.0,
    "power_apparent": 7400.0,
    "power_factor": 0.97,
    "energy": 987654000.0,
    "load": 33.5,
    "frequency": 60.0,
    "voltage_l1": 229.5,
    "voltage_l2": 230.5,
    "voltage_l3": 231.5,
    "current_l1": 10.5,
    "current_l2": 10.75,
    "current_l3": 11.25,
    "state_breaker": 0.0,
    "state_breaker_1": 0.0,
    "state_breaker_2": 1.0,
    "state_breaker_3": 2.0,
    "temperature": 26.5,
    "humidity": 44.0,
    "state_health": 0.0,
    "power[outlet1]": 310.0,
    "state_switch[outlet1]": 1.0,
    "power[outlet12]": 290.5,
    "state_switch[outlet12]": 1.0,
}
CDU = {
    "power": 850.0,
    "power_cooling": 31500.0,
    "flow": 62.5,
    "temperature_supply": 32.25,
    "temperature_return": 39.5,
    "pressure": 120.0,
    "temperature_supply_setpoint": 32.0,
    "flow_facility": 55.0,
    "temperature_supply_facility": 24.0,
    "temperature_return_facility": 32.75,
    "pressure_facility": 80.0,
    "level_valve": 48.0,
    "speed_pump_1": 61.0,
    "alarm_pump_1": 0.0,
    "speed_pump_2": 0.0,
    "alarm_pump_2": 1.0,
    "level_reservoir": 88.0,
    "humidity": 41.0,
    "dew_point": 11.5,
    "alarm_leak": 0.0,
    "state_health": 1.0,
}
UPS = {
    "state_on_battery": 0.0,
    "alarm_battery_low": 0.0,
    "alarm_replace_battery": 1.0,
    "alarm_overload": 0.0,
    "alarm_bypass": 0.0,
    "state_charging": 1.0,
    "alarm_forced_shutdown": 0.0,
    "alarm_general": 0.0,
    "status_unknown": 0.0,
    "charge": 98.5,
    "runtime": 1320.0,
    "voltage_battery": 54.25,
    "temperature_battery": 27.5,
    "voltage_input": 221.5,
    "frequency_input": 60.0,
    "voltage": 230.5,
    "current": 12.25,
    "frequency": 59.5,
    "power": 2640.0,
    "power_apparent": 2820.0,
    "load": 47.5,
}


def device_of(driver, profile, **given):
    named = {"device_id": "unit1", "address": "127.0.0.1:0", "equipment": "unit1", "timeout_s": PATIENT_S}
    return Device(driver=driver, profile=profile, **(named | given))


class LiveTwin:
    """A twin that runs in this process while a test is in the `async with`, with the plant behind it."""

    def __init__(self, device, values, secret=None, plant=None, profile=None, make=make_twin, **more):
        self.secret = secret or Secret()
        self.profile = profile or load_profile(device.driver, device.profile)
        self.plant = plant or HeldPlant(values)
        self.device = device
        self.twin = make(device, self.profile, self.secret, self.plant, **more)

    async def __aenter__(self):
        await self.twin.start()
        self.address = self.twin.address
        return self

    async def __aexit__(self, *_):
        await self.twin.stop()

    def session(self, secret=None, clock=None, **options):
        device = device_of(
            self.device.driver, self.device.profile, address=self.address, parts=self.device.parts, options=options
        )
        return driver_on(device, secret or self.secret, clock)


@contextlib.asynccontextmanager
async def driver_on(device, secret=None, clock=None, profile=None):
    profile = profile or load_profile(device.driver, device.profile)
    driver = make_driver(device, profile, secret or Secret(), clock or StandingClock())
    try:
        yield driver
    finally:
        await driver.close()


async def read(driver):
    """Return samples by point id."""
    async with asyncio.timeout(HANG_S):
        return {one.point_id: one for one in await driver.read()}


def find_tool(name):
    """Return a command's path; skips the test where the machine has none."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/lib/nut")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def find_peer(kind, command):
    """Return a command of the peers `servers` or `clients`; skips where it is absent."""
    root = Path(os.environ.get("MADANG_PEERS", Path.home() / ".cache" / "madang" / "peers"))
    path = root / kind / "bin" / command
    if not path.exists():
        pytest.skip(f"{command} is not among the {kind} in {root}")
    return path


async def run_tool(*command, stdin="", env=None, cwd=None, may_fail=False):
    """Return what a command prints; fails with what it complained about when it does not end well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
        cwd=cwd,
    )
    try:
        # The deep ones parse hundreds of schemas; this finds what hangs only.
        async with asyncio.timeout(5 * HANG_S):
            out, _ = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = out.decode(errors="replace")
    assert may_fail or process.returncode == 0, f"{command[0]} ended with {process.returncode}: {text}"
    return text


@contextlib.asynccontextmanager
async def running(*command, port, env=None):
    """Run a server until the block ends, once it listens on `port`."""
    async with running_quietly(*command, env=env) as process:
        async with asyncio.timeout(HANG_S):
            while not await listens(port):
                assert process.returncode is None, f"{command[0]} ended with {process.returncode}"
                await asyncio.sleep(0.05)
        yield process


@contextlib.asynccontextmanager
async def running_quietly(*command, env=None):
    """Run a program until the block ends."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*map(str, command), stdin=quiet, stdout=quiet, stderr=quiet, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(HANG_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def listens(port):
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
