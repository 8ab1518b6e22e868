"""Attempts whose engine is asked something else than the client asked: scores of documents, the text of a sound.

Owns what is sent and that the answer waits until the usage event is durable. Refuses to read answers: `madang.wire`
does. Both are asked of one engine in one call.
"""

from typing import TYPE_CHECKING

from madang.core import Rejected
from madang.gateway.engine_leg import SSE_FIELDS, EngineLeg
from madang.gateway.errand import NOTHING, AttemptFailure, Served, ignore_durable
from madang.gateway.exchange import JSON_TYPE
from madang.gateway.feed import LiveReplica
from madang.gateway.relay import log_error
from madang.model import Outcome
from madang.policy.pricing import audio_ms_max
from madang.wire.openai import ApiRequest, Endpoint
from madang.wire.openai_answers import ANSWER_BYTES_MAX, EngineFailed, TokenCount, stream_error
from madang.wire.rerank import RerankForm, embedding_body, rank
from madang.wire.sse import SseSplitter, encode_event
from madang.wire.transcription import TranscriptionForm, TranscriptStream, engine_form, word_transcript

if TYPE_CHECKING:
    from madang.gateway.journey import Journey

RERANK_BYTES_MAX = 64 * 1024 * 1024
"""A thousand documents of 4096 dimensions at 12 characters a number are 50 MB."""


class ObjectLeg(EngineLeg):
    """An attempt whose answer is judged when it is whole."""

    __slots__ = ("_answer", "_audio_ms", "_pieces", "_size", "_token_count", "_type_field")

    bytes_max = ANSWER_BYTES_MAX

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        self._pieces: list[bytes] = []
        self._size = 0
        self._answer = b""
        self._type_field = JSON_TYPE
        self._token_count = NOTHING
        self._audio_ms = 0

    @property
    def request(self) -> ApiRequest:
        """What the client asked."""
        request = self._journey.request
        assert request is not None
        return request

    def start(self) -> None:
        """Send the request to the engine."""
        path, content_type, body = self._asked()
        replica, target = self._replica.replica, self._replica.target
        self._count(1)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"authorization: Bearer {replica.engine_key}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{self._journey.trace.fields()}\r\n"
        )
        self._call = self._relay.pool.call(target, head.encode() + body, self, self._relay.limits)

    def _asked(self) -> tuple[str, str, bytes]:
        """Return path, content type and body of what the engine is asked."""
        raise NotImplementedError

    def _read(self, body: bytes) -> None:
        """Take the engine's whole answer; raises EngineFailed when it is none."""
        raise NotImplementedError

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        """Nothing yet: the answer is judged when it is whole."""

    def _on_piece(self, data: bytes) -> None:
        size = self._size + len(data)
        if size > self.bytes_max:
            self._fail(AttemptFailure.PROTOCOL, f"the engine's answer is over {self.bytes_max} bytes")
        elif not self._journey.exchange.hold(len(data)):
            self._refuse_to_hold()
        else:
            self._pieces.append(data)
            self._size = size

    def _fail(self, failure: AttemptFailure, reason: str) -> None:
        self._journey.exchange.let_go(self._size)
        super()._fail(failure, reason)

    def _on_complete(self) -> None:
        try:
            self._read(b"".join(self._pieces))
        except EngineFailed as error:
            self._fail(AttemptFailure.PROTOCOL, error.message)
            return
        self._release()
        self._journey.attempt_answers()
        self._journey.record(self._served(Outcome.COMPLETED), self._on_durable)

    def _on_broken(self, failure: AttemptFailure, reason: str) -> None:
        self._fail(failure, reason)

    def _served(self, outcome: Outcome) -> Served:
        return Served(outcome=outcome, count=self._token_count, replica=self._replica, audio_ms=self._audio_ms)

    def _on_durable(self, reason: str) -> None:
        journey = self._journey
        if reason:
            journey.answer_error(log_error(reason))
            return
        journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        journey.exchange.respond(200, self._type_field + self._answer_fields(), self._answer)


class RerankLeg(ObjectLeg):
    """An attempt at scores, by an engine that embeds."""

    __slots__ = ()

    bytes_max = RERANK_BYTES_MAX

    def _asked(self) -> tuple[str, str, bytes]:
        form, service = self.request.form, self._journey.service
        assert isinstance(form, RerankForm)
        assert service is not None
        body = embedding_body(form, service, self._replica.replica.features)
        return Endpoint.EMBEDDINGS.value, "application/json", body

    def _read(self, body: bytes) -> None:
        answer_id = f"rerank-{self._journey.errand.request_id}"
        self._answer, self._token_count = rank(self.request, body, answer_id)


class TranscriptionLeg(ObjectLeg):
    """An attempt at the text of a sound, all at once."""

    __slots__ = ()

    def _asked(self) -> tuple[str, str, bytes]:
        service = self._journey.service
        assert service is not None
        # A client cannot foresee the id, so it cannot put the boundary into its sound.
        boundary = f"madang-{self._journey.errand.request_id}"
        body = engine_form(self.request, service, boundary.encode())
        return Endpoint.TRANSCRIPTIONS.value, f"multipart/form-data; boundary={boundary}", body

    def _read(self, body: bytes) -> None:
        self._type_field, self._answer, heard_ms = word_transcript(self.request, body)
        self._audio_ms = min(heard_ms, self._audio_ms_max)

    @property
    def _audio_ms_max(self) -> int:
        """What was reserved: a sound is counted as no longer, whatever an engine makes of it."""
        form = self.request.form
        assert isinstance(form, TranscriptionForm)
        return audio_ms_max(len(form.audio))


class TranscriptStreamLeg(TranscriptionLeg):
    """An attempt at the text of a sound, in pieces as they are understood."""

    __slots__ = ("_first_token_ns", "_splitter", "_stream")

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        self._splitter = SseSplitter()
        self._stream = TranscriptStream()
        self._first_token_ns: int | None = None

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        if not fields.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._fail(AttemptFailure.PROTOCOL, "the engine's answer is no event stream")

    def _on_piece(self, data: bytes) -> None:
        stream, trouble = self._stream, ""
        pieces: list[bytes] = []
        try:
            pieces += [stream.take(payload) for payload in self._splitter.feed(data)]
        except (EngineFailed, Rejected) as error:
            trouble = error.message
        if self._first_token_ns is None and stream.has_text:
            self._first_token_ns = self._relay.clock.monotonic_ns()
        written = b"".join(pieces)
        if written:
            self._pass_on(written)
        if trouble:
            self._on_broken(AttemptFailure.PROTOCOL, trouble)
        elif stream.is_done:
            self._release()
            self._journey.record(self._served(Outcome.COMPLETED), self._on_durable)

    def _pass_on(self, data: bytes) -> None:
        exchange = self._journey.exchange
        if exchange.is_begun:
            exchange.send(data)
            return
        self._journey.attempt_answers()
        self._journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        exchange.start(200, SSE_FIELDS + self._answer_fields(), data)

    def _on_complete(self) -> None:
        self._on_broken(AttemptFailure.CLOSED, "the engine's stream ended early")

    def _on_broken(self, failure: AttemptFailure, reason: str) -> None:
        journey = self._journey
        if not journey.exchange.is_begun:
            self._fail(failure, reason)
            return
        self._stop()
        journey.attempt_broke(failure, reason)
        journey.record(self._served(Outcome.UPSTREAM_FAILED), ignore_durable)
        message = f"the engine at site {self._relay.site} failed in the middle of the answer ({failure})"
        journey.exchange.cut(encode_event(stream_error(message)))

    def _served(self, outcome: Outcome) -> Served:
        return Served(
            outcome=outcome,
            count=TokenCount(0, 0, False),
            replica=self._replica,
            first_token_ns=self._first_token_ns,
            audio_ms=min(self._stream.audio_ms, self._audio_ms_max),
        )

    def _on_durable(self, reason: str) -> None:
        exchange = self._journey.exchange
        if reason:
            error = log_error(reason)
            if exchange.is_begun:
                exchange.cut(encode_event(stream_error(error.message)))
            else:
                self._journey.answer_error(error)
            return
        if not exchange.is_begun:
            self._pass_on(b"")
        exchange.end(self._stream.last)
