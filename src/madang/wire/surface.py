"""The tenant API's bodies, whichever endpoint they are for.

Owns which module reads which endpoint. Refuses to read by itself. Called by the gateway's journeys.
"""

from collections.abc import Callable

from madang.wire.http1 import RequestHead
from madang.wire.oip import HEADER_LENGTH_FIELD, read_infer
from madang.wire.oip_paths import OipTarget, find_target, is_oip_path
from madang.wire.openai import ApiRequest, Endpoint, parse_request
from madang.wire.openai_errors import ApiError
from madang.wire.plain_chat import read_plain_chat
from madang.wire.rerank import parse_rerank
from madang.wire.responses import parse_responses
from madang.wire.transcription import parse_transcription

_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint if not is_oip_path(endpoint.value)}
_READERS: dict[Endpoint, Callable[[bytes, bytes], ApiRequest]] = {
    Endpoint.RESPONSES: lambda body, _kind: parse_responses(body),
    Endpoint.RERANK: lambda body, _kind: parse_rerank(body),
    Endpoint.TRANSCRIPTIONS: parse_transcription,
}


def read_request(endpoint: Endpoint, body: bytes, head: RequestHead) -> ApiRequest:
    """Return the request in `body`; raises ApiError naming the parameter at fault. Linear in the body."""
    if endpoint is Endpoint.CHAT:
        return read_plain_chat(body) or parse_request(endpoint, body)
    if endpoint in (Endpoint.INFER, Endpoint.MODEL_METADATA):
        return _read_oip(find_target(head), body, head)
    reader = _READERS.get(endpoint)
    if reader is None:
        return parse_request(endpoint, body)
    return reader(body, head.fields.get(b"content-type", b""))


def _read_oip(target: OipTarget, body: bytes, head: RequestHead) -> ApiRequest:
    """Return a request whose path names the model; its body names none."""
    assert isinstance(target.asked, Endpoint)
    is_infer = target.asked is Endpoint.INFER
    return ApiRequest(
        endpoint=target.asked,
        service=target.model,
        fields={},
        is_plain=False,
        form=read_infer(body, head.fields.get(HEADER_LENGTH_FIELD)) if is_infer else None,
        version=target.version,
    )


def find_endpoint(head: RequestHead) -> Endpoint | None:
    """Return the endpoint that a head asks for, None when it is not one that engines answer."""
    endpoint = _ENDPOINTS.get(head.path)
    if endpoint is not None:
        return endpoint if head.method == "POST" else None
    if not is_oip_path(head.path):
        return None
    try:
        asked = find_target(head).asked
    except ApiError:
        return None
    return asked if isinstance(asked, Endpoint) else None
