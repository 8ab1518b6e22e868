"""The embedded cabinet's host: a full disk, a cut link and a lost clock are alarms, and nobody sheds work for them."""

import asyncio

import pytest
from tests.site.facility_box import Box

from madang.sim.plant.faults import PlantFault, apply_fault


def play(folder, kind, seconds):
    async def run():
        box = Box(folder)
        await box.load()
        await box.tick(40)
        before = {str(one.key) for one in box.desk.list_alarms()}
        apply_fault(box.plant, PlantFault(kind=kind, target="host"))
        await box.tick(seconds)
        alarms = {one.key.point + "/" + one.key.condition: one for one in box.desk.list_alarms() if one.is_active}
        box.database.close()
        return before, alarms, box.allowed.envelope

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "seconds", "expected"),
    [
        ("disk_full", 75, {"host.level_root/high": "medium", "host.level_root/high_high": "critical"}),
        ("disk_read_only", 10, {"host.alarm_read_only_root/state": "critical"}),
        pytest.param(
            "disk_worn",
            75,
            {"host.health_nvme_0/low_low": "high", "host.alarm_spare_nvme_0/state": "high"},
            marks=pytest.mark.deep,
        ),
        ("link_down", 10, {"host.state_link_0/state": "high"}),
        pytest.param(
            "clock_lost",
            310,
            {"host.state_clock/state": "high", "host.duration_clock_error/high": "medium"},
            marks=pytest.mark.deep,
        ),
    ],
)
def test_a_host_in_trouble_is_an_alarm_and_no_reason_to_act(tmp_path, kind, seconds, expected):
    before, alarms, envelope = play(tmp_path, kind, seconds)
    assert before == set(), "a host that is well has no alarms"
    assert expected.items() <= {name: one.priority.value for name, one in alarms.items()}.items()
    assert {one.key.equipment for one in alarms.values()} == {"host"}
    assert envelope.shed_from is None
