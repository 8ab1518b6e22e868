"""One machine with cards of two vendors, as a real pilot has: each driver sees its own, through the node's list."""

import asyncio

import pytest
from tests.chip.chip_parts import NODE, FakeClock
from tests.node.node_lab import NodeLab

from madang.chip.furiosa.twin import FuriosaTwin
from madang.chip.rebellions.twin import RebellionsTwin
from madang.core import Rejected
from madang.model import ChipHealth
from madang.node.drivers import make_chip_drivers


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


@pytest.mark.peer
def test_a_node_program_shows_the_cards_of_both_vendors(tmp_path):
    FuriosaTwin(tmp_path / "machine", cards=4)
    RebellionsTwin(tmp_path / "machine", cards=4)
    kinds = ("furiosa", "rebellions")
    (tmp_path / "node").mkdir()
    lab = NodeLab(tmp_path / "node", chips=tuple(f"{kind}@{tmp_path / 'machine'}" for kind in kinds))
    try:
        observed = lab.start().observed()
    finally:
        lab.close()
    assert [chip.kind for chip in observed.chips] == ["furiosa"] * 4 + ["rebellions"] * 4
    assert {chip.is_simulated for chip in observed.chips} == {True}
    assert all(chip.pci_address and chip.serial and chip.driver_version for chip in observed.chips)
