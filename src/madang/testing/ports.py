"""Ports for programs that a test starts: free now, and not taken before the program binds them.

Owns the choice of a port on loopback. Refuses to know what listens there.

Several processes of tests run side by side, and seconds pass between choosing a port and its program's binding it. So
each process takes ports from slices of the range that it alone has: a lock on a file says so, and ends with it.
"""

import contextlib
import fcntl
import os
import secrets
import socket
import tempfile
from pathlib import Path

_HOST = "127.0.0.1"
_FIRST = 20_000
"""Up to 32,000: below 32768, where Linux begins to take ports for outgoing connections (ip_local_port_range). One that
the kernel picks for port 0 may be somebody's outgoing connection before the program that was told of it binds it."""
_SLICES, _SLICE_PORTS = 60, 200
_chance = secrets.SystemRandom()
_locks: list[int] = []
_left: list[int] = []


def free_port() -> int:
    """Return a port on loopback that is free for TCP and UDP, and that no other process of tests is given."""
    for _ in range(_SLICES * _SLICE_PORTS):
        if not _left:
            _left.extend(_claim_slice())
        port = _left.pop()
        if _is_free(port, socket.SOCK_STREAM) and _is_free(port, socket.SOCK_DGRAM):
            return port
    raise AssertionError(f"no free port between {_FIRST} and {_FIRST + _SLICES * _SLICE_PORTS}")


def _claim_slice() -> list[int]:
    """Return the ports of a slice that this process alone has from now on, in any order."""
    folder = Path(tempfile.gettempdir()) / f"madang-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in _chance.sample(range(_SLICES), _SLICES):
        lock = os.open(folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        _locks.append(lock)  # held until the process ends
        first = _FIRST + number * _SLICE_PORTS
        return _chance.sample(range(first, first + _SLICE_PORTS), _SLICE_PORTS)
    raise AssertionError(f"all {_SLICES} slices of ports are taken by processes of tests: {folder}")


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_INET, kind) as trial, contextlib.suppress(OSError):
        trial.bind((_HOST, port))
        return True
    return False
