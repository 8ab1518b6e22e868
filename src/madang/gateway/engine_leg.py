"""An attempt at a replica of this site.

Owns what passes between one engine and one client: the call, the count of tokens, and the last bytes, which wait
until the usage event is durable. Refuses to decide what comes after a failure: the journey does. Generation is
streamed from the engine, whatever the client wants, since most engines stop only then when they are left; an engine
that names UNSTREAMED_ABORT is asked for one object where the client wants one.
"""

from typing import TYPE_CHECKING

from madang.core import Rejected, ns_to_s
from madang.gateway.errand import AttemptFailure, Served, held_error, ignore_durable
from madang.gateway.exchange import JSON_TYPE
from madang.gateway.feed import LiveReplica
from madang.gateway.relay import log_error, origin_fields
from madang.gateway.target import Failure
from madang.gateway.upstream import Call
from madang.model import Outcome
from madang.wire.http1 import content_of_chunk
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import (
    ANSWER_BYTES_MAX,
    AnswerStream,
    EngineFailed,
    TokenCount,
    engine_complaint,
    rewrite_answer,
    rewrite_embeddings,
    stream_error,
)
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.sse import DONE_EVENT, SseSplitter, encode_event

if TYPE_CHECKING:
    from madang.gateway.journey import Journey

COMPLAINT_BYTES_MAX = 64 * 1024
EMBEDDING_BYTES_MAX = 128 * 1024 * 1024
"""2048 texts of 4096 dimensions at 12 characters a number are 100 MB."""
HOLD_STEP_BYTES = 64 * 1024
"""A text that is put together from a stream is counted by such steps: most never come to the first."""
SSE_FIELDS = b"content-type: text/event-stream\r\ncache-control: no-cache\r\n"
# What an engine says of the request itself; anything else it says is about the engine.
COMPLAINTS = frozenset((400, 413, 422))
_FAILURES = {
    Failure.CONNECT: AttemptFailure.CONNECT,
    Failure.CLOSED: AttemptFailure.CLOSED,
    Failure.TIMEOUT: AttemptFailure.TIMEOUT,
    Failure.PROTOCOL: AttemptFailure.PROTOCOL,
}


class EngineLeg:
    """What both kinds of attempt share: the call, the in-flight count, an engine's complaint."""

    __slots__ = ("_call", "_complaint", "_held_bytes", "_is_counted", "_is_settled", "_journey", "_relay", "_replica")

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        self._journey = journey
        self._relay = journey.relay
        self._replica = replica
        self._call: Call | None = None
        self._complaint: list[bytes] | None = None
        self._is_counted = False
        self._is_settled = False
        self._held_bytes = 0

    def start(self) -> None:
        """Send the request to the engine."""
        try:
            body = self._engine_body()
        except ApiError as error:
            self._journey.answer_error(error)
            return
        replica, target = self._replica.replica, self._replica.target
        self._count(1)
        head = (
            f"POST {self._journey.errand.endpoint} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"authorization: Bearer {replica.engine_key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{self._journey.trace.fields()}\r\n"
        )
        self._call = self._relay.pool.call(target, head.encode() + body, self, self._relay.limits)

    def on_gone(self) -> None:
        """Stop the engine at once and write down what it did; nothing is left to do while a commit is awaited."""
        if self._is_settled:
            return
        self._stop()
        self._journey.record(self._served(Outcome.CLIENT_GONE), ignore_durable)

    def on_writable(self, is_writable: bool) -> None:
        """Let the engine wait for the client."""
        if self._call is not None and not self._is_settled:
            self._call.pause(not is_writable)

    # --- the call's side

    def on_informational(self, status: int) -> None:
        """Nothing: engines have nothing to say in between."""

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Sort the engine's answers."""
        if status == 200:
            self._on_accepted(fields)
        elif status in COMPLAINTS:
            self._complaint = []
        else:
            failure = AttemptFailure.LOADING if status == 503 else AttemptFailure.STATUS
            self._fail(failure, f"the engine answered with status {status}")

    def on_data(self, data: bytes) -> None:
        """Take a piece of the answer."""
        if self._is_settled:
            return
        if self._complaint is None:
            self._on_piece(data)
        elif sum(map(len, self._complaint)) < COMPLAINT_BYTES_MAX:
            self._complaint.append(data)

    def on_end(self) -> None:
        """The engine's answer is complete."""
        if self._is_settled:
            return
        if self._complaint is None:
            self._on_complete()
            return
        self._stop()
        text = engine_complaint(b"".join(self._complaint))
        self._journey.answer_error(ApiError(ErrorCode.INVALID_REQUEST, f"the engine refused the request: {text}"))

    def on_failed(self, failure: Failure, reason: str) -> None:
        """The engine's answer will not be complete."""
        if not self._is_settled:
            self._on_broken(_FAILURES[failure], reason)

    # --- each kind's own

    def _engine_body(self) -> bytes:
        return self._journey.engine_body(is_whole=False)

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        raise NotImplementedError

    def _on_piece(self, data: bytes) -> None:
        raise NotImplementedError

    def _on_complete(self) -> None:
        raise NotImplementedError

    def _on_broken(self, failure: AttemptFailure, reason: str) -> None:
        raise NotImplementedError

    def _served(self, outcome: Outcome) -> Served:
        raise NotImplementedError

    # --- ends

    def _count(self, change: int) -> None:
        if self._is_counted is (change > 0):
            return
        self._is_counted = change > 0
        self._relay.inflight.add(self._replica.replica.slot, change)
        self._relay.meter.in_flight += change

    def _release(self) -> Call | None:
        """Nothing more is wanted of the engine. Return the call, which nothing here holds any more.

        Call and leg, leg and journey know each other: left so, each request would wait for the cycle collector, with
        its body and its answer, and some thousand of them do.
        """
        self._is_settled = True
        self._count(-1)
        call, self._call = self._call, None
        return call

    def _stop(self) -> None:
        """Let go of the engine; a call that is over stays in the pool."""
        call = self._release()
        if call is not None:
            call.cancel()

    def _fail(self, failure: AttemptFailure, reason: str) -> None:
        """Give the request back to the journey, before the first byte of an answer."""
        self._stop()
        self._journey.attempt_failed(failure, reason)

    def _hold_grown(self, size_bytes: int) -> bool:
        """Count what an answer that is put together has grown by, in steps; False when it was refused for that."""
        grown = size_bytes - self._held_bytes
        if grown < HOLD_STEP_BYTES:
            return True
        self._held_bytes = size_bytes
        if self._journey.exchange.hold(grown):
            return True
        self._refuse_to_hold()
        return False

    def _refuse_to_hold(self) -> None:
        """The worker holds too much already to keep this answer until it is whole."""
        self._stop()
        self._journey.refuse(held_error())

    def _answer_fields(self) -> bytes:
        journey = self._journey
        chip_kind = self._replica.replica.chip_kind
        origin = origin_fields(journey.errand.request_id, self._relay.site, chip_kind, journey.event_id)
        return origin + journey.account.fields


class GenerationLeg(EngineLeg):
    """An attempt at text: the engine streams, the client gets a stream or one object."""

    __slots__ = ("_answer", "_first_token_ns", "_itl", "_last_token_ns", "_splitter", "_stream")

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        assert journey.request is not None
        self._stream = AnswerStream(journey.request, journey.errand.request_id)
        self._splitter = SseSplitter()
        self._answer = b""
        self._first_token_ns: int | None = None
        self._last_token_ns = 0
        self._itl = journey.meter_at(replica).itl

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        if not fields.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._fail(AttemptFailure.PROTOCOL, "the engine's answer is no event stream")

    def _take_chunk(self, data: bytes) -> bool:
        """Take a read that is one chunk with one token's event, as most are, before the parser looks at it."""
        event = content_of_chunk(data)
        if event is None or self._splitter.has_rest or self._is_settled:
            return False
        piece = self._stream.take_plain(event)
        if piece is None:
            return False
        now_ns = self._relay.clock.monotonic_ns()
        self._itl.observe((now_ns - self._last_token_ns) / 1e9)
        self._last_token_ns = now_ns
        self._journey.exchange.send(piece)
        return True

    def _on_piece(self, data: bytes) -> None:
        stream = self._stream
        pieces: list[bytes] = []
        trouble = ""
        try:
            stream.take_events(self._splitter.cut(data), pieces)
        except (EngineFailed, Rejected) as error:
            trouble = error.message
        if stream.has_token:
            self._note_tokens()
        if pieces:
            self._pass_on(b"".join(pieces))
        elif not self._hold_grown(stream.held_bytes):
            return
        if trouble:
            self._on_broken(AttemptFailure.PROTOCOL, trouble)
        elif stream.is_done:
            self._settle()

    def _note_tokens(self) -> None:
        now_ns = self._relay.clock.monotonic_ns()
        if self._first_token_ns is None:
            self._first_token_ns = now_ns
        else:
            self._itl.observe(ns_to_s(now_ns - self._last_token_ns))
        self._last_token_ns = now_ns

    def _pass_on(self, data: bytes) -> None:
        exchange = self._journey.exchange
        if exchange.is_begun:
            exchange.send(data)
            return
        self._journey.attempt_answers()
        self._journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        exchange.start(200, SSE_FIELDS + self._answer_fields(), data)
        if self._call is not None:
            self._call.take_chunk = self._take_chunk

    def _on_complete(self) -> None:
        # Not every engine says [DONE]; one that named a reason to finish has finished.
        if self._stream.is_finished:
            self._settle()
        else:
            self._on_broken(AttemptFailure.CLOSED, "the engine's stream ended early")

    def _on_broken(self, failure: AttemptFailure, reason: str) -> None:
        if not self._stream.has_begun:
            self._fail(failure, reason)
            return
        self._stop()
        journey = self._journey
        journey.attempt_broke(failure, reason)
        journey.record(self._served(Outcome.UPSTREAM_FAILED), ignore_durable)
        message = f"the engine at site {self._relay.site} failed in the middle of the answer ({failure})"
        if journey.exchange.is_begun:
            journey.exchange.cut(encode_event(stream_error(message)))
        else:
            journey.answer_error(ApiError(ErrorCode.UPSTREAM_FAILED, message), has_event=True)

    def _settle(self) -> None:
        """The engine is done: hold the last bytes until the event is durable."""
        try:
            self._answer = self._stream.assemble(int(self._relay.clock.wall_s()))
        except EngineFailed as error:
            self._on_broken(AttemptFailure.PROTOCOL, error.message)
            return
        self._release()
        self._journey.record(self._served(Outcome.COMPLETED), self._on_durable)

    def _served(self, outcome: Outcome) -> Served:
        return Served(
            outcome=outcome,
            count=self._stream.count(),
            replica=self._replica,
            first_token_ns=self._first_token_ns,
        )

    def _on_durable(self, reason: str) -> None:
        journey, exchange = self._journey, self._journey.exchange
        if reason:
            error = log_error(reason)
            if exchange.is_begun:
                exchange.cut(encode_event(stream_error(error.message)))
            else:
                journey.answer_error(error)
            return
        assert journey.request is not None
        if not journey.request.is_stream:
            journey.attempt_answers()
            journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
            exchange.respond(200, JSON_TYPE + self._answer_fields(), self._answer)
            return
        if not exchange.is_begun:
            self._pass_on(b"")
        exchange.end(DONE_EVENT)


class WholeLeg(EngineLeg):
    """An attempt at an answer that comes in one piece: one JSON object each way."""

    __slots__ = ("_answer", "_limit_bytes", "_pieces", "_size", "_token_count")

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        assert journey.request is not None
        is_embedding = journey.request.endpoint is Endpoint.EMBEDDINGS
        self._limit_bytes = EMBEDDING_BYTES_MAX if is_embedding else ANSWER_BYTES_MAX
        self._pieces: list[bytes] = []
        self._size = 0
        self._answer = b""
        self._token_count = TokenCount(0, 0, True)

    def _engine_body(self) -> bytes:
        return self._journey.engine_body(is_whole=True)

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        """Nothing yet: the answer is judged when it is whole."""

    def _on_piece(self, data: bytes) -> None:
        size = self._size + len(data)
        if size > self._limit_bytes:
            self._fail(AttemptFailure.PROTOCOL, f"the engine's answer is over {self._limit_bytes} bytes")
        elif not self._journey.exchange.hold(len(data)):
            self._refuse_to_hold()
        else:
            self._pieces.append(data)
            self._size = size

    def _fail(self, failure: AttemptFailure, reason: str) -> None:
        self._journey.exchange.let_go(self._size)
        super()._fail(failure, reason)

    def _on_complete(self) -> None:
        journey = self._journey
        request, body = journey.request, b"".join(self._pieces)
        assert request is not None
        try:
            if request.endpoint is Endpoint.EMBEDDINGS:
                self._answer, self._token_count = rewrite_embeddings(request, body)
            else:
                self._answer, self._token_count = rewrite_answer(request, journey.errand.request_id, body)
        except EngineFailed as error:
            self._fail(AttemptFailure.PROTOCOL, error.message)
            return
        self._release()
        journey.attempt_answers()
        journey.record(self._served(Outcome.COMPLETED), self._on_durable)

    def _on_broken(self, failure: AttemptFailure, reason: str) -> None:
        self._fail(failure, reason)

    def _served(self, outcome: Outcome) -> Served:
        return Served(outcome=outcome, count=self._token_count, replica=self._replica)

    def _on_durable(self, reason: str) -> None:
        journey = self._journey
        if reason:
            journey.answer_error(log_error(reason))
            return
        journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        journey.exchange.respond(200, JSON_TYPE + self._answer_fields(), self._answer)
