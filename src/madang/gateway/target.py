"""What a call to an upstream is made of: where to, how long, who hears of it and how it may fail."""

import re
from enum import StrEnum
from typing import NamedTuple, Protocol

_PORTS = {"http": "80", "https": "443"}
# RFC 1123 section 2.1, with the underscore that names of containers have; or an IPv6 address. Anything else raises in
# the resolver, or would reach the Host field.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z|\[[0-9A-Fa-f:.]{{2,45}}\]\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
PORT_MAX = 65_535


class Target(NamedTuple):
    """Where an upstream listens, and whether it wants TLS."""

    host: str
    port: int
    is_secure: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_target(url: str) -> Target:
    """Return what `http://host:port` or `https://host:port` names; raises ValueError when it is anything else.

    The port may be left out where it is the scheme's own.
    """
    scheme, _, rest = url.partition("://")
    rest = rest.removesuffix("/")
    host, colon, port = rest.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = rest, _PORTS.get(scheme, "")
    is_port = _PORT.match(port) is not None and 0 < int(port) <= PORT_MAX
    if scheme not in _PORTS or not is_port or not _HOST.match(host):
        raise ValueError(f"expected http://host:port or https://host:port, found {url!r}")
    return Target(host.strip("[]"), int(port), scheme == "https")


class Failure(StrEnum):
    """How a call failed."""

    CONNECT = "connect"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"


class Receiver(Protocol):
    """Who hears of a call; after `on_end` or `on_failed` nothing more comes."""

    def on_informational(self, status: int) -> None:
        """An interim answer (1xx)."""

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        """The answer's head; names in lower case."""

    def on_data(self, data: bytes) -> None:
        """A piece of the answer's body."""

    def on_end(self) -> None:
        """The answer is complete."""

    def on_failed(self, failure: Failure, reason: str) -> None:
        """There will be no complete answer."""


class TimeLimits(NamedTuple):
    """Limits of one call, in seconds: until the answer's head, then between pieces."""

    first_byte_s: float
    stall_s: float
