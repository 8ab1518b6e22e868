"""Recordings of machines, assembled or real: each reads as it did, holds no serial, and says where it is from."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.chip.chip_parts import HANG_S, FakeClock

from madang.chip.furiosa.driver import FuriosaDriver
from madang.chip.furiosa.twin import TOOL, FuriosaTwin
from madang.chip.host import MachineHost
from madang.chip.recording import PlaybackHost, Recording, RecordingHost, make_recording
from madang.chip.values import TWIN_VENDOR
from madang.core import NodeId
from madang.node.drivers import make_accelerator_driver

RECORDINGS = sorted(Path(__file__).with_name("recordings").glob("*.json"))
NODE = NodeId("recorded")


def without_time(chips):
    return [msgspec.structs.replace(chip, observed_at_s=0.0) for chip in chips]


def play(recording):
    host = PlaybackHost(recording)
    return asyncio.run(make_accelerator_driver(recording.kind, NODE, FakeClock(), host).read())


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_reads_as_it_did(path):
    recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    assert recording.chips
    assert without_time(play(recording)) == without_time(recording.chips)
    is_simulated = {chip.is_simulated for chip in recording.chips}
    assert recording.origin.startswith(("recorded on hardware", "simulated", "assembled"))
    assert is_simulated == {recording.origin.startswith("simulated")}


def test_there_are_recordings_of_both_korean_vendors():
    assert {path.stem.partition("-")[0] for path in RECORDINGS} >= {"furiosa", "rebellions"}


@pytest.fixture
def recorded(tmp_path):
    """A reading of a machine whose cards look real, and its recording."""
    twin = FuriosaTwin(tmp_path, cards=2)
    (tmp_path / "sys/class/dmi/id/sys_vendor").write_text("Some Maker\n")
    twin.cards[0].serial, twin.cards[1].serial = "RNG26040100181Q", "RNG26040100999Z"
    # A serial is all that a twin's UUIDs are made of; these look real.
    twin._uuid = lambda card: "C0413086-0708-4606-9A5D-" + card.serial[-7:-1].encode().hex()
    twin.work(1)
    twin.machine.add_pci("0000:00:1f.0", "8086:7a04", numa_node=0, cpus="0")
    host = RecordingHost(MachineHost(twin.root))
    chips = asyncio.run(FuriosaDriver(NODE, FakeClock(), host).read())
    return chips, make_recording("furiosa", "recorded on hardware: test", 1.0, host, chips)


def test_serials_and_uuids_are_masked_everywhere_and_alike(recorded):
    chips, recording = recorded
    text = msgspec.json.encode(recording).decode()
    assert [chip.serial for chip in chips] == ["RNG26040100181Q", "RNG26040100999Z"]
    for secret in ("RNG26040100181Q", "rng26040100181q", "C0413086", "c0413086", "100999"):
        assert secret not in text
    masked = [chip.serial for chip in recording.chips]
    assert len(set(masked)) == 2
    assert [len(serial) for serial in masked] == [15, 15]
    for serial in masked:
        assert text.count(serial) >= 3  # info, sysfs and the chip
    assert text.count("00000000-0000-4000-8000-000000000001") == 2


def test_a_masked_recording_reads_as_the_machine_did(recorded):
    chips, recording = recorded
    played = play(recording)
    assert without_time(played) == without_time(recording.chips)
    for real, masked in zip(chips, played, strict=True):
        assert (real.pci_address, real.power_w, real.memory_free_bytes, real.health) == (
            masked.pci_address,
            masked.power_w,
            masked.memory_free_bytes,
            masked.health,
        )


def test_other_devices_of_the_machine_are_not_recorded(recorded):
    _, recording = recorded
    assert "8086" not in msgspec.json.encode(recording).decode()


def test_a_twins_recording_stays_marked(tmp_path):
    twin = FuriosaTwin(tmp_path)
    host = RecordingHost(MachineHost(twin.root))
    chips = asyncio.run(FuriosaDriver(NODE, FakeClock(), host).read())
    recording = make_recording("furiosa", "simulated", 1.0, host, chips)
    assert TWIN_VENDOR in msgspec.json.encode(recording).decode()
    assert {chip.is_simulated for chip in play(recording)} == {True}


def test_a_tool_that_failed_is_recorded_as_such(tmp_path):
    twin = FuriosaTwin(tmp_path)
    twin.machine.break_tool(TOOL, "hang")
    host = RecordingHost(MachineHost(twin.root, tool_s_max=HANG_S))
    chips = asyncio.run(FuriosaDriver(NODE, FakeClock(), host).read())
    recording = make_recording("furiosa", "simulated", 1.0, host, chips)
    assert "did not end" in recording.tools[0].trouble
    assert without_time(play(recording)) == without_time(recording.chips)
