"""Attempts by the Open Inference Protocol: tensors through a model, and what a model says that it takes and gives.

Owns what an engine is sent and that an answer waits until its usage event is durable; metadata are no use and leave
none. Refuses to read messages: `madang.wire.oip` does. One engine answers in one call.
"""

from typing import TYPE_CHECKING
from urllib.parse import quote

from madang.core import Rejected
from madang.gateway.errand import AttemptFailure, Served
from madang.gateway.exchange import JSON_TYPE
from madang.gateway.feed import LiveReplica
from madang.gateway.object_legs import ObjectLeg
from madang.gateway.rows import NOTHING_COUNTED, count_rows
from madang.model import Outcome
from madang.wire.oip import HEADER_LENGTH_FIELD, InferRequest, word_answer, word_metadata, write_infer
from madang.wire.openai_answers import EngineFailed

if TYPE_CHECKING:
    from madang.gateway.journey import Journey

INFER_BYTES_MAX = 64 * 1024 * 1024
"""An answer of pictures: 16 of 1024 by 1024 pixels in FP32 are 64 MiB."""
METADATA_BYTES_MAX = 1024 * 1024


class _ModelLeg(ObjectLeg):
    """An attempt whose path names the model."""

    __slots__ = ()

    @property
    def model(self) -> str:
        """What client and engine both call the model."""
        service = self._journey.service
        assert service is not None
        return service.name

    @property
    def version(self) -> str:
        """What clients call the model's only version."""
        desired, service = self._relay.feed.desired, self._journey.service
        assert desired is not None
        assert service is not None
        return desired.version_of(service)

    def _call_engine(self, method: str, verb: str, fields: bytes, *pieces: bytes | memoryview) -> None:
        """Send a request to the engine; its pieces are joined once."""
        replica, target = self._replica.replica, self._replica.target
        self._count(1)
        head = (
            f"{method} /v2/models/{quote(self.model, safe='')}{verb} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"authorization: Bearer {replica.engine_key}\r\n{self._journey.trace.fields()}"
        )
        request = b"".join((head.encode(), fields, b"\r\n", *pieces))
        self._call = self._relay.pool.call(target, request, self, self._relay.limits)


class InferLeg(_ModelLeg):
    """An attempt at tensors."""

    __slots__ = ("_counted", "_length_field")

    bytes_max = INFER_BYTES_MAX

    def __init__(self, journey: "Journey", replica: LiveReplica) -> None:
        super().__init__(journey, replica)
        self._length_field: bytes | None = None
        self._counted = NOTHING_COUNTED

    @property
    def _asked_tensors(self) -> InferRequest:
        form = self.request.form
        assert isinstance(form, InferRequest)
        return form

    def start(self) -> None:
        """Send the tensors to the engine."""
        message = write_infer(self._asked_tensors)
        fields = b"content-type: %b\r\ncontent-length: %d\r\n%b" % (
            message.content_type.encode(),
            message.size_bytes,
            message.length_line,
        )
        self._call_engine("POST", "/infer", fields, *message.pieces)

    def _on_accepted(self, fields: dict[bytes, bytes]) -> None:
        self._length_field = fields.get(HEADER_LENGTH_FIELD)

    def _read(self, body: bytes) -> None:
        message = word_answer(body, self._length_field, self.model, self.version, self._asked_tensors)
        self._type_field = b"content-type: %b\r\n%b" % (message.content_type.encode(), message.length_line)
        self._answer = b"".join(message.pieces)
        desired, service = self._relay.feed.desired, self._journey.service
        assert desired is not None
        assert service is not None
        self._counted = count_rows(desired.model_of(service), self._asked_tensors)

    def _served(self, outcome: Outcome) -> Served:
        images, samples = self._counted
        return Served(outcome=outcome, replica=self._replica, images=images, samples=samples)


class MetadataLeg(_ModelLeg):
    """An attempt at a model's inputs and outputs. It is not metered, so no event and no receipt belong to it."""

    __slots__ = ()

    bytes_max = METADATA_BYTES_MAX

    def start(self) -> None:
        """Ask the engine."""
        self._call_engine("GET", "", b"")

    def on_gone(self) -> None:
        """Leave the engine; nothing was used."""
        if not self._is_settled:
            self._stop()

    def _on_complete(self) -> None:
        journey = self._journey
        try:
            answer = word_metadata(b"".join(self._pieces), self.model, (self.version,))
        except (EngineFailed, Rejected) as error:
            self._fail(AttemptFailure.PROTOCOL, error.message)
            return
        self._release()
        journey.attempt_answers()
        journey.count_answer(200, self._relay.site, self._replica.replica.chip_kind)
        journey.tell_end(200)
        fields = f"x-request-id: {journey.errand.request_id}\r\nx-madang-site: {self._relay.site}\r\n"
        journey.exchange.respond(200, JSON_TYPE + fields.encode(), answer)
