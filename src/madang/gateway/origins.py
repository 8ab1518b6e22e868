"""How many connections each address has open at one worker, and the most that one may have.

Owns the count and what counts as one address. Refuses to close anything: the acceptor and the port do. An address is
known before a byte of a client is read and before a handshake, so that one that takes more than its share costs little.

Many clients may share an address (a hospital behind one NAT, a proxy in front of the gateway), so the limit only keeps
one address from shutting out all others.
"""

import socket

from madang.core import Rejected

REFUSALS_MAX = 64
"""Connections over a limit that are told so at once; any more are closed without a word."""
SHARE_OF_ALL = 2
"""Unless a number is set, one address may have this part of what a worker takes: a half."""
_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 section 2.5.5.2
_PREFIX_BYTES = 8
"""Of an IPv6 address: a host has a whole /64 to choose from (RFC 6177)."""


class Visit:
    """A connection's place in the count of its address."""

    __slots__ = ("_origin", "_origins", "is_welcome")

    def __init__(self, origins: "Origins | None", origin: str | bytes, *, is_welcome: bool) -> None:
        """Take it; `is_welcome` is false for one that is only to be told that there are too many."""
        self._origins = origins
        self._origin = origin
        self.is_welcome = is_welcome

    def leave(self) -> None:
        """The connection is gone; only the first call counts."""
        origins, self._origins = self._origins, None
        if origins is not None:
            origins.forget(self._origin, is_welcome=self.is_welcome)


NO_VISIT = Visit(None, "", is_welcome=True)
"""Of a connection whose address is not counted."""


class Origins:
    """The addresses that have connections, each with how many."""

    def __init__(self, most: int) -> None:
        """Begin with none.

        Args:
            most: connections of one address; 0 for any number.

        Attributes:
            refusals: connections over it, since the start.
        """
        self.most = most
        self.refusals = 0
        self._open: dict[str | bytes, int] = {}
        self._unwelcome = 0

    def enter(self, address: object) -> Visit | None:
        """Count a connection that was accepted; None for one that is not even to be refused in words.

        Args:
            address: as `accept` returned it.
        """
        if not self.most:
            return NO_VISIT
        origin = origin_of(address)
        count = self._open.get(origin, 0)
        if count < self.most:
            self._open[origin] = count + 1
            return Visit(self, origin, is_welcome=True)
        self.refusals += 1
        if self._unwelcome >= REFUSALS_MAX:
            return None
        self._unwelcome += 1
        return Visit(self, origin, is_welcome=False)

    def forget(self, origin: str | bytes, *, is_welcome: bool) -> None:
        """Count a connection out; called by its visit."""
        if not is_welcome:
            self._unwelcome -= 1
            return
        count = self._open[origin] - 1
        if count:
            self._open[origin] = count
        else:
            del self._open[origin]

    @property
    def addresses(self) -> int:
        """How many addresses have connections."""
        return len(self._open)


def origin_of(address: object) -> str | bytes:
    """Return what is counted as one address: an IPv4 address, or the /64 of an IPv6 one; what is neither is one too."""
    host = address[0] if isinstance(address, tuple) and address else ""
    if ":" not in host:
        return str(host)
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return str(host)
    if packed.startswith(_MAPPED):
        return socket.inet_ntoa(packed[len(_MAPPED) :])
    return packed[:_PREFIX_BYTES]


def most_of_one(connections_max: int, per_address_max: int | None) -> int:
    """Return how many connections one address may have, 0 for any number.

    Args:
        connections_max: that the worker takes in all.
        per_address_max: as it is set; None for SHARE_OF_ALL.

    Raises:
        Rejected: a negative number.
    """
    if per_address_max is None:
        return max(1, connections_max // SHARE_OF_ALL)
    if per_address_max < 0:
        raise Rejected(
            f"settings key connections_per_address_max: {per_address_max} is below 0", next_step="0 is for no limit"
        )
    return per_address_max
