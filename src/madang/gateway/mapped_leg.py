"""An attempt at text that an engine's stream does not fit as it is: several answers, parsed calls, another endpoint.

Owns the calls, one for each answer, and the order of their ends. Refuses to read what engines say: `madang.wire`
does. One answer that fails before the first byte fails the attempt, and every other call is left; there is one usage
event for all of them.
"""

from typing import TYPE_CHECKING

from madang.core import Rejected
from madang.gateway.engine_leg import COMPLAINT_BYTES_MAX, COMPLAINTS, SSE_FIELDS, EngineLeg
from madang.gateway.errand import AttemptFailure, Served, ignore_durable
from madang.gateway.exchange import JSON_TYPE
from madang.gateway.feed import LiveReplica
from madang.gateway.relay import log_error
from madang.gateway.target import Failure
from madang.gateway.upstream import Call
from madang.model import Outcome
from madang.wire.mapped_answers import MappedAnswers
from madang.wire.mapping import map_request
from madang.wire.openai_answers import EngineFailed, engine_complaint
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.sse import SseSplitter

if TYPE_CHECKING:
    from madang.gateway.journey import Journey


class _Voice:
    """One of the calls: told of it by the pool, tells the leg."""

    def __init__(self, leg: "MappedLeg", number: int) -> None:
        self.leg = leg
        self.number = number
        self.call: Call | None = None
        self.is_over = False
        self._splitter = SseSplitter()
        self._complaint: list[bytes] | None = None

    def on_informational(self, status: int) -> None:
        """Nothing: engines have nothing to say in between."""

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Sort the engine's answers."""
        if self.leg.is_settled:
            return
        if status in COMPLAINTS:
            self._complaint = []
        elif status != 200:
            failure = AttemptFailure.LOADING if status == 503 else AttemptFailure.STATUS
            self.leg.on_broken(failure, f"the engine answered with status {status}")
        elif not fields.get(b"content-type", b"").startswith(b"text/event-stream"):
            self.leg.on_broken(AttemptFailure.PROTOCOL, "the engine's answer is no event stream")

    def on_data(self, data: bytes) -> None:
        """Take a piece of the stream."""
        if self.leg.is_settled or self.is_over:
            return
        if self._complaint is not None:
            if sum(map(len, self._complaint)) < COMPLAINT_BYTES_MAX:
                self._complaint.append(data)
            return
        try:
            payloads = self._splitter.feed(data)
        except Rejected as error:
            self.leg.on_broken(AttemptFailure.PROTOCOL, error.message)
            return
        self.leg.on_events(self, payloads)

    def on_end(self) -> None:
        """The engine's answer is complete."""
        if self.leg.is_settled or self.is_over:
            return
        if self._complaint is not None:
            self.leg.on_complaint(engine_complaint(b"".join(self._complaint)))
        else:
            self.leg.on_voice_end(self)

    def on_failed(self, failure: Failure, reason: str) -> None:
        """The engine's answer will not be complete."""
        if not self.leg.is_settled and not self.is_over:
            self.leg.on_broken(AttemptFailure(failure.value), reason)


class MappedLeg(EngineLeg):
    """One attempt, of one call or several."""

    __slots__ = ("_answers", "_first_token_ns", "_has_first", "_last", "_voices")

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        self._answers: MappedAnswers
        self._voices: list[_Voice] = []
        self._last = b""
        self._has_first = False
        self._first_token_ns: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is awaited of the engine."""
        return self._is_settled

    def start(self) -> None:
        """Send a request for each answer."""
        journey, replica = self._journey, self._replica.replica
        assert journey.request is not None
        assert journey.service is not None
        created_s = int(self._relay.clock.wall_s())
        try:
            bodies, self._answers = map_request(
                journey.request, journey.service, replica.features, journey.errand.request_id, created_s
            )
        except ApiError as error:
            journey.answer_error(error)
            return
        target = self._replica.target
        self._voices = [_Voice(self, number) for number in range(len(bodies))]
        self._count(1)
        for voice, body in zip(self._voices, bodies, strict=True):
            head = (
                f"POST {journey.request.endpoint.value} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
                f"authorization: Bearer {replica.engine_key}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\n{journey.trace.fields()}\r\n"
            )
            voice.call = self._relay.pool.call(target, head.encode() + body, voice, self._relay.limits)
            if self._is_settled:
                # The call, or one before it, failed at once.
                voice.call.cancel()
                return

    def on_writable(self, is_writable: bool) -> None:
        """Let the engine wait for the client."""
        for voice in self._voices:
            if voice.call is not None and not voice.is_over and not self._is_settled:
                voice.call.pause(not is_writable)

    # --- the voices' side

    def on_events(self, voice: _Voice, payloads: list[bytes]) -> None:
        """Take events of one answer."""
        answers = self._answers
        pieces: list[bytes] = []
        trouble = ""
        try:
            for payload in payloads:
                pieces.append(answers.take(voice.number, payload))
                self._has_first = True
        except EngineFailed as error:
            trouble = error.message
        if self._first_token_ns is None and answers.has_token:
            self._first_token_ns = self._relay.clock.monotonic_ns()
        data = b"".join(pieces)
        if data:
            self._pass_on(data)
        elif not self._hold_grown(answers.held_bytes):
            return
        if trouble:
            self.on_broken(AttemptFailure.PROTOCOL, trouble)
        elif answers.is_done(voice.number):
            self._end_voice(voice)

    def on_voice_end(self, voice: _Voice) -> None:
        """A call is over; not every engine says [DONE], one that named a reason to finish has finished."""
        if self._answers.is_finished(voice.number):
            self._end_voice(voice)
        else:
            self.on_broken(AttemptFailure.CLOSED, "the engine's stream ended early")

    def on_complaint(self, text: str) -> None:
        """The engine refuses the request itself."""
        self._stop()
        error = ApiError(ErrorCode.INVALID_REQUEST, f"the engine refused the request: {text}")
        if self._journey.exchange.is_begun:
            self._journey.account.close(0, 0)
            self._journey.exchange.cut(self._answers.failed(error.message))
        else:
            self._journey.answer_error(error)

    def on_broken(self, failure: AttemptFailure, reason: str) -> None:
        """One answer will not be complete, so none is."""
        if not self._has_first:
            self._fail(failure, reason)
            return
        self._stop()
        journey = self._journey
        journey.attempt_broke(failure, reason)
        journey.record(self._served(Outcome.UPSTREAM_FAILED), ignore_durable)
        message = f"the engine at site {self._relay.site} failed in the middle of the answer ({failure})"
        if journey.exchange.is_begun:
            journey.exchange.cut(self._answers.failed(message))
        else:
            journey.answer_error(ApiError(ErrorCode.UPSTREAM_FAILED, message), has_event=True)

    # --- ends

    def _pass_on(self, data: bytes) -> None:
        exchange = self._journey.exchange
        if exchange.is_begun:
            exchange.send(data)
            return
        self._journey.attempt_answers()
        self._journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        exchange.start(200, SSE_FIELDS + self._answer_fields(), data)

    def _end_voice(self, voice: _Voice) -> None:
        voice.is_over = True
        if not all(one.is_over for one in self._voices):
            return
        try:
            self._last = self._answers.last()
        except EngineFailed as error:
            self.on_broken(AttemptFailure.PROTOCOL, error.message)
            return
        self._release()
        self._journey.record(self._served(Outcome.COMPLETED), self._on_durable)

    def _count(self, change: int) -> None:
        if self._is_counted is (change > 0):
            return
        self._is_counted = change > 0
        size = change * len(self._voices)
        self._relay.inflight.add(self._replica.replica.slot, size)
        self._relay.meter.in_flight += size

    def _stop(self) -> None:
        self._release()
        for voice in self._voices:
            if voice.call is not None and not voice.is_over:
                voice.call.cancel()

    def _served(self, outcome: Outcome) -> Served:
        return Served(
            outcome=outcome,
            count=self._answers.count(),
            replica=self._replica,
            first_token_ns=self._first_token_ns,
        )

    def _on_durable(self, reason: str) -> None:
        journey, exchange = self._journey, self._journey.exchange
        assert journey.request is not None
        if reason:
            error = log_error(reason)
            if exchange.is_begun:
                exchange.cut(self._answers.failed(error.message))
            else:
                journey.answer_error(error)
        elif journey.request.is_stream:
            if not exchange.is_begun:
                self._pass_on(b"")
            exchange.end(self._last)
        else:
            journey.attempt_answers()
            journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
            exchange.respond(200, JSON_TYPE + self._answer_fields(), self._last)
