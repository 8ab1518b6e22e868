"""Takes `host:port` apart as site files write it.

Owns the one form. Refuses to resolve names. Called by drivers and twins whose devices are reached by host and port.
"""

from madang.core import Rejected


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port` or `[v6]:port`; raises Rejected for anything else."""
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise _malformed(address)
        port = rest[1:]
    else:
        host, colon, port = address.partition(":")
        if colon and ":" in port:
            raise _malformed(address)
    if not host or (port and not (port.isascii() and port.isdigit() and int(port) <= 65535)):
        raise _malformed(address)
    return host, int(port) if port else default_port


def _malformed(address: str) -> Rejected:
    return Rejected(f"the address {address!r} is not `host:port`", next_step="put an IPv6 address in brackets")
