"""NUT's own programs read the twin, and the driver reads NUT's own upsd."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from tests.facility.redfish_parts import (
    UPS,
    LiveTwin,
    device_of,
    driver_on,
    find_tool,
    read,
    run_tool,
    running,
    running_quietly,
)

from madang.model import Quality
from madang.testing.facility_contract import HANG_S
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
UPSD = Path("/lib/nut/upsd")
DUMMY_LOOP = """\
ups.status: OL
battery.charge: 255
battery.runtime: 3932100
ups.temperature: 255
input.voltage: 221.5
output.voltage: 230.1
ups.load: 42
TIMER 5
ups.status: ALARM OB DISCHRG LB XYZ
battery.charge: 71
battery.runtime: 540
ups.temperature: 25.5
TIMER 5
"""
LIES = ("charge", "runtime", "temperature_battery")


def play(scene):
    async def run():
        async with asyncio.timeout(1.5 * HANG_S):
            await scene()

    asyncio.run(run())


def find_upsd():
    # Debian's command in sbin obeys the system's own configuration; the program itself is beside the drivers.
    return UPSD if UPSD.exists() else find_tool("upsd")


@contextlib.asynccontextmanager
async def nut(folder, section, driver):
    """Run upsd with one UPS named `unit`, and give its port."""
    upsd, program = find_upsd(), find_tool(driver)
    port, state = free_port(), folder / "state"
    state.mkdir(mode=0o700)
    (folder / "ups.conf").write_text(f"[unit]\ndriver = {driver}\n{section}")
    (folder / "upsd.conf").write_text(f"LISTEN 127.0.0.1 {port}\n")
    (folder / "upsd.users").write_text("")
    for name in ("upsd.conf", "upsd.users"):
        (folder / name).chmod(0o640)
    env = os.environ | {"NUT_CONFPATH": str(folder), "NUT_STATEPATH": str(state), "NUT_ALTPIDPATH": str(state)}
    user = ("-u", "root") if os.getuid() == 0 else ()
    source = (program, "-F", "-a", "unit", *user)
    async with running_quietly(*source, env=env), running(upsd, "-F", *user, port=port, env=env):
        yield port


async def read_until(driver, is_so):
    while not is_so(samples := await read(driver)):  # noqa: ASYNC110  a device has no event
        await asyncio.sleep(0.1)
    return samples


def test_upsc_shows_what_the_plant_holds():
    upsc = find_tool("upsc")

    async def scene():
        async with LiveTwin(device_of("nut", "ups", options={"ups": "rack1"}), UPS) as live:
            assert (await run_tool(upsc, "-l", live.address)).splitlines()[-1] == "rack1"
            lines = (await run_tool(upsc, f"rack1@{live.address}")).splitlines()
            shown = dict(line.split(": ", 1) for line in lines if ": " in line)
            assert shown["battery.charge"] == "98.5"
            assert shown["ups.load"] == "47.5"
            assert set(shown["ups.status"].split()) == {"OL", "RB", "CHRG"}
            assert (await run_tool(upsc, f"rack1@{live.address}", "battery.runtime")).splitlines()[-1] == "1320"

    play(scene)


def is_on_mains_with_lies(samples):
    known = [samples[f"unit1.{name}"].value for name in ("state_on_battery", "voltage_input", "voltage", "load")]
    return known == [0.0, 221.5, 230.1, 42.0] and all(samples[f"unit1.{one}"].quality is Quality.BAD for one in LIES)


def is_on_battery_with_values(samples):
    flags = [samples[f"unit1.{name}"].value for name in ("state_on_battery", "alarm_battery_low", "alarm_general")]
    return flags == [1.0, 1.0, 1.0] and [samples[f"unit1.{one}"].value for one in LIES] == [71.0, 540.0, 25.5]


def test_an_outage_at_nuts_own_upsd_is_followed_and_its_lies_are_no_values(tmp_path):
    (tmp_path / "outage.dev").write_text(DUMMY_LOOP)

    async def scene():
        section = f"port = {tmp_path / 'outage.dev'}\nmode = dummy-loop\n"
        async with nut(tmp_path, section, "dummy-ups") as port:
            device = device_of("nut", "ups", address=f"127.0.0.1:{port}")
            async with driver_on(device) as driver:
                # Its variables come one by one, so each of the two states is waited for as a whole.
                await read_until(driver, is_on_mains_with_lies)
                samples = await read_until(driver, is_on_battery_with_values)
                assert "XYZ" in samples["unit1.status_unknown"].reason

    play(scene)
