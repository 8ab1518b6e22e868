"""The drivers and their twins beside the vendors' own packages, installed for this test alone.

FuriosaAI's bindings read sysfs themselves: they are shown the twin's tree in the place of /sys and /dev, in a mount
namespace of their own, and must say of each card what our driver says. NVML needs its library, so there the names,
constants and errors that the driver uses are compared.
"""

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.chip.chip_parts import NODE, FakeClock

from madang.chip.furiosa.driver import FuriosaDriver
from madang.chip.furiosa.twin import TOOL, FuriosaTwin
from madang.chip.host import MachineHost
from madang.chip.nvidia import codec as nvidia_codec
from madang.chip.nvidia.twin import NvidiaTwin, TwinNvmlError
from madang.model import ChipHealth

pytestmark = [pytest.mark.peer, pytest.mark.deep]
FURIOSA = "furiosa-smi==2026.4.0"
NVIDIA = "nvidia-ml-py==13.615.71"
VENDOR_SMI = Path(__file__).with_name("vendor_smi.py")
SHOW = 'mount --make-rprivate / && mount --bind "$1/sys" /sys && mount --bind "$1/dev" /dev && shift && exec "$@"'


def install(folder, package):
    """Return the interpreter of a fresh environment that has one package, or skip."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    if done.returncode != 0:
        pytest.skip(f"{package} cannot be installed here: {done.stderr.strip()[-200:]}")
    return python


@pytest.fixture(scope="module")
def furiosa_python(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("only root may show a process another /sys")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    return install(tmp_path_factory.mktemp("furiosa"), FURIOSA)


def add_devices(twin):
    """Give the machine the character devices that the vendor's discovery wants, and those that Python does."""
    devices = twin.root / "dev"
    (devices / "rngd").mkdir(parents=True)
    wanted = [("null", 1, 3), ("urandom", 1, 9), ("zero", 1, 5)]
    groups = ("0", "1", "2", "3", "4", "5", "6", "7", "0-1", "2-3", "4-5", "6-7", "0-3", "4-7")
    for index in range(len(twin.cards)):
        wanted.append((f"rngd/npu{index}mgmt", 234, index))
        wanted += [(f"rngd/npu{index}pe{pes}", 235, index * 64 + number) for number, pes in enumerate(groups)]
    for name, major, minor in wanted:
        os.mknod(devices / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))


def ask_vendor(python, twin):
    command = ["unshare", "-m", "sh", "-c", SHOW, "sh", str(twin.root), str(python), "-I", str(VENDOR_SMI)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def read_ours(twin):
    driver = FuriosaDriver(NODE, FakeClock(), MachineHost(twin.root))
    return {chip.pci_address: chip for chip in asyncio.run(driver.read())}


@pytest.mark.parametrize("has_tool", [True, False], ids=["with furiosa-smi", "from sysfs alone"])
def test_furiosas_bindings_and_our_driver_say_the_same_of_every_card(tmp_path, furiosa_python, has_tool):
    twin = FuriosaTwin(tmp_path, cards=3)
    twin.work(1)
    twin.cards[2].pes_occupied, twin.cards[2].memory_used_bytes = (4, 5), 9 << 30
    twin.throttle(2)
    add_devices(twin)
    if not has_tool:
        twin.machine.uninstall(TOOL)
    theirs, ours = ask_vendor(furiosa_python, twin), read_ours(twin)
    assert len(theirs["devices"]) == len(ours) == 3
    for device in theirs["devices"]:
        chip = ours[device["bdf"]]
        assert (chip.serial, chip.numa_node, chip.cores) == (device["serial"], device["numa_node"], device["cores"])
        assert (chip.temperature_c, chip.power_w) == (device["temperature_c"], device["power_w"])
        assert chip.power_w_max == device["power_limit_mw"] / 1000
        assert [chip.clock_mhz] == device["clocks_mhz"]
        assert chip.memory_bytes == device["memory_total_bytes"]
        assert chip.memory_bytes - chip.memory_free_bytes == device["memory_used_bytes"]
        assert [word.replace("_", " ") for word in chip.throttle_reasons] == [
            word.lower() for word in device["throttle"]
        ]
        assert (chip.firmware_version, chip.driver_version) == (device["firmware"], theirs["driver"])
        assert device["is_alive"]
        assert len(chip.cores_occupied) == device["occupied"]
        assert (chip.health in (ChipHealth.OK, ChipHealth.DEGRADED)) is has_tool
    assert {device["occupied"] for device in theirs["devices"]} == {0, 8, 2}


def test_furiosas_bindings_and_our_driver_agree_that_a_card_is_dead(tmp_path, furiosa_python):
    twin = FuriosaTwin(tmp_path, cards=2)
    twin.kill(1)
    add_devices(twin)
    theirs = {device["bdf"]: device["is_alive"] for device in ask_vendor(furiosa_python, twin)["devices"]}
    assert theirs == {address: chip.health is ChipHealth.OK for address, chip in read_ours(twin).items()}
    assert sorted(theirs.values()) == [False, True]


ASK_NVML = """
import json, pynvml
names = {name: getattr(pynvml, name) for name in dir(pynvml) if isinstance(getattr(pynvml, name), int)}
functions = [name for name in dir(pynvml) if callable(getattr(pynvml, name))]
try:
    pynvml.nvmlInit()
    error = None
except pynvml.NVMLError as raised:
    error = raised.value
print(json.dumps({"names": names, "functions": functions, "error": error}))
"""


def test_nvml_has_every_name_that_the_driver_uses_and_the_twin_its_values(tmp_path):
    python = install(tmp_path / "nvidia", NVIDIA)
    done = subprocess.run([python, "-I", "-c", ASK_NVML], capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    source = (Path(nvidia_codec.__file__).with_name("driver.py")).read_text(encoding="utf-8")
    used = set(re.findall(r"\bnvml\.([A-Za-z_0-9]+)", source))
    assert len(used) > 20
    assert used <= {*told["names"], *told["functions"]}
    for name in used & set(told["names"]):
        assert getattr(NvidiaTwin, name) == told["names"][name], name
    assert {name for name in used if not hasattr(NvidiaTwin, name)} == set()
    # Without a driver the package raises what the twin's error has: an error with a value.
    assert told["error"] is None or isinstance(TwinNvmlError(told["error"]).value, type(told["error"]))
    for mask, word in nvidia_codec.CLOCK_EVENTS:
        vendor = "".join(part.capitalize() for part in word.split("_"))
        reasons = [told["names"].get(f"nvmlClocks{kind}Reason{vendor}") for kind in ("Event", "Throttle")]
        assert mask in reasons, word
