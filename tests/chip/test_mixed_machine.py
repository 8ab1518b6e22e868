"""One machine with cards of two vendors, as a real pilot has: each driver sees its own, through the node's list."""

import asyncio

import pytest
from tests.chip.chip_parts import NODE, FakeClock

from madang.chip.furiosa.twin import FuriosaTwin
from madang.chip.rebellions.twin import RebellionsTwin
from madang.core import Rejected, ServiceName
from madang.model import Artifact, Assignment, CatalogEntry, ChipHealth, Service, Task
from madang.node.drivers import make_chip_drivers
from madang.policy.placement import NodeView, plan_placement


def test_four_rngd_and_four_ca22(tmp_path):
    FuriosaTwin(tmp_path, cards=4)
    atoms = RebellionsTwin(tmp_path, cards=4)
    drivers = make_chip_drivers((f"furiosa@{tmp_path}", f"rebellions@{tmp_path}"), NODE, FakeClock())

    def read():
        return [chip for driver in drivers for chip in asyncio.run(driver.read())]

    chips = read()
    assert [chip.kind for chip in chips] == ["furiosa"] * 4 + ["rebellions"] * 4
    assert {(chip.health, chip.is_simulated) for chip in chips} == {(ChipHealth.OK, True)}
    assert len({chip.chip_id for chip in chips}) == len({chip.pci_address for chip in chips}) == 8
    atoms.fault(2)
    assert [chip.chip_id for chip in read() if chip.health is ChipHealth.FAILED] == [chips[6].chip_id]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(Rejected, match="is not a folder"):
        make_chip_drivers((f"furiosa@{tmp_path}/none",), NODE, FakeClock())


def test_every_driver_of_a_machine_without_cards_finds_nothing(tmp_path):
    kinds = ("furiosa", "rebellions", "nvidia", "mobilint", "hyperaccel")
    for driver in make_chip_drivers(tuple(f"{kind}@{tmp_path}" for kind in kinds), NODE, FakeClock()):
        assert asyncio.run(driver.read()) == ()


def test_devices_of_one_atom_max_are_placed_left_and_granted_together(tmp_path):
    twin = RebellionsTwin(tmp_path, cards=3, product="RBLN-CA25")
    (driver,) = make_chip_drivers((f"rebellions@{tmp_path}",), NODE, FakeClock())
    artifact = Artifact(artifact_id="a", engine="vllm", chip_kinds=("rebellions",), files=(), memory_bytes=1, chips=2)
    entry = CatalogEntry(name="m", task=Task.CHAT, title="m", licence="x", artifacts=(artifact,))

    def place(existing):
        chips = asyncio.run(driver.read())
        service = Service(name=ServiceName("chat"), model="m")
        wanted = [Assignment(service=service.name, replicas=2)]
        found = plan_placement(wanted, {"chat": service}, {"m": entry}, [NodeView(node=NODE, chips=chips)], existing)
        groups = {chip.chip_id: chip.group for chip in chips}
        return found, [{groups[one] for one in spec.chip_ids} for spec in found.replicas[NODE]]

    first, groups = place({})
    assert [len(spec.chip_ids) for spec in first.replicas[NODE]] == [4, 4], "half a card is given to nobody"
    assert [len(group) for group in groups] == [1, 1]
    for spec in first.replicas[NODE]:
        assert len(driver.grant(spec.chip_ids).devices) == 4
    # One bad device of four: the whole card is left.
    twin.fault(1)
    second, after = place(first.replicas)
    assert after[0] not in groups
    assert after[1] == groups[1]
    assert second.unplaced == ()
