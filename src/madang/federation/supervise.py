"""The detached supervisor of the embedded federation.

Owns its own detachment and the lock that keeps it single. Refuses to know what it runs: the specifications come
in a file. Started by `madang up` as `python -m madang.federation.supervise --run-dir DIR`; imports little, since
it stays in memory.
"""

import argparse
import asyncio
import fcntl
import os
import sys
from pathlib import Path

from madang.core import MadangError
from madang.runtime.clock import SystemClock
from madang.runtime.supervision import decode_specs
from madang.runtime.supervisor import Supervisor
from madang.runtime.telemetry import EventLog

PROGRAMS_FILE = "programs.json"
RECORD_FILE = "processes.json"
LOCK_FILE = "supervisor.lock"
FAILURE_FILE = "supervisor.failed"
"""Why the supervisor did not start, for whoever started it."""


def main(run_dir: Path) -> int:
    """Supervise until SIGTERM and return the exit status."""
    log = EventLog(SystemClock(), program="supervisor")
    failure = run_dir / FAILURE_FILE
    failure.unlink(missing_ok=True)
    lock = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("already_supervised")
        return 1
    supervisor = Supervisor(
        decode_specs((run_dir / PROGRAMS_FILE).read_bytes()),
        record_path=run_dir / RECORD_FILE,
        marker=str(run_dir),
        clock=SystemClock(),
        log=log,
    )
    try:
        supervisor.open_listeners()
    except MadangError as error:
        failure.write_text(str(error), encoding="utf-8")
        log.error("supervisor_failed", reason=str(error))
        return 1
    asyncio.run(supervisor.run())
    return 0


def detach() -> None:
    """Become a process that no terminal and no parent's end can touch: a session of its own, forked once more."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(0o077)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m madang.federation.supervise")
    parser.add_argument("--run-dir", type=Path, required=True)
    folder = parser.parse_args().run_dir
    detach()
    sys.exit(main(folder))
