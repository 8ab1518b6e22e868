"""The paths of the Open Inference Protocol under `/v2`: what each asks for, and the refusal of the rest.

Owns the grammar of the paths. Refuses to know which models there are. Called by the gateway's ports.
"""

import re
from enum import StrEnum
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

from madang.wire.http1 import RequestHead
from madang.wire.openai import Endpoint
from madang.wire.openai_errors import ApiError, ErrorCode

SERVER_PATH = "/v2"
EXTENSIONS = ("binary_tensor_data",)
_MODEL = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>[a-z_]+))?\Z")
# Extensions that some servers offer, by the beginning of their path or by a model's verb.
_NOT_OFFERED = {
    "repository": "the model repository extension",
    "systemsharedmemory": "the shared memory extension",
    "cudasharedmemory": "the shared memory extension",
    "generate": "the generate extension",
    "generate_stream": "the generate extension",
    "config": "the model configuration extension",
    "stats": "the statistics extension",
    "trace": "the trace extension",
    "logging": "the logging extension",
}


class OipQuestion(StrEnum):
    """What the gateway answers without an engine, by the path that metrics name it by."""

    SERVER = SERVER_PATH
    LIVE = "/v2/health/live"
    READY = "/v2/health/ready"
    MODEL_READY = "/v2/models/{model}/ready"


class OipTarget(NamedTuple):
    """What a path asks for; `model` and `version` are empty where it names none."""

    asked: OipQuestion | Endpoint
    model: str = ""
    version: str = ""


def is_oip_path(path: str) -> bool:
    """Return whether a path belongs to the protocol, so that errors have its shape."""
    return path == SERVER_PATH or path.startswith(SERVER_PATH + "/")


def find_target(head: RequestHead) -> OipTarget:
    """Return what a request under `/v2` asks for; raises ApiError 404, 405, or 400 for what may have no body."""
    target = _parse(head.path)
    methods = ("POST",) if target.asked is Endpoint.INFER else ("GET", "HEAD")
    if head.method not in methods:
        allow = ", ".join(methods)
        raise ApiError(ErrorCode.INVALID_REQUEST, f"{target.asked.value} takes {allow}", status=405, allow=allow)
    if head.has_body and target.asked is not Endpoint.INFER:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"{target.asked.value} takes no body")
    return target


def _parse(path: str) -> OipTarget:
    if path == "/v2/":
        return OipTarget(OipQuestion.SERVER)
    for question in (OipQuestion.SERVER, OipQuestion.LIVE, OipQuestion.READY):
        if path == question.value:
            return OipTarget(question)
    match = _MODEL.match(path)
    if match is None:
        _refuse(path, path.split("/")[2] if path.count("/") > 1 else "")
    model, version = unquote(match["model"]), unquote(match["version"] or "")
    match match["verb"]:
        case "infer":
            return OipTarget(Endpoint.INFER, model, version)
        case "ready":
            return OipTarget(OipQuestion.MODEL_READY, model, version)
        case None:
            return OipTarget(Endpoint.MODEL_METADATA, model, version)
        case verb:
            _refuse(path, verb)


def _refuse(path: str, word: str) -> NoReturn:
    extension = _NOT_OFFERED.get(word)
    if extension is not None:
        raise ApiError(ErrorCode.UNSUPPORTED, f"{extension} is not offered here", status=404)
    shown = path if len(path) <= 100 else path[:100] + "…"
    raise ApiError(ErrorCode.INVALID_REQUEST, f"there is nothing at {shown}", status=404)
