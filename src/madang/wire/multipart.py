"""`multipart/form-data` (RFC 7578), the part of it that HTTP clients send: read strictly, and written.

Owns the framing of parts. Refuses to know what they mean, and everything that two readers could take differently: a
preamble, an epilogue, a part without a name, a transfer encoding. Called by `madang.wire.transcription` and by the
engines that take such bodies. Standard library only.
"""

import re

from madang.core import Rejected

PARTS_MAX = 64
HEAD_BYTES_MAX = 8 * 1024
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=?]{1,70}\Z")
_PARAMETER = re.compile(r';[ \t]*([A-Za-z0-9_*\-]+)=(?:"((?:[^"\\\r\n]|\\.)*)"|([^";,\s]+))')


class Part:
    """One part of a form.

    Attributes:
        name: of the field.
        filename: as the client calls the file; None for a plain field.
        content_type: as stated, or empty.
        content: its bytes.
    """

    __slots__ = ("content", "content_type", "filename", "name")

    def __init__(self, name: str, content: bytes, filename: str | None = None, content_type: str = "") -> None:
        self.name = name
        self.content = content
        self.filename = filename
        self.content_type = content_type


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary that a Content-Type names; raises Rejected when it is no form's."""
    text = content_type.decode("latin-1")
    kind, _, _ = text.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise Rejected("expected content-type multipart/form-data")
    for name, quoted, plain in _PARAMETER.findall(text):
        if name.lower() == "boundary":
            boundary: str = quoted or plain
            if _BOUNDARY.match(boundary) is None:
                break
            return boundary.encode()
    raise Rejected("the content-type names no boundary of 1 to 70 characters")


def parse_form(body: bytes, boundary: bytes) -> list[Part]:
    """Return the parts of `body` in order; raises Rejected naming what is wrong. Linear in the body."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter):
        raise Rejected("the form does not begin with its boundary")
    parts: list[Part] = []
    place = len(delimiter)
    while True:
        if body[place : place + 2] == b"--":
            if body[place + 2 :] not in (b"", b"\r\n"):
                raise Rejected("something follows the form's last boundary")
            return parts
        if body[place : place + 2] != b"\r\n":
            raise Rejected("a boundary of the form has no end of line")
        if len(parts) >= PARTS_MAX:
            raise Rejected(f"the form has more than {PARTS_MAX} parts")
        end = body.find(b"\r\n" + delimiter, place)
        if end < 0:
            raise Rejected("the form has no last boundary")
        parts.append(_part(body, place + 2, end))
        place = end + 2 + len(delimiter)


def _part(body: bytes, start: int, end: int) -> Part:
    head_end = body.find(b"\r\n\r\n", start, min(end, start + HEAD_BYTES_MAX) + 4)
    if head_end < 0 or head_end > end:
        raise Rejected(f"a part of the form has no head of at most {HEAD_BYTES_MAX} bytes")
    fields: dict[str, str] = {}
    for line in body[start:head_end].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        key = name.decode("latin-1").lower()
        if not colon or not key or key != key.strip() or key in fields:
            raise Rejected("a part of the form has a malformed head")
        fields[key] = value.decode("utf-8", errors="replace").strip()
    if fields.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise Rejected("a part of the form has a transfer encoding")
    disposition = fields.get("content-disposition", "")
    kind, _, _ = disposition.partition(";")
    parameters = {
        key.lower(): re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
        for key, quoted, plain in _PARAMETER.findall(disposition)
    }
    if kind.strip().lower() != "form-data" or not parameters.get("name"):
        raise Rejected("a part of the form has no name")
    content = body[head_end + 4 : end]
    return Part(parameters["name"], content, parameters.get("filename"), fields.get("content-type", ""))


def encode_form(parts: list[Part], boundary: bytes) -> bytes:
    """Return a form's bytes; the caller sees to it that `boundary` stands in no content."""
    pieces: list[bytes] = []
    for part in parts:
        head = f'content-disposition: form-data; name="{_quoted(part.name)}"'
        if part.filename is not None:
            head += f'; filename="{_quoted(part.filename)}"'
        if part.content_type:
            head += f"\r\ncontent-type: {part.content_type}"
        pieces += (b"--", boundary, b"\r\n", head.encode(), b"\r\n\r\n", part.content, b"\r\n")
    pieces += (b"--", boundary, b"--\r\n")
    return b"".join(pieces)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
