"""The external engine's texts: the command line of the door, where a request goes, and the model's name in it.

Owns them. Refuses to open anything. Vendor-free, for the twin imports it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec

from madang.core import Rejected
from madang.engine.child_options import ChildOptions, coded, many
from madang.engine.settings import ExternalEndpoint

BODY_BYTES_MAX = 64 * 1024 * 1024
ANSWER_BYTES_MAX = 128 * 1024 * 1024
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_endpoint_decoder = msgspec.json.Decoder(ExternalEndpoint, dec_hook=lambda kind, value: kind(value))
_encoder = msgspec.json.Encoder(enc_hook=str)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChildOptions):
    """Command line of the door.

    Attributes:
        endpoint: what stands behind it.
        paths: what it lets through, `{model}` for the name.
        file: behaviour of a twin.
    """

    endpoint: ExternalEndpoint = field(
        metadata=coded(_endpoint_decoder.decode, lambda endpoint: _encoder.encode(endpoint).decode())
    )
    paths: tuple[str, ...] = field(metadata=many(str))
    file: Path | None = None


class Route:
    """Leads a path at the door to one at the endpoint."""

    def __init__(self, options: ServeOptions) -> None:
        here = quote(options.alias, safe="")
        there = quote(options.endpoint.model or options.alias, safe="")
        self._posts = {path.format(model=here): path.format(model=there) for path in options.paths}
        metadata = "/v2/models/{model}"
        is_infer = any(path.startswith(metadata) for path in options.paths)
        self._gets = {metadata.format(model=here): metadata.format(model=there)} if is_infer else {}

    def find(self, method: str, path: str) -> str | None:
        """Return where a request goes, None for one that the door does not let through."""
        return {"POST": self._posts, "GET": self._gets}.get(method, {}).get(path)


def rename_model(body: bytes, model: str) -> bytes:
    """Return a request of OpenAI's API with the model's name replaced; raises Rejected when it is no JSON object."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Rejected(f"the request is malformed: {error}") from error
    fields["model"] = msgspec.Raw(_encoder.encode(model))
    return _encoder.encode(fields)
