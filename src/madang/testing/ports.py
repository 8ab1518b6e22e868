"""Ports for programs that a test starts: free now, and not taken before the program binds them.

Owns the choice of a port on loopback. Refuses to know what listens there.
"""

import contextlib
import secrets
import socket

_HOST = "127.0.0.1"
_FIRST, _COUNT = 20_000, 12_000
"""Below 32768, where Linux begins to take ports for outgoing connections (ip_local_port_range): one that the kernel
picks for port 0 may be somebody's outgoing connection before the program that was told of it binds it."""
_TRIES_MAX = 200
_given: set[int] = set()


def free_port() -> int:
    """Return a port on loopback that is free for TCP and UDP and was not given before in this process."""
    for _ in range(_TRIES_MAX):
        port = _FIRST + secrets.randbelow(_COUNT)
        if port in _given or not (_is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM)):
            continue
        _given.add(port)
        return port
    raise AssertionError(f"no free port between {_FIRST} and {_FIRST + _COUNT} in {_TRIES_MAX} tries")


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as trial, contextlib.suppress(OSError):
        trial.bind((_HOST, port))
        return True
    return False
