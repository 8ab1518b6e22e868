"""A simulated machine in a folder: sysfs files and vendors' tools, for the twins of chips.

Owns the tree, the executables and what can go wrong with them. Refuses to know any vendor: twins say what a file
holds and what a tool answers, and drivers meet them only there. Several twins may share one machine.

Its firmware names the vendor `MadangTwin`, and so do the serials that twins give their cards: what is read from it
is marked as simulated wherever it goes.
"""

import fcntl
import os
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path

from madang.chip.pci import SYS_VENDOR
from madang.chip.values import TWIN_VENDOR

_TOOL = """#!/bin/sh
# {vendor}: plays a vendor's tool. Answers come from files beside it, by its words; it never ends when told to hang.
told={told}
read -r fault < "$told/fault"
case "$fault" in
hang) while :; do sleep 3600; done ;;
flood) exec cat /dev/zero ;;
garbage) exec cat "$told/garbage" ;;
crash) echo panicked >&2; exit 101 ;;
esac
[ -f "$told/=$*" ] || {{ echo "error: unexpected argument" >&2; exit 2; }}
exec cat "$told/=$*"
"""
_GARBAGE = bytes(range(256))


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
            script = _TOOL.format(vendor=TWIN_VENDOR, told=shlex.quote(str(self._told(tool))))
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

    def add_device(self, path: str) -> None:
        """Put a device node where programs look for it: a file whose bytes are its cores."""
        self._at(path).parent.mkdir(parents=True, exist_ok=True)
        self._at(path).touch()

    def find_holder(self, path: str, core: int = 0) -> int:
        """Return the process that has a core of a device node open (a record lock on that byte), 0 for none."""
        descriptor = os.open(self._at(path), os.O_RDWR | os.O_CLOEXEC)
        try:
            # struct flock of <fcntl.h>: who would be in the way of a lock on this byte; nothing is locked.
            asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, core, 1, 0)
            kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        finally:
            os.close(descriptor)
        return pid if kind != fcntl.F_UNLCK else 0

    def _tell(self, tool: str) -> None:
        folder = self._told(tool)
        folder.mkdir(parents=True, exist_ok=True)
        answers = {f"={words}": text.encode() for words, text in self._answers.get(tool, {}).items()}
        for old in os.listdir(folder):
            if old.startswith("=") and old not in answers:
                (folder / old).unlink()
        for name, data in {**answers, "garbage": _GARBAGE, "fault": f"{self._faults.get(tool, '')}\n".encode()}.items():
            # Written aside and renamed: whoever asks meanwhile gets the old answer or the new one, and whole.
            fresh = folder / "new"
            fresh.write_bytes(data)
            fresh.rename(folder / name)

    def _told(self, tool: str) -> Path:
        place = self._at(tool)
        return place.with_name(f".{place.name}")

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")
