"""`multipart/form-data` (RFC 7578) that is read as it comes: a file of any size, never in memory.

Owns the framing of parts. Refuses to know what they mean, and everything that two readers could take differently: a
preamble, a part without a name, a transfer encoding. It holds back no more than one part's head or one boundary.
Pure; the site's uploads feed it.

States: `start` (before the first boundary), `edge` (just after a boundary), `head`, `content`, `done`.
"""

import re
from typing import NamedTuple

from madang.core import Rejected

HEAD_BYTES_MAX = 8 * 1024
PARTS_MAX = 64
_BOUNDARY = re.compile(rb"multipart/form-data\s*;.*?boundary=(?:\"([^\"\r\n]{1,70})\"|([^\s;\"]{1,70}))", re.IGNORECASE)
_PARAMETER = re.compile(rb';[ \t]*([A-Za-z]+)="((?:[^"\\\r\n]|\\.)*)"')
_ESCAPE = re.compile(rb'\\(["\\])')


class PartBegun(NamedTuple):
    """A part begins; `filename` is None for a plain field."""

    name: str
    filename: str | None


class PartData(NamedTuple):
    """A piece of the part's content."""

    data: bytes


class PartEnded(NamedTuple):
    """The part is complete."""


FormEvent = PartBegun | PartData | PartEnded


class FormSplitter:
    """Takes a form apart, piece by piece."""

    def __init__(self, content_type: bytes) -> None:
        """Prepare for a body; raises Rejected when its Content-Type is no form's."""
        match = _BOUNDARY.match(content_type)
        if match is None:
            raise Rejected("expected content-type multipart/form-data with a boundary")
        self._delimiter = b"\r\n--" + (match[1] or match[2])
        self._held = b"\r\n"  # so that the first boundary, which begins the body, looks like every other
        self._state = "start"
        self._parts = 0

    @property
    def is_done(self) -> bool:
        """Whether the last boundary came."""
        return self._state == "done"

    def feed(self, data: bytes) -> list[FormEvent]:
        """Return what `data` holds, in order; raises Rejected naming what is wrong. Linear in `data`."""
        if self._state == "done":
            return []  # RFC 2046 section 5.1.1: what follows the last boundary is to be ignored
        self._held += data
        events: list[FormEvent] = []
        steps = {"start": self._start, "edge": self._edge, "head": self._head, "content": self._content}
        while self._state != "done" and steps[self._state](events):
            pass
        return events

    def _start(self, _events: list[FormEvent]) -> bool:
        size = len(self._delimiter)
        if not self._delimiter.startswith(self._held[:size]):
            raise Rejected("the form does not begin with its boundary")
        if len(self._held) < size:
            return False
        return self._go("edge", size)

    def _edge(self, _events: list[FormEvent]) -> bool:
        """Look at the two bytes after a boundary: a line's end, or the end of all."""
        if len(self._held) < 2:
            return False
        mark = self._held[:2]
        if mark == b"--":
            return self._go("done", 2)
        if mark != b"\r\n":
            raise Rejected("a boundary of the form has no end of line")
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise Rejected(f"the form has more than {PARTS_MAX} parts")
        return self._go("head", 2)

    def _head(self, events: list[FormEvent]) -> bool:
        end = self._held.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX + 4)
        if end < 0:
            if len(self._held) > HEAD_BYTES_MAX:
                raise Rejected(f"a part of the form has no head of at most {HEAD_BYTES_MAX} bytes")
            return False
        events.append(_read_head(self._held[:end]))
        return self._go("content", end + 4)

    def _content(self, events: list[FormEvent]) -> bool:
        at = self._held.find(self._delimiter)
        if at >= 0:
            if at:
                events.append(PartData(self._held[:at]))
            events.append(PartEnded())
            return self._go("edge", at + len(self._delimiter))
        # A boundary may have begun in the last bytes: they wait for the next piece.
        safe = len(self._held) - len(self._delimiter) + 1
        if safe > 0:
            events.append(PartData(self._held[:safe]))
            self._held = self._held[safe:]
        return False

    def _go(self, state: str, taken: int) -> bool:
        self._state = state
        self._held = self._held[taken:]
        return True


def _read_head(head: bytes) -> PartBegun:
    disposition = b""
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        key = name.lower()
        if not colon or not key or key != key.strip():
            raise Rejected("a part of the form has a malformed head")
        if key == b"content-transfer-encoding" and value.strip().lower() not in (b"binary", b"8bit", b"7bit"):
            raise Rejected("a part of the form has a transfer encoding")
        if key == b"content-disposition":
            disposition = value.strip()
    parameters = {key.lower(): _ESCAPE.sub(rb"\1", text) for key, text in _PARAMETER.findall(disposition)}
    if not disposition.lower().startswith(b"form-data") or not parameters.get(b"name"):
        raise Rejected("a part of the form has no name")
    filename = parameters.get(b"filename")
    return PartBegun(
        name=parameters[b"name"].decode(errors="replace"),
        filename=None if filename is None else filename.decode(errors="replace"),
    )
