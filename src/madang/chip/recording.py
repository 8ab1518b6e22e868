"""What a driver saw of a machine, as one JSON document: recorded on a first real card, and played back in tests.

Owns the document and how serials and the like are masked in it. Refuses to know vendors, to write files, and to keep
what names people or programs. Called by `madang chip probe`, and by tests that play recordings.

A masked value keeps its length and is the same wherever it stood, so that what belonged together still does.
"""

import json
import re
from collections.abc import Mapping, Sequence

import msgspec

from madang.chip.host import Host, ToolOutput
from madang.chip.values import is_twin
from madang.core import Unavailable
from madang.model import Chip

_UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
_PRIVATE = re.compile(r'("(?:process|cmd|cmdline|board_info)"\s*:\s*)"(?:[^"\\]|\\.)*"')
"""Fields of vendors' JSON that name programs of users, or the board."""


class ToolRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a tool; `trouble` says why it gave no answer, and is empty when it did."""

    tools: tuple[str, ...]
    words: tuple[str, ...]
    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    trouble: str = ""


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one driver.

    Attributes:
        kind: the driver.
        origin: what machine it is from, and whether that was a twin; for people.
        recorded_at_s: wall time.
        files, names, links: what the machine held, by path; bytes that are not UTF-8 are replaced.
        tools: what vendors' tools wrote.
        chips: what the driver made of it.
    """

    kind: str
    origin: str
    recorded_at_s: float
    files: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    links: Mapping[str, str]
    tools: tuple[ToolRecord, ...]
    chips: tuple[Chip, ...]


class RecordingHost:
    """A machine that remembers what it was asked and what it answered.

    Args:
        host: the machine.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.files: dict[str, str] = {}
        self.found: dict[str, tuple[str, ...]] = {}
        self.links: dict[str, str] = {}
        self.tools: list[ToolRecord] = []

    def read(self, path: str) -> bytes:
        """Return what the machine holds."""
        data = self._host.read(path)
        if data:
            self.files[path] = data.decode("utf-8", errors="replace")
        return data

    def names(self, path: str) -> tuple[str, ...]:
        """Return what the machine holds."""
        found = self._host.names(path)
        if found:
            self.found[path] = found
        return found

    def link(self, path: str) -> str:
        """Return what the machine holds."""
        target = self._host.link(path)
        if target:
            self.links[path] = target
        return target

    def has_tool(self, tools: Sequence[str]) -> bool:
        """Return whether the machine has one."""
        return self._host.has_tool(tools)

    async def run(self, tools: Sequence[str], words: Sequence[str]) -> ToolOutput:
        """Run a tool of the machine."""
        asked = (tuple(tools), tuple(words))
        try:
            output = await self._host.run(tools, words)
        except Unavailable as error:
            self.tools.append(ToolRecord(tools=asked[0], words=asked[1], trouble=error.message))
            raise
        texts = [part.decode("utf-8", errors="replace") for part in (output.stdout, output.stderr)]
        record = ToolRecord(
            tools=asked[0], words=asked[1], exit_code=output.exit_code, stdout=texts[0], stderr=texts[1]
        )
        self.tools.append(record)
        return output


class PlaybackHost:
    """A machine that answers from a recording; what was not asked then is not there now.

    Args:
        recording: what it answers from.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def read(self, path: str) -> bytes:
        """Return what the file held."""
        return self._recording.files.get(path, "").encode()

    def names(self, path: str) -> tuple[str, ...]:
        """Return what the folder held."""
        return self._recording.names.get(path, ())

    def link(self, path: str) -> str:
        """Return where the link pointed."""
        return self._recording.links.get(path, "")

    def has_tool(self, tools: Sequence[str]) -> bool:
        """Return whether the tool had been run."""
        return any(record.tools == tuple(tools) for record in self._recording.tools)

    async def run(self, tools: Sequence[str], words: Sequence[str]) -> ToolOutput:
        """Return what the tool wrote then."""
        for record in self._recording.tools:
            if (record.tools, record.words) == (tuple(tools), tuple(words)):
                if record.trouble:
                    raise Unavailable(record.trouble)
                stdout, stderr = record.stdout.encode(), record.stderr.encode()
                return ToolOutput(exit_code=record.exit_code, stdout=stdout, stderr=stderr)
        raise Unavailable(f"the recording has no run of {' '.join(words)}")


def make_recording(kind: str, origin: str, wall_s: float, host: RecordingHost, chips: tuple[Chip, ...]) -> Recording:
    """Return what was seen, masked."""
    recording = Recording(
        kind=kind,
        origin=origin,
        recorded_at_s=wall_s,
        files=_relevant(host),
        names=_relevant_names(host),
        links=host.links,
        tools=tuple(host.tools),
        chips=chips,
    )
    return mask(recording)


def _relevant(host: RecordingHost) -> dict[str, str]:
    """Return files without those of devices that no chip was made of: they are read to be passed over."""
    kept = {path.rpartition("/")[0] for path in host.files if not path.endswith("/vendor")}
    return {path: text for path, text in host.files.items() if path.rpartition("/")[0] in kept}


def _relevant_names(host: RecordingHost) -> dict[str, tuple[str, ...]]:
    """Return folders; of the PCI bus only devices of which more than the vendor was read."""
    files = _relevant(host)
    bus = "/sys/bus/pci/devices"
    found = dict(host.found)
    if bus in found:
        found[bus] = tuple(name for name in found[bus] if f"{bus}/{name}/vendor" in files)
    return found


def mask(recording: Recording) -> Recording:
    """Return a recording without serials, UUIDs, command lines and board numbers.

    Twins' serials stay: they are what marks a recording as simulated.
    """
    text = msgspec.json.encode(recording).decode()
    escaped = {json.dumps(chip.serial)[1:-1] for chip in recording.chips if chip.serial and not is_twin(chip.serial)}
    for number, serial in enumerate(sorted(escaped), 1):
        masked = _mask_serial(serial, number)
        text = text.replace(serial, masked)
        # Chip ids hold serials in their own alphabet.
        text = text.replace(_slug(serial), _slug(masked))
    uuids = sorted({uuid.lower() for uuid in _UUID.findall(text) if set(uuid) - set("0-")})
    numbers = {uuid: number for number, uuid in enumerate(uuids, 1)}
    text = _UUID.sub(lambda match: _mask_uuid(match[0], numbers), text)
    masked_recording = msgspec.json.decode(text, type=Recording)
    tools = tuple(
        msgspec.structs.replace(record, stdout=_PRIVATE.sub(r'\1"masked"', record.stdout))
        for record in masked_recording.tools
    )
    return msgspec.structs.replace(masked_recording, tools=tools)


def _mask_serial(serial: str, number: int) -> str:
    """Return `RNG000000000001` for the first serial of 15 signs that begins with letters, else `9` and a number."""
    head = re.match(r"[A-Za-z]{1,3}", serial)
    kept = head[0] if head else "9"
    return f"{kept}{number:0{max(len(serial) - len(kept), 1)}d}"


def _mask_uuid(uuid: str, numbers: Mapping[str, int]) -> str:
    number = numbers.get(uuid.lower())
    return uuid if number is None else f"00000000-0000-4000-8000-{number:012d}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
