"""The external engine's texts: the command line of the door, where a request goes, and the model's name in it.

Owns them. Refuses to open anything. Vendor-free, for the twin imports it.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from madang.core import Rejected
from madang.engine.settings import ExternalEndpoint

BODY_BYTES_MAX = 64 * 1024 * 1024
ANSWER_BYTES_MAX = 128 * 1024 * 1024
_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_endpoint_decoder = msgspec.json.Decoder(ExternalEndpoint, dec_hook=lambda kind, value: kind(value))
_encoder = msgspec.json.Encoder(enc_hook=str)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Command line of the door.

    Attributes:
        endpoint: what stands behind it.
        paths: what it lets through, `{model}` for the name.
        file: behaviour of a twin.
    """

    endpoint: ExternalEndpoint
    paths: tuple[str, ...]
    alias: str
    host: str
    port: int
    key_file: Path
    file: Path | None = None

    def to_argv(self) -> tuple[str, ...]:
        """Return the arguments that `from_argv` reads."""
        return (
            f"--endpoint={_encoder.encode(self.endpoint).decode()}",
            *(f"--path={path}" for path in self.paths),
            f"--alias={self.alias}",
            f"--host={self.host}",
            f"--port={self.port}",
            f"--key-file={self.key_file}",
            *((f"--file={self.file}",) if self.file is not None else ()),
        )

    @staticmethod
    def from_argv(argv: list[str]) -> "ServeOptions":
        """Return the options in `argv`; exits with code 2 and a usage text when they are wrong."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("--endpoint", type=_endpoint_decoder.decode, required=True)
        parser.add_argument("--path", action="append", required=True)
        parser.add_argument("--alias", required=True)
        parser.add_argument("--host", required=True)
        parser.add_argument("--port", type=int, required=True)
        parser.add_argument("--key-file", type=Path, required=True)
        parser.add_argument("--file", type=Path)
        values = vars(parser.parse_args(argv))
        return ServeOptions(paths=tuple(values.pop("path")), **values)


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
