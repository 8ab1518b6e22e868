"""What an engine is asked for a request that it cannot be sent as it came, and how its answers are worded.

Owns the choice of stage and writer by what the request wants and what the engine can do, and the refusal of what it
cannot. Refuses to know sockets and time. Called by the gateway's `MappedLeg` and by whoever picks a leg.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from madang.core import RequestId
from madang.model import EngineFeature, Service
from madang.wire.chat_writer import ChatWriter
from madang.wire.generation import AnswerWriter
from madang.wire.mapped_answers import MappedAnswers
from madang.wire.openai import ApiRequest, upstream_body
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.responses import ResponsesForm
from madang.wire.responses_writer import ResponsesWriter
from madang.wire.tool_calls import CallStage, constrain

_WANTED = {
    EngineFeature.IMAGES: ("messages", "image input"),
    EngineFeature.LOGPROBS: ("logprobs", "the likelihood of tokens"),
    EngineFeature.TRANSCRIPT_STREAM: ("stream", "a transcript in pieces"),
    EngineFeature.JSON_SCHEMA: ("response_format", "output that keeps to a JSON schema"),
}


def check_features(request: ApiRequest, features: Collection[str]) -> None:
    """Raise ApiError 400 `unsupported` when an engine lacks what a request needs; names parameter and capability."""
    for need in request.needs:
        if need not in features:
            param, capability = _WANTED[EngineFeature(need)]
            message = f"'{param}': {capability} ({need}) is not among what the engine of '{request.service}' can do"
            raise ApiError(ErrorCode.UNSUPPORTED, message, param=param)


def map_request(
    request: ApiRequest, service: Service, features: Collection[str], request_id: RequestId, created_s: int
) -> tuple[list[bytes], MappedAnswers]:
    """Return the bodies that an engine is sent, one for each answer, and what reads the answers.

    Raises:
        ApiError: 400 naming what this engine cannot do.
    """
    fields = request.fields
    is_constrained = "tools" in fields and EngineFeature.TOOLS not in features
    if is_constrained:
        if EngineFeature.JSON_SCHEMA not in features:
            message = f"'tools': tool calls are not among what the engine of '{request.service}' can do"
            raise ApiError(ErrorCode.UNSUPPORTED, message, param="tools")
        fields = constrain(fields)
    stages = [CallStage() for _ in range(request.answers)] if is_constrained else []
    bodies = [_body(request, fields, service, answer) for answer in range(request.answers)]
    return bodies, MappedAnswers(request, _writer(request, request_id, created_s), stages)


def _writer(request: ApiRequest, request_id: RequestId, created_s: int) -> AnswerWriter:
    if isinstance(request.form, ResponsesForm):
        return ResponsesWriter(request.form, request_id, created_s)
    return ChatWriter(request, request_id, created_s)


def _body(request: ApiRequest, fields: dict[str, Any], service: Service, answer: int) -> bytes:
    if answer and "seed" in fields:
        # The same seed would give the same answer again.
        fields = {**fields, "seed": (fields["seed"] + answer) & 0xFFFFFFFF}
    return upstream_body(msgspec.structs.replace(request, fields=fields), service)
