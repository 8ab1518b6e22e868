"""The whisper engine's texts: the command line of its child, requests and answers of `/v1/audio/transcriptions`.

Owns both directions and the limits. Refuses to transcribe. Vendor-free, for the twin imports it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from madang.core import Rejected
from madang.engine.child_options import ChildOptions, many
from madang.wire.multipart import Part, boundary_of, parse_form

FILES = ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
BODY_BYTES_MAX = 64 * 1024 * 1024
PATH = "/v1/audio/transcriptions"
_FORMATS = ("json", "verbose_json")


class BadRequest(Exception):
    """A request that cannot be served; becomes a 400.

    Attributes:
        message: what was expected.
        param: the field.
        code: of the error object.
    """

    def __init__(self, message: str, param: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the engine's child.

    Attributes:
        files: paths of the model's files, in the order of FILES.
        threads: CPU threads of a transcription.
    """

    files: tuple[Path, ...] = field(metadata=many(Path))
    threads: int

    def __post_init__(self) -> None:
        if len(self.files) != len(FILES):
            raise ValueError(f"--files: expected {len(FILES)} times, in the order {', '.join(FILES)}")


@dataclass(frozen=True, kw_only=True)
class SpeechRequest:
    """A request that passed all checks but the sound's own format.

    Attributes:
        language: ISO 639 code, None to find out.
        has_words: times for each word are wanted.
        is_stream: events are wanted.
        is_verbose: segments are wanted with the text.
    """

    audio: bytes
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    has_words: bool = False
    is_stream: bool = False
    is_verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of speech; instants in seconds from the beginning, `words` as (start, end, word)."""

    start_s: float
    end_s: float
    text: str
    words: tuple[tuple[float, float, str], ...] = ()


def parse_request(content_type: str, body: bytes) -> SpeechRequest:
    """Return the request in a form; raises BadRequest naming field and expectation."""
    try:
        parts = parse_form(body, boundary_of(content_type.encode("latin-1")))
    except Rejected as error:
        raise BadRequest(error.message, "") from error
    fields = {part.name: part for part in parts}
    file = fields.get("file")
    if file is None or not file.content:
        raise BadRequest("expected a file that is not empty", "file")
    response_format = _text(fields.get("response_format")) or "json"
    if response_format not in _FORMATS:
        raise BadRequest(f"expected one of {', '.join(_FORMATS)}", "response_format", "unsupported")
    return SpeechRequest(
        audio=file.content,
        language=_text(fields.get("language")) or None,
        prompt=_text(fields.get("prompt")) or None,
        temperature=_temperature(_text(fields.get("temperature")) or "0"),
        has_words=_text(fields.get("timestamp_granularities[]")) == "word",
        is_stream=_text(fields.get("stream")).lower() == "true",
        is_verbose=response_format == "verbose_json",
    )


def _text(part: Part | None) -> str:
    if part is None:
        return ""
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        _refuse("UTF-8 text", part.name)


def _refuse(expected: str, param: str) -> NoReturn:
    raise BadRequest(f"expected {expected}", param)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        _refuse("a number from 0 to 1", "temperature")
    return value


def encode_answer(
    asked: SpeechRequest, segments: Sequence[Segment], language: str, duration_s: float, alias: str
) -> dict[str, Any]:
    """Return OpenAI's transcription object; `duration_s` is the sound's length."""
    answer: dict[str, Any] = {
        "text": join_text(segments),
        "model": alias,
        "usage": {"type": "duration", "seconds": math.ceil(duration_s)},
    }
    if asked.is_verbose:
        answer |= {
            "task": "transcribe",
            "language": language,
            "duration": duration_s,
            "segments": [
                {"id": number, "start": one.start_s, "end": one.end_s, "text": one.text}
                for number, one in enumerate(segments)
            ],
        }
    if asked.has_words:
        words = (word for one in segments for word in one.words)
        answer["words"] = [{"start": start, "end": end, "word": word} for start, end, word in words]
    return answer


def join_text(segments: Sequence[Segment]) -> str:
    """Return the whole text."""
    return "".join(one.text for one in segments).strip()


def delta_event(segment: Segment) -> bytes:
    """Return the event of one stretch; `end_s` says how much of the sound was heard."""
    return _event({"type": "transcript.text.delta", "delta": segment.text, "end_s": segment.end_s})


def done_event(segments: Sequence[Segment], duration_s: float) -> bytes:
    """Return the last event of a stream."""
    usage = {"type": "duration", "seconds": math.ceil(duration_s)}
    done = {"type": "transcript.text.done", "text": join_text(segments), "duration_s": duration_s, "usage": usage}
    return _event(done)


def error_event(message: str) -> bytes:
    """Return the event that ends a stream which can no longer succeed."""
    return _event({"type": "error", "error": {"message": message}})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
