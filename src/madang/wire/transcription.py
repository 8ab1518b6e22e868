"""`POST /v1/audio/transcriptions`: the form that a client sends, what an engine is sent, and the formats of the answer.

Owns both directions. Refuses to know sockets and sound. An engine is always asked for `verbose_json`, or for a stream;
every other format is made here, so that engines need not agree on them. Called by `madang.wire.surface` and the
gateway's transcription legs.
"""

import math
import re
from typing import Any, NamedTuple, NoReturn

import msgspec

from madang.core import Rejected
from madang.model import EngineFeature, Service
from madang.wire.multipart import Part, boundary_of, encode_form, parse_form
from madang.wire.openai import ApiRequest, Endpoint
from madang.wire.openai_answers import EngineFailed
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.sse import encode_event

AUDIO_S_MAX = 24 * 3600.0
PROMPT_CHARS_MAX = 4096
FILENAME_CHARS_MAX = 100
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_LANGUAGE = re.compile(r"[a-z]{2,3}\Z")
_FILENAME = re.compile(r"[^0-9A-Za-z._\-]")
_KNOWN = frozenset(
    (
        "model",
        "file",
        "language",
        "prompt",
        "response_format",
        "temperature",
        "stream",
        "timestamp_granularities[]",
        "timestamp_granularities",
        "include[]",
        "include",
        "chunking_strategy",
        "user",
    )
)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_TYPES = {
    "text": b"content-type: text/plain; charset=utf-8\r\n",
    "srt": b"content-type: text/plain; charset=utf-8\r\n",
    "vtt": b"content-type: text/vtt; charset=utf-8\r\n",
}


class TranscriptionForm(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of a sound.

    Attributes:
        audio: the file's bytes, in whatever format the engine reads.
        has_words: the client wants a time for each word.
    """

    audio: bytes
    filename: str
    language: str = ""
    prompt: str = ""
    response_format: str = "json"
    temperature: float = 0.0
    has_words: bool = False


def parse_transcription(body: bytes, content_type: bytes) -> ApiRequest:
    """Return the request in a form; raises ApiError naming the field at fault."""
    try:
        parts = parse_form(body, boundary_of(content_type))
    except Rejected as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, error.message) from error
    fields: dict[str, str] = {}
    granularities: list[str] = []
    file: Part | None = None
    for part in parts:
        if part.name == "file":
            if file is not None:
                _refuse("file", "one file")
            file = part
        elif part.name.startswith("timestamp_granularities"):
            granularities.append(_text(part))
        else:
            _add(fields, part)
    service = fields.get("model", "")
    if not service:
        _refuse("model", "the name of a service, see GET /v1/models")
    if file is None or not file.content:
        _refuse("file", "a file that is not empty")
    _check_unsupported(fields)
    is_stream = _is_stream(fields)
    return ApiRequest(
        endpoint=Endpoint.TRANSCRIPTIONS,
        service=service,
        fields={},
        is_stream=is_stream,
        is_plain=False,
        needs=(EngineFeature.TRANSCRIPT_STREAM,) if is_stream else (),
        form=_form(file, fields, granularities),
    )


def _refuse(param: str, expected: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_REQUEST, f"'{param}': expected {expected}", param=param)


def _unsupported(param: str, capability: str) -> NoReturn:
    raise ApiError(ErrorCode.UNSUPPORTED, f"'{param}': {capability} is not supported here", param=param)


def _text(part: Part) -> str:
    try:
        return part.content.decode()
    except UnicodeDecodeError:
        _refuse(part.name[:64], "UTF-8 text")


def _add(fields: dict[str, str], part: Part) -> None:
    name = part.name
    if name not in _KNOWN:
        shown = name if len(name) <= 64 else name[:64] + "…"
        message = f"'{shown}': no such field at {Endpoint.TRANSCRIPTIONS}"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, param=shown)
    if name in fields:
        _refuse(name, "to be given once")
    fields[name] = _text(part)


def _check_unsupported(fields: dict[str, str]) -> None:
    if fields.get("include") or fields.get("include[]"):
        _unsupported("include", "the likelihood of tokens")
    if fields.get("chunking_strategy", "auto").strip('"') != "auto":
        _unsupported("chunking_strategy", "a choice of chunks")


def _is_stream(fields: dict[str, str]) -> bool:
    text = fields.get("stream", "false").lower()
    if text not in ("true", "false", "1", "0"):
        _refuse("stream", "true or false")
    is_stream = text in ("true", "1")
    if is_stream and fields.get("response_format", "json") not in ("json", "text"):
        _unsupported("stream", "a stream of this response_format; ask for json or text")
    return is_stream


def _form(file: Part, fields: dict[str, str], granularities: list[str]) -> TranscriptionForm:
    language = fields.get("language", "").lower()
    if language and _LANGUAGE.match(language) is None:
        _refuse("language", "an ISO 639 code such as ko or en")
    response_format = fields.get("response_format", "json")
    if response_format not in _FORMATS:
        _refuse("response_format", f"one of {', '.join(_FORMATS)}")
    prompt = fields.get("prompt", "")
    if len(prompt) > PROMPT_CHARS_MAX:
        _refuse("prompt", f"at most {PROMPT_CHARS_MAX} characters")
    if not set(granularities) <= {"segment", "word"}:
        _refuse("timestamp_granularities", "segment or word")
    if granularities and response_format != "verbose_json":
        _refuse("timestamp_granularities", "response_format verbose_json with it")
    return TranscriptionForm(
        audio=file.content,
        filename=_FILENAME.sub("_", file.filename or "audio")[-FILENAME_CHARS_MAX:],
        language=language,
        prompt=prompt,
        response_format=response_format,
        temperature=_temperature(fields.get("temperature", "0")),
        has_words="word" in granularities,
    )


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        _refuse("temperature", "a number from 0 to 1")
    return value


def engine_form(request: ApiRequest, service: Service, boundary: bytes) -> bytes:
    """Return the form that an engine is sent: encoded anew, so that gateway and engine read the same."""
    form = request.form
    assert isinstance(form, TranscriptionForm)
    fields = {
        "model": service.name,
        "response_format": "verbose_json",
        "temperature": f"{form.temperature:g}",
    }
    if form.language:
        fields["language"] = form.language
    if form.prompt:
        fields["prompt"] = form.prompt
    if form.has_words:
        fields["timestamp_granularities[]"] = "word"
    if request.is_stream:
        fields |= {"stream": "true", "response_format": "json"}
    parts = [Part(name, value.encode()) for name, value in fields.items()]
    parts.append(Part("file", form.audio, form.filename, "application/octet-stream"))
    return encode_form(parts, boundary)


class _Segment(msgspec.Struct):
    start: float
    end: float
    text: str


class _Transcript(msgspec.Struct):
    """What is read of an engine's verbose_json."""

    text: str
    duration: float
    language: str = ""
    segments: list[_Segment] = []
    words: list[Any] = []


_transcript_decoder = msgspec.json.Decoder(_Transcript)


class Transcript(NamedTuple):
    """An answer as the client gets it.

    Attributes:
        type_field: its Content-Type line.
        audio_ms: length of the sound.
    """

    type_field: bytes
    body: bytes
    audio_ms: int


def _audio_ms(duration_s: float) -> int:
    if not 0.0 <= duration_s <= AUDIO_S_MAX:
        raise EngineFailed(f"the engine's sound is {duration_s} s long; expected 0 to {AUDIO_S_MAX:g}")
    return math.ceil(duration_s * 1000)


def _usage(audio_ms: int) -> dict[str, Any]:
    return {"type": "duration", "seconds": -(-audio_ms // 1000)}


def word_transcript(request: ApiRequest, body: bytes) -> Transcript:
    """Return the client's answer from an engine's verbose_json; raises EngineFailed when it is none."""
    form = request.form
    assert isinstance(form, TranscriptionForm)
    try:
        found = _transcript_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the engine's transcript is malformed: {error}") from error
    audio_ms = _audio_ms(found.duration)
    content = _worded(form, found, audio_ms)
    return Transcript(_TYPES.get(form.response_format, b"content-type: application/json\r\n"), content, audio_ms)


def _worded(form: TranscriptionForm, found: _Transcript, audio_ms: int) -> bytes:
    match form.response_format:
        case "text":
            return f"{found.text}\n".encode()
        case "srt":
            blocks = (
                f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{one.text.strip()}\n"
                for number, one in enumerate(found.segments, 1)
            )
            return "\n".join(blocks).encode()
        case "vtt":
            blocks = (
                f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{one.text.strip()}\n" for one in found.segments
            )
            return "\n".join(("WEBVTT\n", *blocks)).encode()
        case "verbose_json":
            return _encoder.encode(_verbose(form, found, audio_ms))
        case _:
            return _encoder.encode({"text": found.text, "usage": _usage(audio_ms)})


def _verbose(form: TranscriptionForm, found: _Transcript, audio_ms: int) -> dict[str, Any]:
    value: dict[str, Any] = {
        "task": "transcribe",
        "language": found.language,
        "duration": found.duration,
        "text": found.text,
        "segments": [
            {"id": number, "start": one.start, "end": one.end, "text": one.text}
            for number, one in enumerate(found.segments)
        ],
        "usage": _usage(audio_ms),
    }
    if form.has_words:
        value["words"] = found.words
    return value


def _clock(instant_s: float, mark: str) -> str:
    """Return an instant as the subtitle formats write it, milliseconds after `mark`."""
    total_ms = round(max(instant_s, 0.0) * 1000)
    minutes, rest_ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest_ms // 1000:02d}{mark}{rest_ms % 1000:03d}"


class TranscriptStream:
    """Follows an engine's stream of text.

    Attributes:
        has_text: a piece that is not empty came.
        is_done: the last event came; `last` holds it for the client.
        audio_ms: how much of the sound was heard so far, as far as the engine says.
    """

    def __init__(self) -> None:
        self.has_text = self.is_done = False
        self.audio_ms = 0
        self.last = b""

    def take(self, payload: bytes) -> bytes:
        """Return the event that a client gets for one of the engine's, or nothing; raises EngineFailed."""
        try:
            event = _decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise EngineFailed(f"the engine sent an event that is none: {error}") from error
        kind = event.get("type") if type(event) is dict else None
        if kind == "transcript.text.delta" and type(event.get("delta")) is str:
            if type(event.get("end_s")) in (int, float):
                self.audio_ms = max(self.audio_ms, _audio_ms(event["end_s"]))
            self.has_text = self.has_text or bool(event["delta"])
            return encode_event(_encoder.encode({"type": kind, "delta": event["delta"]}))
        if kind == "transcript.text.done" and type(event.get("text")) is str:
            usage = event.get("usage")
            seconds = usage.get("seconds") if type(usage) is dict else None
            duration_s = event.get("duration_s", seconds)
            if type(duration_s) not in (int, float):
                raise EngineFailed("the engine does not say how long the sound was")
            self.audio_ms = _audio_ms(duration_s)
            done = {"type": kind, "text": event["text"], "usage": _usage(self.audio_ms)}
            self.last = encode_event(_encoder.encode(done))
            self.is_done = True
            return b""
        if kind == "error" or (type(event) is dict and event.get("error")):
            raise EngineFailed(f"the engine reported: {str(event)[:1000]}")
        return b""
