"""What engines of the Open Inference Protocol and their twins answer alike: paths, health, metadata, errors.

Owns those answers. Refuses to compute. Called by `serve` and `twin` of each. The key has been asked for before.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

from madang.engine.http_host import HttpAnswer, HttpRequest, json_answer
from madang.engine.oip_tensors import Signature
from madang.wire.oip import HEADER_LENGTH_FIELD, InferRequest, Message, encode_oip_error, read_infer
from madang.wire.openai_errors import ApiError, ErrorCode

Infer = Callable[[HttpRequest, InferRequest], Awaitable[Message]]
_LENGTH_NAME = HEADER_LENGTH_FIELD.decode()


class Surface:
    """Leads requests to their answers.

    Args:
        alias: name under which the model answers.
        engine: what does the work, such as `onnx`.
        platform: in what, as the protocol's metadata name it.
        signature: what it takes and gives.
        infer: answers a request for tensors; may raise ApiError.
    """

    def __init__(self, alias: str, engine: str, platform: str, signature: Signature, infer: Infer) -> None:
        self._model = f"/v2/models/{quote(alias, safe='')}"
        self._alias = alias
        self._engine = engine
        self._metadata = signature.metadata(alias, platform)
        self._infer = infer

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request whose key was right."""
        if request.method == "GET":
            return self._tell(request.path)
        if (request.method, request.path) != ("POST", f"{self._model}/infer"):
            return error_answer(_nothing_at(request))
        length = request.headers.get(_LENGTH_NAME)
        try:
            asked = read_infer(request.body, None if length is None else length.encode("latin-1"))
            message = await self._infer(request, asked)
        except ApiError as error:
            return error_answer(error)
        headers = {} if message.header_length is None else {_LENGTH_NAME: str(message.header_length)}
        return HttpAnswer(200, b"".join(message.pieces), message.content_type, headers=headers)

    def _tell(self, path: str) -> HttpAnswer:
        if path == self._model:
            return HttpAnswer(200, self._metadata)
        if path == f"{self._model}/ready":
            return json_answer({"name": self._alias, "ready": True})
        known = {"/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}
        if path in known:
            return json_answer(known[path])
        if path == "/v2":
            return json_answer({"name": f"madang-{self._engine}", "version": "1", "extensions": ["binary_tensor_data"]})
        return error_answer(ApiError(ErrorCode.INVALID_REQUEST, f"no GET {path[:100]} here", status=404))


def error_answer(error: ApiError) -> HttpAnswer:
    """Return the protocol's error object."""
    return HttpAnswer(error.status, encode_oip_error(error))


def _nothing_at(request: HttpRequest) -> ApiError:
    message = f"no {request.method} {request.path[:100]} here"
    return ApiError(ErrorCode.INVALID_REQUEST, message, status=404)
