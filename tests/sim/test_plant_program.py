"""The plant twin as a site reads it: every device of the example container over its own protocol, simulated."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from madang.facility.contract import Secret
from madang.facility.roster import make_driver
from madang.facility.site_file import load_site_file
from madang.model import Quality, Quantity
from madang.runtime.clock import SystemClock
from madang.runtime.device_secrets import find_secret
from madang.runtime.telemetry import EventLog
from madang.sim.plant.faults import PlantFault, apply_fault
from madang.sim.plant.program import SimulatedSite, read_utilisation
from madang.sim.plant.reading import DevicePort
from madang.sim.plant.settings import PlantSite
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
EXAMPLES = Path(__file__).parents[2] / "examples"
SECRETS = {
    "nut": 'user = "monitor"\n[words]\npassword = "p"\n',
    "bmc": 'user = "root"\n[words]\npassword = "p"\n',
    "pdu": 'user = "apc"\n[words]\ncommunity = "public"\npassword = "p"\n',
}


def here(text: str) -> str:
    """An example's text with every device on loopback and simulated."""

    def place(match: re.Match[str]) -> str:
        scheme = "http://" if match[1].startswith("http") else ""
        return f'address = "{scheme}127.0.0.1:{free_port()}"\nis_simulated = true'

    return re.sub(r'address = "([^"]*)"', place, text)


@pytest.fixture
def container(tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    text = (EXAMPLES / "site-container.toml").read_text(encoding="utf-8")
    for name in set(re.findall(r'secret = "([^"]*)"', text)):
        (folder / f"{name}.toml").write_text(SECRETS.get(name, SECRETS["pdu"]))
        (folder / f"{name}.toml").chmod(0o600)
    (tmp_path / "profiles").symlink_to(EXAMPLES / "profiles")
    path = tmp_path / "site.toml"
    path.write_text(here(text), encoding="utf-8")
    file = load_site_file(path)
    settings = PlantSite(name=str(file.model.site), site_file=path, secrets_dir=folder)
    with (tmp_path / "log").open("w") as log:
        yield SimulatedSite(settings, file, EventLog(SystemClock(), log)), file, folder


async def read_one(device, file, folder, timeout_s):
    device = msgspec.structs.replace(device, timeout_s=timeout_s)
    secret = find_secret(folder, device.secret) if device.secret else Secret()
    driver = make_driver(device, file.profiles[device.device_id], secret, SystemClock())
    try:
        return await driver.read()
    finally:
        await driver.close()


async def read_all(file, folder, timeout_s=60.0):
    """Every sample of every device by point, read by its own driver, all of them side by side."""
    found = await asyncio.gather(*(read_one(device, file, folder, timeout_s) for device in file.devices))
    return {sample.point_id: sample for samples in found for sample in samples}


def test_every_point_of_the_container_is_answered_over_its_own_protocol(container) -> None:
    site, file, folder = container
    leak = next(one.equipment_id for one in file.model.equipment if one.kind == "leak_detector")
    cooler = next(iter(site.plant.room.units))

    async def play():
        try:
            await site.start()
            calm = await read_all(file, folder)
            for kind, target in (
                ("utility_lost", ""),
                ("leak", leak),
                ("cooling_lost", cooler),
                ("camera_lost", "camera"),
            ):
                apply_fault(site.plant, PlantFault(kind=kind, target=target))
            site.plant.step(5.0)
            lost = await read_all(file, folder)
            for device in site.twins:
                site.misbehave(device, "silent")
            return calm, lost, await read_all(file, folder, timeout_s=0.5)
        finally:
            await site.stop()

    calm, lost, silent = asyncio.run(play())
    assert len(calm) == len(file.model.points)
    doubted = {name: sample.reason for name, sample in calm.items() if sample.quality is not Quality.GOOD}
    # A cap that is not in force is told as what it would be, with the doubt.
    assert {name for name in doubted if not name.endswith(".power_limit")} == set(), doubted
    assert all(sample.is_usable for sample in calm.values())
    assert all(point.is_simulated for point in file.model.points)
    told = {name: sample.text for name, sample in lost.items() if sample.text != calm[name].text}
    print(told)
    assert any(text in ("yes", "battery", "on_battery") for text in told.values()), told
    assert told[f"{leak}.alarm_leak"] == "active"
    assert told["camera.alarm_camera"] == "active"
    assert told[f"{cooler}.state_compressor"] == "failed"
    it_w = sum(calm[f"{name}.power"].value for name in site.plant.servers)
    assert it_w == pytest.approx(sum(one.power_w for one in site.plant.servers.values()), rel=0.05)
    assert not any(sample.is_usable for sample in silent.values()), "who says nothing gives no number"


def test_the_load_of_a_server_is_what_its_nodes_metrics_say() -> None:
    name = "madang_node_chip_utilisation_ratio"
    text = f'# HELP {name}\n{name}{{chip="a",kind="cpu"}} 0.25\n{name}{{chip="b",kind="cpu"}} 0.75\n'
    assert read_utilisation(text) == 0.75
    assert read_utilisation('madang_node_chip_utilisation_ratio{chip="a"} NaN\n') == 0.0
    assert read_utilisation("") == 0.0


def test_nothing_that_is_judged_by_standing_still_stands_still_in_a_quiet_plant(container) -> None:
    site, file, _ = container
    judged = {
        (device.device_id, spec.name): spec
        for device in file.devices
        for spec in file.profiles[device.device_id].points
        if spec.still_s > 0.0 and spec.quantity is not Quantity.ENERGY
    }
    ports = {
        device.device_id: DevicePort(site.plant, device, file.profiles[device.device_id]) for device in file.devices
    }
    shown: dict[tuple[str, str], set[int]] = {key: set() for key in judged}
    for _ in range(60):
        site.plant.step(10.0)
        for (device_id, name), spec in judged.items():
            value = ports[device_id].get(name)
            if value is not None:
                shown[device_id, name].add(round(value / (spec.scale or 1.0)))
    moved = {key: len(values) > 1 for key, values in shown.items() if values and values != {0}}
    assert moved
    assert all(moved.values()), [key for key, is_so in moved.items() if not is_so]
