"""Becomes a vendor's server, in that vendor's own Python, without the key in its command line.

Owns what must happen between our launch and the vendor's `main`: the folder that the model is expected in, the key,
and the variables of our own Python that must not reach another. Refuses to import anything but the standard library,
for it runs in a virtual environment or an image that is not ours, from Python 3.9 on. Started by the node's shim as
`python -I vendor_start.py … -- the vendor's arguments`; it does not execute another program, so that the process that
is watched and signalled is the server itself.

In a container without network it forks a bridge first: connections to a socket in a shared folder are carried to the
server's port, and one more connection, from whoever keeps the container, is what its life hangs on.
"""

import argparse
import contextlib
import importlib.metadata
import os
import runpy
import shutil
import signal
import socket
import sys
import threading
import time
from typing import Any

ENGINE_SOCKET = "engine.sock"
LIFE_SOCKET = "life.sock"
_LIFE_S = 10.0
_FIRST_LIFE_S = 60.0
_TERM_S = 5.0
_CONNECTIONS_MAX = 512
_READ_BYTES = 65536
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")


def main(argv: list[str]) -> int:
    """Prepare and become the server; returns its exit code."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--key-file", required=True)
    parser.add_argument("--key-variable", default="")
    parser.add_argument("--key-flag", default="")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--link", action="append", default=[], help="NAME=PATH, a file of the model")
    parser.add_argument("--script", default="", help="console script of an installed package")
    parser.add_argument("--module", default="", help="module in its place, a twin")
    parser.add_argument("--bridge", default="", help="folder shared with the keeper of this container")
    parser.add_argument("--bridge-port", type=int, default=0)
    options = parser.parse_args(argv[:split])
    arguments = argv[split + 1 :]
    if options.bridge:
        _fork_bridge(options.bridge, options.bridge_port)
    _make_folder(options.folder, options.link)
    with open(options.key_file, encoding="ascii") as file:
        key = file.read().strip()
    # The kernel keeps showing the command line and the variables that a process began with: neither has the key.
    if options.key_variable:
        os.environ[options.key_variable] = key
    if options.key_flag:
        arguments = [*arguments, options.key_flag, key]
    if options.module:
        sys.argv = [options.module, *arguments]
        runpy.run_module(options.module, run_name="__main__", alter_sys=True)
        return 0
    for name in _OURS:
        os.environ.pop(name, None)
    start = _find_script(options.script)
    sys.argv = [options.script, *arguments]
    return int(start() or 0)


def _make_folder(folder: str, links: list[str]) -> None:
    """Make the model's folder anew: engines look for files by name, and the cache keeps them by content."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    for link in links:
        name, _, path = link.partition("=")
        os.symlink(path, os.path.join(folder, name))


def _find_script(name: str) -> Any:
    every: Any = importlib.metadata.entry_points()
    # Before 3.10 it is a dictionary.
    scripts = every.select(group="console_scripts") if hasattr(every, "select") else every.get("console_scripts", ())
    for script in scripts:
        if script.name == name:
            return script.load()
    raise SystemExit(f"{name} is not installed for {sys.executable}")


def _fork_bridge(folder: str, port: int) -> None:
    """Start the bridge in a child of its own, so that it does not share the server's interpreter lock."""
    listeners = []
    for name in (ENGINE_SOCKET, LIFE_SOCKET):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(_CONNECTIONS_MAX)
        listeners.append(listener)
    server = os.getpid()
    if os.fork():
        for listener in listeners:
            listener.close()
        return
    try:
        threading.Thread(target=_watch_life, args=(listeners[1], server), daemon=True).start()
        _bridge(listeners[0], port)
    finally:
        os._exit(1)


def _watch_life(listener: socket.socket, server: int) -> None:
    """End the server when its keeper is gone for longer than a restart of the keeper takes."""
    wait_s = _FIRST_LIFE_S
    while True:
        listener.settimeout(wait_s)
        try:
            keeper, _ = listener.accept()
        except OSError:
            break
        keeper.settimeout(None)
        try:
            while keeper.recv(_READ_BYTES):
                pass
        except OSError:
            pass
        keeper.close()
        wait_s = _LIFE_S
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(server, number)
        except ProcessLookupError:
            break
        time.sleep(_TERM_S)
    os._exit(1)


def _bridge(listener: socket.socket, port: int) -> None:
    room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
    server = os.getppid()
    listener.settimeout(1.0)
    while os.getppid() == server:  # without the server there is nothing to bridge to
        try:
            outside, _ = listener.accept()
        except OSError:
            continue
        outside.settimeout(None)
        if not room.acquire(blocking=False):
            outside.close()
            continue
        threading.Thread(target=_carry, args=(outside, port, room), daemon=True).start()


def _carry(outside: socket.socket, port: int, room: threading.BoundedSemaphore) -> None:
    inside = None
    try:
        inside = socket.create_connection(("127.0.0.1", port))
        back = threading.Thread(target=_flow, args=(inside, outside), daemon=True)
        back.start()
        _flow(outside, inside)
        back.join()
    except OSError:
        pass  # the server does not listen yet, or no longer
    finally:
        for end in (outside, inside):
            if end is not None:
                end.close()
        room.release()


def _flow(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes one way; whichever side ends, both are shut, so that a client that left is seen to have left."""
    try:
        while True:
            data = source.recv(_READ_BYTES)
            if not data:
                break
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
