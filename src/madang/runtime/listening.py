"""Listening sockets: bound once by a supervisor and held, and who has a port when it is not free.

Owns binding and the error text of a port in use. Refuses to accept connections. Called by the supervisor and by
the checks of `madang up`.
"""

import errno
import os
import socket

from madang.core import Rejected

BACKLOG = 1024
"""Connections that may wait while a process restarts; the kernel caps it at net.core.somaxconn."""


def open_listener(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a socket that listens on `host:port`, without waiting for connections of an earlier life to expire.

    Args:
        host: an IPv4 address.
        port: the port.
        is_shared: several sockets shall listen on the port (SO_REUSEPORT), for several processes.

    Raises:
        Rejected: when the port is taken, naming who holds it, or when it may not be bound.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _explain(host, port, error) from error
    return listener


def check_port_free(host: str, port: int, purpose: str) -> None:
    """Raise Rejected, naming the holder, unless `host:port` can be listened on by nobody else.

    The trial binds without SO_REUSEPORT, since with it two federations would share a port in silence.
    """
    try:
        open_listener(host, port).close()
    except Rejected as error:
        raise Rejected(f"{error.message}; {purpose} needs it", next_step=error.next_step) from error


def _explain(host: str, port: int, error: OSError) -> Rejected:
    if error.errno == errno.EADDRINUSE:
        return Rejected(
            f"port {port} on {host} is taken by {describe_holder(port)}",
            next_step="end that program, or choose other ports with --base-port",
        )
    if error.errno == errno.EACCES:
        return Rejected(
            f"port {port} on {host} may not be bound by this user: {os.strerror(error.errno)}",
            next_step="choose ports above 1023 with --base-port",
        )
    return Rejected(f"cannot listen on {host}:{port}: {error.strerror}", next_step="check the address")


def describe_holder(port: int) -> str:
    """Return `pid 12 (python -m x)` for the process that listens on `port`, as far as this user may see."""
    # Imported here: only this error path needs it, and a supervisor is to stay small.
    import psutil

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return "another program"
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port or connection.pid is None:
            continue
        try:
            command = " ".join(psutil.Process(connection.pid).cmdline())
        except psutil.Error:
            command = "?"
        return f"pid {connection.pid} ({command[:200]})"
    return "a program of another user"
