"""A simulated host is well until it is told otherwise, and what it is told is seen through its exporters."""

import asyncio

import msgspec
import pytest
from tests.facility.redfish_parts import LiveTwin, device_of, driver_on, read
from tests.facility.test_prometheus import DISK_OPTIONS, DISK_PARTS, HOST_OPTIONS, HOST_PARTS
from tests.sim.box import make_box

from madang.facility.profile import load_profile
from madang.model import Quality
from madang.sim.plant.faults import PlantFault, apply_fault
from madang.sim.plant.plant import make_plant
from madang.sim.plant.reading import DevicePort
from madang.testing.facility_contract import HANG_S

HOST = "server0"
EXPORTERS = (("node_exporter", HOST_PARTS, HOST_OPTIONS), ("smartctl_exporter", DISK_PARTS, DISK_OPTIONS))


async def read_host(plant):
    """Return what both exporters of the host say, by the point's name."""
    found = {}
    for profile, parts, options in EXPORTERS:
        owned = dict.fromkeys(parts, HOST)
        device = device_of("prometheus", profile, equipment=HOST, parts=owned, options=options, is_simulated=True)
        port = DevicePort(plant, device, load_profile("prometheus", profile))
        async with (
            LiveTwin(device, {}, plant=port) as live,
            driver_on(msgspec.structs.replace(device, address=live.address)) as driver,
        ):
            samples = await read(driver)
        found |= {name.removeprefix(f"{HOST}."): one for name, one in samples.items()}
    return found


def play(*faults):
    async def run():
        async with asyncio.timeout(HANG_S):
            plant = make_plant(make_box())
            calm = await read_host(plant)
            for kind in faults:
                apply_fault(plant, PlantFault(kind=kind, target=HOST))
            return plant, calm, await read_host(plant)

    return asyncio.run(run())


def test_a_host_that_is_well_gives_every_point_and_no_trouble():
    _, calm, _ = play()
    assert {one.quality for one in calm.values()} == {Quality.GOOD}, calm
    troubles = [name for name, one in calm.items() if one.text in ("active", "down", "unsynchronised")]
    assert troubles == []
    assert calm["level_root"].value < 90.0
    assert calm["health_nvme_0"].value > 80.0


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        ("disk_full", {"level_root": 98.5, "level_data": 98.5}),
        ("disk_worn", {"health_nvme_0": 3.0, "alarm_smart_nvme_3": "active", "alarm_spare_nvme_0": "active"}),
        ("disk_read_only", {"alarm_read_only_root": "active", "alarm_read_only_nvme_0": "active"}),
        ("link_down", {"state_link_0": "down", "state_link_1": "down"}),
        ("clock_lost", {"state_clock": "unsynchronised", "duration_clock_error": 16.0}),
    ],
)
def test_a_fault_is_seen_and_ends(fault, shown):
    plant, calm, told = play(fault)
    changed = {name for name, one in told.items() if (one.value, one.text) != (calm[name].value, calm[name].text)}
    assert set(shown) <= changed
    for name, expected in shown.items():
        assert (told[name].text or told[name].value) == expected
    apply_fault(plant, PlantFault(kind=fault, target=HOST, is_over=True))
    healed = asyncio.run(read_host(plant))
    assert {name: one.value for name, one in healed.items()} == {name: one.value for name, one in calm.items()}
