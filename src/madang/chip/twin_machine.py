"""A simulated machine in a folder: sysfs files and vendors' tools, for the twins of chips.

Owns the tree, the executables and what can go wrong with them. Refuses to know any vendor: twins say what a file
holds and what a tool answers, and drivers meet them only there. Several twins may share one machine.

Its firmware names the vendor `MadangTwin`, and so do the serials that twins give their cards: what is read from it
is marked as simulated wherever it goes.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from madang.chip.pci import SYS_VENDOR
from madang.chip.values import TWIN_VENDOR

_TOOL = """#!{python} -IS
# {vendor}: plays a vendor's tool. Answers come from a file beside it; it never ends by itself when told to hang.
import json, os, sys, time
with open({answers!r}, encoding="utf-8") as file:
    told = json.load(file)
fault = told["fault"]
if fault == "hang":
    while True:
        time.sleep(3600)
if fault == "flood":
    while True:
        os.write(1, b"0" * 65536)
if fault == "garbage":
    os.write(1, bytes(range(256)))
    sys.exit(0)
if fault == "crash":
    os.write(2, b"panicked\\n")
    sys.exit(101)
answer = told["answers"].get(" ".join(sys.argv[1:]))
if answer is None:
    os.write(2, b"error: unexpected argument\\n")
    sys.exit(2)
os.write(1, answer.encode("utf-8"))
"""


class TwinMachine:
    """One simulated machine on disk.

    Args:
        root: a folder; what is in it is kept.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._answers: dict[str, dict[str, str]] = {}
        self._faults: dict[str, str] = {}
        self.write(SYS_VENDOR, f"{TWIN_VENDOR}\n")

    def write(self, path: str, text: str) -> None:
        """Set the content of a file."""
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link, as sysfs has them between classes and devices."""
        place = self._at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(target)

    def remove(self, path: str) -> None:
        """Fault: a file, a link, or a whole folder is gone, as after a driver was unloaded or a card fell off."""
        place = self._at(path)
        if place.is_dir() and not place.is_symlink():
            for name in sorted(os.listdir(place)):
                self.remove(f"{path}/{name}")
            place.rmdir()
        else:
            place.unlink(missing_ok=True)

    def garble(self, path: str, data: bytes = b"\xff\x00nonsense\n") -> None:
        """Fault: a file holds nonsense."""
        self._at(path).write_bytes(data)

    def forbid(self, path: str) -> None:
        """Fault: a file cannot be read; a folder in its place fails for every user, root included."""
        self._at(path).unlink(missing_ok=True)
        self._at(path).mkdir()

    def add_pci(self, address: str, pci_id: str, *, numa_node: int, cpus: str, class_code: str = "0x120000") -> None:
        """Put a function on the PCI bus."""
        vendor, _, device = pci_id.partition(":")
        folder = f"/sys/bus/pci/devices/{address}"
        for name, text in (
            ("vendor", f"0x{vendor}"),
            ("device", f"0x{device}"),
            ("class", class_code),
            ("numa_node", str(numa_node)),
            ("local_cpulist", cpus),
        ):
            self.write(f"{folder}/{name}", f"{text}\n")

    def remove_pci(self, address: str) -> None:
        """Fault: the function is gone from the bus."""
        self.remove(f"/sys/bus/pci/devices/{address}")

    def install(self, tool: str, answers: Mapping[str, str]) -> None:
        """Write a vendor's tool that answers each command line (without its own name) with a text.

        Any other command line is refused with status 2, as command-line parsers do.
        """
        self._answers[tool] = dict(answers)
        place = self._at(tool)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            told = str(self._told(tool))
            script = _TOOL.format(python=sys.executable, vendor=TWIN_VENDOR, answers=told)
            # Written aside and renamed: a tool that is running while it is written cannot be (ETXTBSY).
            fresh = place.with_suffix(".new")
            fresh.write_text(script, encoding="utf-8")
            fresh.chmod(0o755)
            fresh.rename(place)
        self._tell(tool)

    def uninstall(self, tool: str) -> None:
        """Fault: the vendor's tool is not there."""
        self._at(tool).unlink(missing_ok=True)

    def break_tool(self, tool: str, fault: str) -> None:
        """Fault: the tool does `hang`, `flood`, `garbage` or `crash`; empty mends it."""
        self._faults[tool] = fault
        self._tell(tool)

    def _tell(self, tool: str) -> None:
        told = {"fault": self._faults.get(tool, ""), "answers": self._answers.get(tool, {})}
        fresh = self._told(tool).with_suffix(".new")
        fresh.write_text(json.dumps(told), encoding="utf-8")
        fresh.rename(self._told(tool))

    def _told(self, tool: str) -> Path:
        place = self._at(tool)
        return place.with_name(f".{place.name}.json")

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")
