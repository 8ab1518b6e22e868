"""Starts processes, keeps them running, holds their listening sockets, and stops them in order.

Owns its children, their log files and the record of them on disk. Refuses to know what the programs are: a
`ProcessSpec` says all. Called by the embedded federation and by `madang site run --all`. Imports little, since
it stays in memory on every site.

A supervisor that is killed leaves three traces by which a later command cleans up: children that were linked to
its life get SIGTERM from the kernel, the record names each by pid and start time, and all carry a marker in
their environment.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from madang.core import Clock, MadangError, ns_to_s
from madang.runtime.files import replace_file
from madang.runtime.listening import open_listener
from madang.runtime.process import ProcessRef, make_ref
from madang.runtime.supervision import (
    LISTEN_FDS_VARIABLE,
    MARKER_VARIABLE,
    ListenSpec,
    ProcessRecord,
    ProcessSpec,
    RestartPolicy,
    RestartState,
    SupervisorRecord,
    check_specs,
    choose_restart,
    encode_record,
    format_listen_fds,
    plan_stop,
)
from madang.runtime.telemetry import EventLog

LOG_BYTES_MAX = 8 * 1024 * 1024
_TICK_S = 1.0
_FILE_POLL_S = 0.05
_READY_POLL_S = 0.05
_DEPENDENCY_WAIT_S_MAX = 30.0
_PROBE_TIMEOUT_S = 1.0
_KILL_WAIT_S = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Keeper:
    """The supervisor's view of one specification."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.ref: ProcessRef | None = None
        self.ended = asyncio.Event()
        self.wake = asyncio.Event()
        self.ready = asyncio.Event()
        self.starts = 0
        self.since_s = 0.0
        self.last_exit = ""
        self.note = "not started yet"


class Supervisor:
    """Keeps processes running until told to stop.

    Args:
        specs: what to run.
        record_path: where the record of children is kept.
        marker: value that identifies this supervisor's children in their environment.
        clock: time.
        log: where state changes are written.
        policy: the restart rule.
        log_bytes_max: size over which a process's log is moved to `<name>.1`; so it keeps at most twice of it.
    """

    def __init__(
        self,
        specs: tuple[ProcessSpec, ...],
        *,
        record_path: Path,
        marker: str,
        clock: Clock,
        log: EventLog,
        policy: RestartPolicy | None = None,
        log_bytes_max: int = LOG_BYTES_MAX,
    ) -> None:
        check_specs(specs)
        self._specs = specs
        self._record_path = record_path
        self._marker = marker
        self._clock = clock
        self._log = log
        self._policy = policy or RestartPolicy()
        self._log_bytes_max = log_bytes_max
        self._keepers = {spec.name: _Keeper(spec) for spec in specs}
        self._sockets: dict[tuple[str, str], socket.socket] = {}
        self._stop = asyncio.Event()
        self._can_write_record = True

    def open_listeners(self) -> None:
        """Bind every held socket; raises Rejected naming the holder when a port is taken."""
        wanted = [(spec.name, listen) for spec in self._specs for listen in spec.listeners]
        addresses = [(listen.host, listen.port) for _, listen in wanted]
        try:
            for name, listen in wanted:
                is_shared = addresses.count((listen.host, listen.port)) > 1
                self._sockets[name, listen.name] = open_listener(listen.host, listen.port, is_shared=is_shared)
        except MadangError:
            self._close_listeners()
            raise

    def request_stop(self) -> None:
        """Ask for an orderly stop; `run` returns once all children have ended."""
        self._stop.set()
        self._wake_all()

    def retry_now(self) -> None:
        """Start at once whatever is waiting out a back-off."""
        self._wake_all()

    async def run(self) -> None:
        """Start everything, keep it running, and return after an orderly stop."""
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._reap,
            signal.SIGTERM: self.request_stop,
            signal.SIGINT: self.request_stop,
            signal.SIGUSR1: self.retry_now,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            async with asyncio.TaskGroup() as group:
                for keeper in self._keepers.values():
                    group.create_task(self._keep(keeper), name=f"keep-{keeper.spec.name}")
                group.create_task(self._tick(), name="tick")
                await self._stop.wait()
                await self._stop_children()
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
            self._kill_remaining()
            self._close_listeners()

    # One process

    async def _keep(self, keeper: _Keeper) -> None:
        await self._await_conditions(keeper)
        state = RestartState()
        while not self._stop.is_set():
            started_ns = self._clock.monotonic_ns()
            if self._spawn(keeper):
                await self._await_end(keeper)
            if self._stop.is_set():
                break
            ran_s = ns_to_s(self._clock.monotonic_ns() - started_ns)
            state, delay_s = choose_restart(self._policy, state, ran_s)
            keeper.note = f"starts again in {delay_s:.1f} s" if delay_s else ""
            self._log.warning(
                "process_ended", process=keeper.spec.name, how=keeper.last_exit, ran_s=round(ran_s, 3), delay_s=delay_s
            )
            self._write_record()
            if delay_s:
                await self._pause(keeper, delay_s)

    async def _await_conditions(self, keeper: _Keeper) -> None:
        for path in keeper.spec.needs_files:
            keeper.note = f"waits for {path}"
            while not path.exists() and not self._stop.is_set():
                await self._pause(keeper, _FILE_POLL_S)
        for name in keeper.spec.depends_on:
            keeper.note = f"waits for {name}"
            with suppress(TimeoutError):
                # Programs find each other again by themselves after any crash; the order only saves them noise.
                await asyncio.wait_for(self._keepers[name].ready.wait(), _DEPENDENCY_WAIT_S_MAX)

    async def _await_end(self, keeper: _Keeper) -> None:
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(self._await_ready(keeper))
            await keeper.ended.wait()
            probe.cancel()

    async def _await_ready(self, keeper: _Keeper) -> None:
        if keeper.spec.ready_url and any(keeper.spec.name in spec.depends_on for spec in self._specs):
            while not await probe_url(keeper.spec.ready_url):
                await self._pause(keeper, _READY_POLL_S)
        keeper.ready.set()

    async def _pause(self, keeper: _Keeper, duration_s: float) -> None:
        keeper.wake.clear()
        if self._stop.is_set():
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(keeper.wake.wait(), duration_s)

    def _spawn(self, keeper: _Keeper) -> bool:
        spec = keeper.spec
        keeper.ended.clear()
        keeper.starts += 1
        keeper.since_s = self._clock.wall_s()
        held = {listen.name: self._held(spec, listen).fileno() for listen in spec.listeners}
        env = os.environ | spec.env | {MARKER_VARIABLE: self._marker}
        if held:
            env[LISTEN_FDS_VARIABLE] = format_listen_fds(held)
        try:
            output = os.open(spec.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                process = subprocess.Popen(
                    spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=spec.cwd,
                    env=env,
                    pass_fds=tuple(held.values()),
                    process_group=0,
                    # Safe here: this process has one thread, and the function calls only prctl and getppid.
                    preexec_fn=_link_to_parent(os.getpid()) if spec.is_death_linked else None,
                )
            finally:
                os.close(output)
        except (OSError, subprocess.SubprocessError) as error:
            keeper.last_exit = f"did not start: {error}"
            return False
        keeper.process, keeper.ref, keeper.note = process, make_ref(process.pid), ""
        self._log.info("process_started", process=spec.name, pid=process.pid, starts=keeper.starts)
        self._write_record()
        return True

    def _held(self, spec: ProcessSpec, listen: ListenSpec) -> socket.socket:
        return self._sockets[spec.name, listen.name]

    def _reap(self) -> None:
        for keeper in self._keepers.values():
            process = keeper.process
            if process is None or process.poll() is None:
                continue
            keeper.process, keeper.ref = None, None
            keeper.since_s = self._clock.wall_s()
            keeper.last_exit = describe_exit(process.returncode)
            keeper.ended.set()

    # All of them

    async def _tick(self) -> None:
        while not self._stop.is_set():
            for keeper in self._keepers.values():
                self._bound_log(keeper.spec.log_path)
            self._reap()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _TICK_S)

    def _bound_log(self, path: Path) -> None:
        # The process holds its log open in append mode, so it is copied and emptied, not renamed.
        try:
            if path.stat().st_size > self._log_bytes_max:
                shutil.copyfile(path, path.with_name(path.name + ".1"))
                os.truncate(path, 0)
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.error("log_not_rotated", path=path, reason=error.strerror)

    async def _stop_children(self) -> None:
        self._log.info("stopping")
        for group in plan_stop(self._specs):
            await asyncio.gather(*(self._stop_one(self._keepers[spec.name]) for spec in group))
        self._log.info("stopped")
        self._write_record()

    async def _stop_one(self, keeper: _Keeper) -> None:
        process = keeper.process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(keeper.ended.wait(), keeper.spec.stop_timeout_s)
        except TimeoutError:
            self._log.warning("process_killed", process=keeper.spec.name, waited_s=keeper.spec.stop_timeout_s)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(TimeoutError):
                await asyncio.wait_for(keeper.ended.wait(), _KILL_WAIT_S)
            # A process in an uninterruptible wait must not keep the supervisor: `madang down` reports what remains.
            keeper.ended.set()

    def _kill_remaining(self) -> None:
        # Only reached with children when the supervisor itself fails: a bug must not leave them behind.
        for keeper in self._keepers.values():
            if keeper.process is not None and keeper.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(keeper.process.pid, signal.SIGKILL)
                keeper.process.wait(_KILL_WAIT_S)

    def _close_listeners(self) -> None:
        for held in self._sockets.values():
            held.close()
        self._sockets.clear()

    def _wake_all(self) -> None:
        for keeper in self._keepers.values():
            keeper.wake.set()
            if self._stop.is_set():
                keeper.ready.set()

    def _write_record(self) -> None:
        me = make_ref(os.getpid())
        assert me is not None
        record = SupervisorRecord(
            supervisor=me,
            session=os.getsid(0),
            marker=self._marker,
            processes=tuple(
                ProcessRecord(
                    name=keeper.spec.name,
                    log_path=keeper.spec.log_path,
                    ref=keeper.ref,
                    since_s=keeper.since_s,
                    restarts=max(keeper.starts - 1, 0),
                    last_exit=keeper.last_exit,
                    note=keeper.note,
                    ready_url=keeper.spec.ready_url,
                )
                for keeper in self._keepers.values()
            ),
        )
        try:
            replace_file(self._record_path, encode_record(record), mode=0o600)
            self._can_write_record = True
        except MadangError as error:
            # A full disk must not end what is running; the marker still identifies the children.
            if self._can_write_record:
                self._log.error("record_not_written", reason=str(error))
            self._can_write_record = False


def _link_to_parent(parent_pid: int) -> Callable[[], None]:
    def link() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            # The supervisor died between fork and prctl, so its death will not be signalled any more.
            os._exit(1)

    return link


def describe_exit(code: int) -> str:
    """Return `exit 1` or `signal SIGKILL` for a return code of subprocess."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


async def probe_url(url: str) -> bool:
    """Return whether a GET of an http URL is answered with a 2xx status within a second."""
    parts = urllib.parse.urlsplit(url)
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            try:
                target = parts.path or "/"
                head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode())
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    fields = line.split()
    return len(fields) >= 2 and fields[1].startswith(b"2")
