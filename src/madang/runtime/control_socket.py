"""A control socket: one line of JSON in, one out, for whoever may open a file in a program's run folder.

Owns the socket and both ends of an exchange. Refuses to know what is commanded. Used by the WAN relay and the plant
twin of the embedded federation.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from madang.core import Unavailable
from madang.runtime.telemetry import EventLog

TIMEOUT_S = 5.0
LINE_BYTES_MAX = 4096
REPLY_BYTES_MAX = 1 << 20


def _address(folder: int, name: str) -> str:
    # A path of any length: sun_path holds 108 bytes (unix(7)), and state folders may be deep.
    return f"/proc/self/fd/{folder}/{name}"


def open_control(run_dir: Path, name: str) -> socket.socket:
    """Return a listening socket that only its owner may open; raises Unavailable when it cannot be made."""
    (run_dir / name).unlink(missing_ok=True)
    folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(control.fileno(), 0o600)  # before bind, the file is born with this mode
        control.bind(_address(folder, name))
        control.listen(8)
    except OSError as error:
        control.close()
        raise Unavailable(f"cannot open {run_dir / name}: {error.strerror}") from error
    finally:
        os.close(folder)
    return control


def answer_with(
    obey: Callable[[bytes], Awaitable[bytes]], log: EventLog
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Return what serves one connection: `obey` gets the line and gives the reply, one command at a time."""
    one_at_a_time = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = await reader.readuntil(b"\n")
                async with one_at_a_time:
                    reply = await obey(line)
                writer.write(reply + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.warning("control_failed", reason=str(error))
        finally:
            writer.close()

    return serve


def ask_control(run_dir: Path, name: str, line: bytes) -> bytes:
    """Send one line and return the reply's; empty when the program ended before it answered.

    Raises OSError when nobody listens.
    """
    folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(TIMEOUT_S)
            control.connect(_address(folder, name))
            control.sendall(line + b"\n")
            with control.makefile("rb") as stream:
                return stream.readline(REPLY_BYTES_MAX)
    finally:
        os.close(folder)
