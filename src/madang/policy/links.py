"""What the way from one site to another may carry. Fail-closed: one that is not surely private carries open data alone.

Owns the rule for links between gateways (docs/adr/0033). Refuses to know sockets and files. Called by the gateway when
it reads its feed, not for each request, and by the site process to show the same.

A way is private when it is TLS, when it does not leave the machine, or when the site's operator says that it is
encrypted below HTTP. An address counts as this machine only in its plainest spellings.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from madang.model import DataClass


def most_over_link(*, is_tls: bool, host: str, is_encrypted: bool) -> DataClass:
    """Return the highest class of data that may go over a way to another site.

    Args:
        is_tls: the peer is dialled with TLS and its name checked.
        host: what is dialled; an address without brackets, or a name.
        is_encrypted: the operator answers for the way.
    """
    is_private = is_tls or is_encrypted or _is_this_machine(host)
    return DataClass.CLASSIFIED if is_private else DataClass.OPEN


def most_over_url(url: str, *, is_encrypted: bool) -> DataClass:
    """Return the same of a peer's URL, for people to see."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return DataClass.OPEN
    return most_over_link(is_tls=parts.scheme == "https", host=host, is_encrypted=is_encrypted)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":  # RFC 6761 section 6.3
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
