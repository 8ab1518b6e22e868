"""Lines of a batch: read from the input as OpenAI reads them, and written to the results.

Owns the shapes of both and the words for what is wrong. Pure. Refuses to look into a request's body beyond the name of
its model: the gateway judges that when the line runs.
"""

from typing import Any

import msgspec

from madang.site.batches.state import ERRORS_MAX, BatchError

LINE_BYTES_MAX = 4 * 1024 * 1024
CUSTOM_ID_CHARS_MAX = 512
_UTF8_BOM = b"\xef\xbb\xbf"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a batch; `number` counts from 1."""

    number: int
    custom_id: str
    model: str
    body: bytes


class LineCutter:
    """Cuts a stream into lines; holds back at most one."""

    def __init__(self) -> None:
        self._held = b""
        self._is_first = True

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete, without their ends.

        Raises:
            LineTooLong: a line is over LINE_BYTES_MAX.
        """
        if self._is_first:
            data = data.removeprefix(_UTF8_BOM)
            self._is_first = False
        *lines, self._held = (self._held + data).split(b"\n")
        if max(map(len, (*lines, self._held))) > LINE_BYTES_MAX:
            raise LineTooLong
        return lines

    def end(self) -> list[bytes]:
        """Return the last line, unless it is empty: a file may end with a line's end or without."""
        return [self._held] if self._held.strip() else []


class LineTooLong(Exception):
    """A line of the input is over LINE_BYTES_MAX."""


def read_line(number: int, data: bytes, endpoint: str) -> Line | BatchError:
    """Return the request in a line, or what is wrong with it."""

    def wrong(code: str, message: str, param: str | None = None) -> BatchError:
        return BatchError(code=code, message=message, param=param, line=number)

    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return wrong("invalid_json_line", "this line is not parseable as valid JSON")
    if not isinstance(fields, dict):
        return wrong("invalid_json_line", "this line is not a JSON object")
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        return wrong("missing_required_parameter", "custom_id is a string of 1 to 512 characters", "custom_id")
    if fields.get("method") != "POST":
        return wrong("invalid_method", "method is POST", "method")
    if fields.get("url") != endpoint:
        return wrong("invalid_url", f"url is the batch's endpoint, {endpoint}", "url")
    if not isinstance(body, dict):
        return wrong("missing_required_parameter", "body is an object", "body")
    if not isinstance(body.get("model"), str) or not body["model"]:
        return wrong("missing_required_parameter", "body.model is the name of a service", "body.model")
    if body.pop("stream", False) not in (False, None):
        return wrong("invalid_parameter", "a line of a batch has no stream", "body.stream")
    body.pop("stream_options", None)
    return Line(number=number, custom_id=custom_id, model=body["model"], body=msgspec.json.encode(body))


class InputCheck:
    """Judges a whole input, line by line."""

    def __init__(self, endpoint: str, lines_max: int) -> None:
        """Begin.

        Attributes:
            total: lines that hold anything.
            model: of the first good line; all others must name it too.
            errors: what is wrong, at most ERRORS_MAX.
        """
        self._endpoint = endpoint
        self._lines_max = lines_max
        self._seen: set[str] = set()
        self._number = 0
        self.total = 0
        self.model = ""
        self.errors: list[BatchError] = []

    @property
    def is_hopeless(self) -> bool:
        """Whether looking further is no use."""
        return len(self.errors) >= ERRORS_MAX or self.total > self._lines_max

    def take(self, data: bytes) -> None:
        """Judge the next line, unless there is no use in it."""
        self._number += 1
        if self.is_hopeless or not data.strip():
            return
        self.total += 1
        if self.total > self._lines_max:
            self._note("too_many_requests", f"a batch has at most {self._lines_max} requests")
            return
        line = read_line(self._number, data, self._endpoint)
        if isinstance(line, BatchError):
            self.errors.append(line)
        elif line.custom_id in self._seen:
            self._note("duplicate_custom_id", "the custom_id of this line was used before", "custom_id")
        elif line.model != (self.model or line.model):
            self._note("mismatched_model", f"a batch has one model; earlier lines name {self.model}", "body.model")
        else:
            self.model = line.model
            self._seen.add(line.custom_id)

    def end(self) -> None:
        """All lines were judged."""
        if self.total == 0:
            self.errors.append(BatchError(code="empty_file", message="the input file has no requests"))

    def too_long(self) -> None:
        """A line is longer than any may be."""
        self._number += 1
        self._note("line_too_long", f"a line has at most {LINE_BYTES_MAX} bytes")

    def _note(self, code: str, message: str, param: str | None = None) -> None:
        self.errors.append(BatchError(code=code, message=message, param=param, line=self._number))


def write_answer(line: Line, request_id: str, status: int, body: bytes) -> bytes:
    """Return the result of a line that was answered, as one line of JSON."""
    try:
        content: Any = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(body)))  # on one line, whatever came
    except msgspec.DecodeError:
        content = {"error": {"message": body[:1000].decode(errors="replace"), "type": "server_error"}}
    response = {"status_code": status, "request_id": request_id, "body": content}
    return _write(line.custom_id, request_id, response, None)


def write_failure(custom_id: str, request_id: str, code: str, message: str) -> bytes:
    """Return the result of a line without an answer, as one line of JSON."""
    return _write(custom_id, request_id, None, {"code": code, "message": message})


def _write(custom_id: str, request_id: str, response: object, error: object) -> bytes:
    result = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(result) + b"\n"
