"""Which kind of attempt a request is, when it is not a plain one.

Owns that choice and the refusal of what an engine cannot do. Refuses to choose engines. Called by the journey.
"""

from typing import TYPE_CHECKING

from madang.gateway.engine_leg import GenerationLeg
from madang.gateway.errand import Leg
from madang.gateway.feed import LiveReplica
from madang.gateway.infer_legs import InferLeg, MetadataLeg
from madang.gateway.mapped_leg import MappedLeg
from madang.gateway.object_legs import RerankLeg, TranscriptionLeg, TranscriptStreamLeg
from madang.model import EngineFeature
from madang.wire.mapping import check_features
from madang.wire.openai import Endpoint
from madang.wire.openai_errors import ApiError

if TYPE_CHECKING:
    from madang.gateway.journey import Journey


class RefusedLeg:
    """An attempt that no engine is asked for."""

    def __init__(self, journey: "Journey", error: ApiError) -> None:
        self._journey = journey
        self._error = error

    def start(self) -> None:
        """Answer with the refusal."""
        self._journey.answer_error(self._error)

    def on_gone(self) -> None:
        """Nothing was begun."""

    def on_writable(self, is_writable: bool) -> None:
        """Nothing is being written."""


def make_leg(journey: "Journey", replica: LiveReplica) -> Leg:
    """Return the attempt of a request that is not plain at a replica."""
    request, endpoint = journey.request, journey.errand.endpoint
    assert request is not None
    try:
        check_features(request, replica.replica.features)
    except ApiError as error:
        return RefusedLeg(journey, error)
    if endpoint is Endpoint.INFER:
        return InferLeg(journey, replica)
    if endpoint is Endpoint.MODEL_METADATA:
        return MetadataLeg(journey, replica)
    if endpoint is Endpoint.RERANK:
        return RerankLeg(journey, replica)
    if endpoint is Endpoint.TRANSCRIPTIONS:
        return TranscriptStreamLeg(journey, replica) if request.is_stream else TranscriptionLeg(journey, replica)
    is_mapped = request.answers > 1 or request.form is not None
    has_parsed_calls = "tools" in request.fields and EngineFeature.TOOLS not in replica.replica.features
    has_legacy_logprobs = endpoint is Endpoint.COMPLETIONS and "logprobs" in request.fields
    if is_mapped or has_parsed_calls or has_legacy_logprobs:
        return MappedLeg(journey, replica)
    return GenerationLeg(journey, replica)
