"""OpenAI's error object, with the codes and statuses of the tenant API.

Owns how an error looks to a client, whichever part of the gateway found it. Refuses to know why it was raised.
"""

from enum import StrEnum
from typing import Any

import msgspec

from madang.core import Rejected


class ErrorCode(StrEnum):
    """Codes of the tenant API (DESIGN section 6)."""

    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED = "unsupported"
    INVALID_KEY = "invalid_key"
    RESIDENCY_VIOLATION = "residency_violation"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_YET = "not_yet"
    REQUEST_TOO_LARGE = "request_too_large"
    QUOTA_EXCEEDED = "quota_exceeded"
    OVERLOADED = "overloaded"
    UPSTREAM_FAILED = "upstream_failed"
    NO_REPLICA = "no_replica"
    TIMEOUT = "timeout"


# Status and OpenAI's `type`; the official client picks its exception by status.
_STATUS = {
    ErrorCode.INVALID_REQUEST: (400, "invalid_request_error"),
    ErrorCode.UNSUPPORTED: (400, "invalid_request_error"),
    ErrorCode.INVALID_KEY: (401, "authentication_error"),
    ErrorCode.RESIDENCY_VIOLATION: (403, "permission_error"),
    ErrorCode.MODEL_NOT_FOUND: (404, "not_found_error"),
    ErrorCode.NOT_YET: (404, "not_found_error"),
    ErrorCode.REQUEST_TOO_LARGE: (413, "invalid_request_error"),
    ErrorCode.QUOTA_EXCEEDED: (429, "insufficient_quota"),
    ErrorCode.OVERLOADED: (429, "rate_limit_error"),
    ErrorCode.UPSTREAM_FAILED: (502, "server_error"),
    ErrorCode.NO_REPLICA: (503, "server_error"),
    ErrorCode.TIMEOUT: (504, "server_error"),
}


class ApiError(Rejected):
    """An answer that is an error.

    Attributes:
        code: DESIGN's code.
        param: the parameter at fault, None when it is none.
        status: HTTP status; the code's own unless HTTP has a better word (404 of a path, 405, 408, 431).
        retry_after_s: when waiting helps.
        details: what programs may want to know, under `error.madang`.
        allow: methods for a 405.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = status if status is not None else _STATUS[code][0]
        self.retry_after_s = retry_after_s
        self.details = details
        self.allow = allow


_encoder = msgspec.json.Encoder()


def encode_error(error: ApiError) -> bytes:
    """Return OpenAI's error object as JSON."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": _STATUS[error.code][1],
        "param": error.param,
        "code": error.code.value,
    }
    if error.details:
        body["madang"] = error.details
    return _encoder.encode({"error": body})
