"""Parts of a snapshot, kept until all have come.

Owns the buffer and its bounds. Refuses to apply anything and to know sockets. Called by the command listener.

| event                                     | effect                                       |
|-------------------------------------------|----------------------------------------------|
| part of the snapshot under way            | kept; whole when it was the last one missing |
| part that came before                     | nothing, whole stays as it was               |
| part of another snapshot                  | what was kept is dropped, the part kept      |
| part that contradicts those before, or    |                                              |
| that goes over a bound                    | Rejected, what was kept is dropped           |
"""

import msgspec

from madang.core import Rejected
from madang.wire.bus import DesiredItem, ResyncPart

PARTS_MAX = 1024
BYTES_MAX = 64 * 1024 * 1024
"""Of all parts as they came; 250 times what a hundred sites and ten thousand keys need."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A whole snapshot, in order of its parts."""

    resync_id: str
    generation: int
    items: tuple[DesiredItem, ...]


class ResyncBuffer:
    """At most one snapshot under way."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._head: ResyncPart | None = None
        self._parts: dict[int, tuple[DesiredItem, ...]] = {}
        self._size_bytes = 0

    def add(self, part: ResyncPart, size_bytes: int) -> Snapshot | None:
        """Take a part; return the snapshot when it is whole, and forget it then.

        Args:
            part: as decoded.
            size_bytes: of the message it came in.

        Raises:
            Rejected: the part is not ours, contradicts its snapshot, or goes over a bound.
        """
        if part.site != self._site:
            raise Rejected(f"resync is for site {part.site!r}, not for {self._site!r}")
        if self._head is None or part.resync_id != self._head.resync_id:
            self.clear()
            self._head = part
        self._check(self._head, part, size_bytes)
        if part.part not in self._parts:
            self._parts[part.part] = part.items
            self._size_bytes += size_bytes
        if len(self._parts) < part.parts:
            return None
        items = tuple(item for number in range(part.parts) for item in self._parts[number])
        whole = Snapshot(resync_id=part.resync_id, generation=part.generation, items=items)
        self.clear()
        return whole

    def _check(self, head: ResyncPart, part: ResyncPart, size_bytes: int) -> None:
        problem = ""
        if not 1 <= part.parts <= PARTS_MAX:
            problem = f"it has {part.parts} parts; expected 1 to {PARTS_MAX}"
        elif not 0 <= part.part < part.parts:
            problem = f"part {part.part} is outside of 0 to {part.parts - 1}"
        elif (part.parts, part.generation) != (head.parts, head.generation):
            problem = "its parts disagree about their number or generation"
        elif self._size_bytes + size_bytes > BYTES_MAX:
            problem = f"it is over {BYTES_MAX} bytes"
        if problem:
            self.clear()
            raise Rejected(f"resync {part.resync_id[:80]!r} is refused: {problem}")

    def clear(self) -> None:
        """Drop what was kept."""
        self._head = None
        self._parts = {}
        self._size_bytes = 0
