"""An attempt at another site: the entry's side of a spilled request.

Owns the pass it signs, the wait for the peer's word and the answer that passes through. Refuses to read request or
answer: the peer serves, meters and words everything. A peer has ACCEPT_WITHIN_S to accept or refuse, then gives a
sign every second until the answer begins, so that a hole in the WAN is not taken for a slow prefill.
"""

import hashlib
from typing import TYPE_CHECKING

from madang.core import ServiceName
from madang.gateway.account import CHARGE_FIELD
from madang.gateway.deadline import Deadline
from madang.gateway.errand import AttemptFailure, held_error
from madang.gateway.feed import LivePeer
from madang.gateway.target import Failure, TimeLimits
from madang.gateway.upstream import Call
from madang.wire.feed import PeerSession
from madang.wire.oip import HEADER_LENGTH_FIELD
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import stream_error
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.passes import (
    ACCEPT_WITHIN_S,
    HEARTBEAT_LOST_AFTER_S,
    PASS_HEADER,
    Pass,
    seal_pass,
)
from madang.wire.sse import encode_event

if TYPE_CHECKING:
    from madang.gateway.journey import Journey

REFUSED_FIELD = b"x-madang-refused"
"""Marks a peer's answer as no answer: ask somebody else. Its value says why."""
PASS_LIFETIME_S = 10.0
"""A pass is used at once; it need not outlive the time a packet can wander."""
ANSWER_BYTES_MAX = 128 * 1024 * 1024
_PASSED_ON = (
    b"content-type",
    b"cache-control",
    HEADER_LENGTH_FIELD,
    b"retry-after",
    b"x-request-id",
    b"x-madang-site",
    b"x-madang-chip",
    b"x-madang-receipt",
    *(
        b"x-ratelimit-%b-%b" % (what, kind)  # of a site that admitted what an entry may not read
        for kind in (b"requests", b"tokens")
        for what in (b"limit", b"remaining", b"reset")
    ),
)
_ERROR_EVENT = b'data: {"error":'
_FAILURES = {
    Failure.CONNECT: AttemptFailure.CONNECT,
    Failure.CLOSED: AttemptFailure.CLOSED,
    Failure.TIMEOUT: AttemptFailure.TIMEOUT,
    Failure.PROTOCOL: AttemptFailure.PROTOCOL,
}


class PeerLeg:
    """One attempt at one peer."""

    __slots__ = (
        "_body",
        "_call",
        "_deadline",
        "_events",
        "_fields",
        "_has_error_event",
        "_is_accepted",
        "_is_over",
        "_is_sse",
        "_journey",
        "_peer",
        "_relay",
        "_size",
        "_status",
    )

    def __init__(self, journey: "Journey", peer: LivePeer) -> None:
        self._journey = journey
        self._relay = journey.relay
        self._peer = peer
        self._call: Call | None = None
        self._deadline = Deadline(journey.relay.loop)
        self._is_accepted = self._is_over = self._is_sse = self._has_error_event = False
        self._status = 0
        self._fields: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = self._events = 0

    def start(self) -> None:
        """Sign a pass and send the request with it."""
        now_s = self._relay.clock.wall_s()
        session = next((one for one in self._peer.peer.sessions if one.expires_at_s > now_s), None)
        if session is None:
            self._fail(AttemptFailure.NO_SESSION, "every session with the peer has expired")
            return
        journey, target = self._journey, self._peer.target
        head = (
            f"{journey.errand.endpoint.method} {journey.errand.asked_path} HTTP/1.1\r\n"
            f"host: {target.host}:{target.port}\r\n{self._body_fields()}"
            f"{PASS_HEADER}: {seal_pass(self._pass(session, now_s), session.key)}\r\n{journey.trace.fields()}\r\n"
        )
        # The peer's signs replace the limit for the first byte; once it talks, it may not stall.
        limits = TimeLimits(first_byte_s=24 * 3600.0, stall_s=self._relay.limits.stall_s)
        self._relay.meter.in_flight += 1
        self._deadline.set(ACCEPT_WITHIN_S, self._on_silence)
        self._call = self._relay.pool.call(target, head.encode() + journey.body, self, limits)

    def _pass(self, session: PeerSession, now_s: float) -> Pass:
        journey, errand = self._journey, self._journey.errand
        return Pass(
            request_id=errand.request_id,
            attempt=journey.attempt,
            tenant_id=errand.tenant_id,
            key_id=errand.key_id,
            service=ServiceName("") if journey.service is None else journey.service.name,
            residency=errand.residency,
            data_class=errand.data_class.value,
            entry_site=self._relay.site,
            serving_site=self._peer.peer.site,
            hops=errand.hops + 1,
            issued_at_s=now_s,
            deadline_s=now_s + PASS_LIFETIME_S,
            path=errand.asked_path,
            is_stream=journey.request is not None and journey.request.is_stream,
            body_sha256=hashlib.sha256(journey.body).digest(),
            kid=session.kid,
            project_id=errand.project_id,
            priority=errand.priority.value,
            charge_day=journey.account.day,
            covered_micro_won=-1 if journey.account.covered is None else journey.account.covered,
            is_admitted=not errand.is_transit,
        )

    def _content_type(self) -> str:
        """Return what the client said of a body that is a form, whose boundary the peer needs; all else is JSON."""
        if self._journey.errand.endpoint is not Endpoint.TRANSCRIPTIONS:
            return "application/json"
        return self._journey.exchange.head.fields.get(b"content-type", b"").decode("latin-1")

    def _body_fields(self) -> str:
        """Return the header lines that say what the body is and how long."""
        journey = self._journey
        if journey.errand.endpoint.method == "GET":
            return ""
        fields = f"content-type: {self._content_type()}\r\ncontent-length: {len(journey.body)}\r\n"
        length = journey.exchange.head.fields.get(HEADER_LENGTH_FIELD)
        if journey.errand.endpoint is Endpoint.INFER and length is not None:
            fields += f"{HEADER_LENGTH_FIELD.decode()}: {length.decode('latin-1')}\r\n"
        return fields

    def on_gone(self) -> None:
        """Leave the peer at once: it sees our end close, and meters what it did."""
        if self._is_over:
            return
        self._stop()
        self._close_unheard()
        if not self._is_accepted:
            self._journey.supersede_if_unknown()

    def on_writable(self, is_writable: bool) -> None:
        """Let the peer wait for the client."""
        if self._call is not None and not self._is_over:
            self._call.pause(not is_writable)

    # --- the call's side

    def on_informational(self, status: int) -> None:
        """Take a sign of life."""
        if status == 102 and not self._is_over:
            self._is_accepted = True
            self._deadline.set(HEARTBEAT_LOST_AFTER_S, self._on_silence)

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """Take the peer's final word: its answer, or that somebody else should be asked."""
        if self._is_over:
            return
        self._deadline.clear()
        if REFUSED_FIELD in fields:
            self._fail(AttemptFailure.REFUSED, "the peer refused")
            return
        self._is_accepted = True
        self._status, self._fields = status, fields
        self._is_sse = fields.get(b"content-type", b"").startswith(b"text/event-stream")
        self._journey.attempt_answers()
        if self._is_sse:
            self._count_answer()
            self._journey.exchange.start(status, self._passed_on())

    def on_data(self, data: bytes) -> None:
        """Pass a piece of a stream on; keep the pieces of an object until it is whole."""
        if self._is_over:
            return
        if self._is_sse:
            self._has_error_event = _ERROR_EVENT in data
            self._events += data.count(b"\n\n")
            self._journey.exchange.send(data)
            return
        size = self._size + len(data)
        if size > ANSWER_BYTES_MAX:
            self._break(AttemptFailure.PROTOCOL, f"the peer's answer is over {ANSWER_BYTES_MAX} bytes")
        elif not self._journey.exchange.hold(len(data)):
            self._refuse_to_hold()
        else:
            self._size = size
            self._body.append(data)

    def on_end(self) -> None:
        """The answer is complete, and the peer's event durable."""
        if self._is_over:
            return
        self._end()
        said = self._fields.get(CHARGE_FIELD, b"")  # trailers have joined the fields by now
        self._journey.account.close_as_told(said, self._status, self._body, self._events)
        self._journey.tell_end(self._status, madang_site=self._peer.peer.site)
        if self._is_sse:
            self._journey.exchange.end()
            return
        self._count_answer()
        self._journey.exchange.respond(self._status, self._passed_on(), b"".join(self._body))

    def on_failed(self, failure: Failure, reason: str) -> None:
        """The answer will not be complete."""
        if self._is_over:
            return
        if self._status:
            self._break(_FAILURES[failure], reason)
        else:
            self._fail(_FAILURES[failure], reason)

    # --- ends

    def _count_answer(self) -> None:
        chip_kind = self._fields.get(b"x-madang-chip", b"").decode("latin-1")
        self._journey.count_answer(self._status, self._peer.peer.site, chip_kind)

    def _passed_on(self) -> bytes:
        fields = self._fields
        passed = b"".join(b"%b: %b\r\n" % (name, fields[name]) for name in _PASSED_ON if name in fields)
        return passed + self._journey.account.fields

    def _close_unheard(self) -> None:
        """Settle what a peer did whose word on it will not come. One that has not accepted has produced nothing."""
        request = self._journey.request
        is_stream = not self._is_accepted or self._is_sse or (request is not None and request.is_stream)
        self._journey.account.close_unheard(self._events, is_stream=is_stream)

    def _on_silence(self) -> None:
        """No word within the time a live peer needs: a hole, or a peer in trouble."""
        limit_s = HEARTBEAT_LOST_AFTER_S if self._is_accepted else ACCEPT_WITHIN_S
        self._fail(AttemptFailure.SILENT, f"the peer gave no sign for {limit_s:g} s")

    def _end(self) -> Call | None:
        """Nothing more is wanted of the peer. Return the call, which nothing here holds any more; see EngineLeg."""
        call, self._call = self._call, None
        if not self._is_over and call is not None:
            self._relay.meter.in_flight -= 1
        self._is_over = True
        self._deadline.stop()
        return call

    def _stop(self) -> None:
        call = self._end()
        if call is not None:
            call.cancel()

    def _fail(self, failure: AttemptFailure, reason: str) -> None:
        if self._call is not None and self._call.is_resent and not failure.may_have_run:
            failure = AttemptFailure.CLOSED  # what became of it the first time is not known
        self._stop()
        self._journey.attempt_failed(failure, reason)

    def _refuse_to_hold(self) -> None:
        """The worker holds too much already to keep the answer until it is whole; what the peer did is superseded."""
        self._stop()
        self._journey.attempt += 1
        self._journey.abandon(held_error())

    def _break(self, failure: AttemptFailure, reason: str) -> None:
        """The answer broke off after it began. A stream's client has what it has, and the peer meters that."""
        self._stop()
        journey = self._journey
        journey.attempt_broke(failure, reason)
        message = f"site {self._peer.peer.site} failed in the middle of the answer ({failure})"
        if self._is_sse:
            self._close_unheard()
            journey.exchange.cut(b"" if self._has_error_event else encode_event(stream_error(message)))
            return
        journey.attempt += 1
        journey.abandon(ApiError(ErrorCode.UPSTREAM_FAILED, message))
