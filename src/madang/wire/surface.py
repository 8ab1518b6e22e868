"""The tenant API's bodies, whichever endpoint they are for.

Owns which module reads which endpoint. Refuses to read by itself. Called by the gateway's journeys.
"""

from collections.abc import Callable

from madang.wire.http1 import RequestHead
from madang.wire.openai import ApiRequest, Endpoint, parse_request
from madang.wire.plain_chat import read_plain_chat
from madang.wire.rerank import parse_rerank
from madang.wire.responses import parse_responses
from madang.wire.transcription import parse_transcription

_READERS: dict[Endpoint, Callable[[bytes, bytes], ApiRequest]] = {
    Endpoint.RESPONSES: lambda body, _kind: parse_responses(body),
    Endpoint.RERANK: lambda body, _kind: parse_rerank(body),
    Endpoint.TRANSCRIPTIONS: parse_transcription,
}


def read_request(endpoint: Endpoint, body: bytes, head: RequestHead) -> ApiRequest:
    """Return the request in `body`; raises ApiError naming the parameter at fault. Linear in the body."""
    if endpoint is Endpoint.CHAT:
        return read_plain_chat(body) or parse_request(endpoint, body)
    reader = _READERS.get(endpoint)
    if reader is None:
        return parse_request(endpoint, body)
    return reader(body, head.fields.get(b"content-type", b""))
