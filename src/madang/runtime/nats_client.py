"""The NATS client, without its WebSocket transport.

Owns how it is imported, and the end of a socket that it has forgotten. For WebSockets, which nobody here speaks, it
imports aiohttp wherever that lies in the same environment: a sixth of the time that hub and site take to start. Called
by `madang.runtime.bus`.
"""

import contextlib
import sys

_UNWANTED = "aiohttp"
_is_there = _UNWANTED in sys.modules
if not _is_there:
    # None is Python's own word for "cannot be imported"; the client takes that as "not installed".
    sys.modules[_UNWANTED] = None  # type: ignore[assignment]
try:
    from nats import errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
finally:
    if not _is_there:
        del sys.modules[_UNWANTED]

__all__ = ["Client", "Msg", "drop_socket", "errors"]


def drop_socket(client: Client) -> None:
    """Close a client's socket if it has not: its own closing ends early when what it still had to send raises."""
    if client._transport is not None:
        with contextlib.suppress(RuntimeError, OSError):
            client._transport.close()  # type: ignore[no-untyped-call]
