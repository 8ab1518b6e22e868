"""A gateway worker as a program: its parts put together, its sockets, its end.

Owns start and stop. Refuses to decide anything about requests. `python -m madang.gateway` and `madang gateway run`
call `main`. The supervisor holds the listening sockets and hands them down by number, so that a worker that dies
drops no connection that waits to be accepted; without a supervisor the worker binds for itself.
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from madang.core import Clock, Entropy, MadangError, Rejected, Unavailable
from madang.gateway.acceptor import Acceptor, Secured
from madang.gateway.access_log import AccessLog
from madang.gateway.admin_port import AdminPort
from madang.gateway.admission import Admission
from madang.gateway.body_pool import BodyPool
from madang.gateway.feed import FeedWatcher
from madang.gateway.file_budget import FileBudget, plan_files, raise_file_limit
from madang.gateway.inflight import InFlightTable
from madang.gateway.link_watch import LinkWatch
from madang.gateway.metrics import Meter
from madang.gateway.origins import Origins, most_of_one
from madang.gateway.peer_port import PeerPort
from madang.gateway.port import Handler, Limits, Port
from madang.gateway.purse import Purse
from madang.gateway.rates import RateTable
from madang.gateway.relay import Relay
from madang.gateway.settings import GatewaySettings
from madang.gateway.site_leg import SiteLink
from madang.gateway.tenant_port import TenantPort
from madang.gateway.tracing import Tracing
from madang.gateway.upstream import UpstreamPool
from madang.gateway.usage_log import Disk, UsageLog
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.collector import calm_collector
from madang.runtime.files import make_private_folder
from madang.runtime.machine_boot import read_boot
from madang.runtime.settings import load_settings
from madang.runtime.telemetry import EventLog
from madang.wire.access_log import ACCESS_FOLDER

if TYPE_CHECKING:
    from madang.gateway.tls import TlsIdentity

LISTEN_FDS = "MADANG_LISTEN_FDS"
SOCKET_NAMES = ("tenant", "peer", "admin", "tenant-tls", "peer-tls")
BACKLOG = 4096
ADMIN_CONNECTIONS_MAX = 64
OTHERS_PERIOD_S = 1.0
"""How often other workers' in-flight files are looked for."""
SNAPSHOT_PATIENCE_S = 30.0
"""After so long without a snapshot the log says so; the worker goes on waiting and refusing."""


class GatewayWorker:
    """One worker; `start`, then `stop`."""

    def __init__(
        self,
        settings: GatewaySettings,
        worker: int,
        *,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
        tasks: asyncio.TaskGroup,
        sockets: Mapping[str, socket.socket] | None = None,
        disk: Disk | None = None,
        files: FileBudget | None = None,
    ) -> None:
        """Put the parts together; nothing is opened yet but the files that are this worker's own.

        Args:
            settings: of the site's gateway.
            worker: number of this worker, from 0.
            clock: time.
            entropy: chance.
            log: where events go.
            tasks: parent of every task.
            sockets: listening sockets by name (`tenant`, `peer`, `admin`); what is missing is bound here.
            disk: what reaches the disk under the usage log.
            files: what may be open; as the settings say by default.

        Raises:
            Rejected: TLS is asked for and its files cannot be used.
        """
        self._settings = settings
        self._worker = worker
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._sockets = dict(sockets or {})
        self._spawn = tasks.create_task
        self._files = files if files is not None else plan_files(settings)
        self._acceptors: list[Acceptor] = []
        self._is_stopping = False
        self._is_access_failing = False
        self._timers: list[asyncio.TimerHandle] = []
        access_dir = _make_folders(settings)
        self.meter = Meter(settings.site)
        self.feed = FeedWatcher(settings.feed_dir, self._loop, clock, log)
        boot = entropy.token_bytes(6).hex()
        self.access = AccessLog(access_dir, worker, boot, clock=clock, open_ratio=settings.access_open_ratio)
        self.usage = self._make_log(boot, clock, disk)
        self._inflight = InFlightTable(settings.feed_dir, worker)
        self.tls = self._read_certificate(clock)
        self._peer_roots = self._read_peer_roots()
        self._links = LinkWatch(self.feed, log)
        self._pool = self._make_pool()
        self._tracing = Tracing(settings)
        self.relay = Relay(
            settings=settings,
            loop=self._loop,
            clock=clock,
            entropy=entropy,
            feed=self.feed,
            pool=self._pool,
            inflight=self._inflight,
            usage=self.usage,
            access=self.access,
            meter=self.meter,
            tracing=self._tracing,
            admission=self._open_books(clock, entropy),
            log=log,
        )
        self.bodies = BodyPool(settings.body_memory_bytes_max)
        self.origins = Origins(most_of_one(self._files.connections_max, settings.connections_per_address_max))
        self.ports = self._make_ports(clock)

    def _make_log(self, boot: str, clock: Clock, disk: Disk | None) -> UsageLog:
        return UsageLog(
            self._settings.usage_dir,
            self._worker,
            boot,
            loop=self._loop,
            clock=clock,
            observe_commit=self.meter.commit.observe,
            disk=disk,
            rider=self.access.write,
            on_death=self._die,
        )

    def _open_books(self, clock: Clock, entropy: Entropy) -> Admission:
        """Take over this worker's tables of money and of rates."""
        folder, boot = self._settings.feed_dir, read_boot()
        self.purse = Purse(
            folder, self._worker, loop=self._loop, clock=clock, entropy=entropy, log=self._log, boot=boot
        )
        self.rates = RateTable(folder, self._worker, boot=boot, clock=clock)
        self.meter.read_open_reservations = lambda: self.purse.open_count
        self.meter.read_links = lambda: {} if self.feed.live is None else self.feed.live.links
        return Admission(self.purse, self.rates, self.meter, clock)

    def _make_pool(self) -> UpstreamPool:
        settings = self._settings
        return UpstreamPool(
            self._loop,
            self._spawn,
            self.meter,
            settings.connect_timeout_s,
            connections_max=settings.upstreams_max,
            context=self._peer_context,
        )

    def _make_ports(self, clock: Clock) -> dict[str, Port]:
        settings = self._settings

        def make_port(handler: Handler, connections_max: int, origins: Origins | None = None) -> Port:
            limits = Limits.from_settings(settings, connections_max)
            return Port(self._loop, clock, handler, limits, self.meter.count_reject, self.bodies, origins)

        admin = AdminPort(self.feed, self.usage, self.meter, lambda: self._is_stopping, self._list_warnings)
        site_link = self._site_link = SiteLink(self.relay, self._spawn, self._log)
        tenants = TenantPort(self.relay, site_link)
        return {
            "tenant": make_port(tenants, self._files.connections_max, self.origins),
            "peer": make_port(PeerPort(self.relay, site_link), settings.upstreams_max),
            "admin": make_port(admin, ADMIN_CONNECTIONS_MAX),
        }

    async def start(self) -> None:
        """Listen on all ports; raises Unavailable naming a port that cannot be had."""
        settings = self._settings
        self.usage.start()
        self.feed.start()
        self.purse.start()
        self._look_for_others()
        self._timers.append(self._loop.call_later(SNAPSHOT_PATIENCE_S, self._note_no_snapshot))
        if self._files.shortfall:
            self._log.warning("gateway_file_limit_low", shortfall=self._files.shortfall)
        if self.tls is not None:
            self.tls.start()
        for name, host, port in (
            ("tenant", settings.listen_host, settings.port),
            ("peer", settings.listen_host, settings.peer_port),
            ("admin", settings.admin_host, settings.admin_port + self._worker),
            ("tenant-tls", settings.tls_host, settings.tls_port),
            ("peer-tls", settings.tls_host, settings.peer_tls_port),
        ):
            if port or name in self._sockets:
                self._listen(name, host, port)
        for acceptor in self._acceptors:
            acceptor.start()
        self._log.info("gateway_worker_started", port=settings.port, peer_port=settings.peer_port)

    async def stop(self) -> None:
        """Accept nothing new, finish what is in progress, write down what was used."""
        self._is_stopping = True
        for acceptor in self._acceptors:
            acceptor.close()
        if self.tls is not None:
            self.tls.stop()
        for port in self.ports.values():
            port.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                for port in self.ports.values():
                    await port.wait_empty()
        left = sum(port.connections for port in self.ports.values())
        for port in self.ports.values():
            port.abort()
        await asyncio.sleep(0)  # lets the aborted connections tell their journeys, which write down what was used
        self._pool.close()
        self.feed.stop()
        for timer in self._timers:
            timer.cancel()
        self.access.stop()
        self.usage.stop()
        self.access.close()
        self._tracing.stop()
        self._inflight.close()
        self.purse.close()
        self.rates.close()
        self._log.info("gateway_worker_stopped", connections_cut=left)

    def _listen(self, name: str, host: str, port: int) -> None:
        held = self._sockets.get(name)
        try:
            if held is not None:
                held.listen(BACKLOG)
            else:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                held = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host}:{port} (the {name} port): {error.strerror}",
                next_step="free the port or choose another in the gateway's settings",
            ) from error
        name, _, tls = name.partition("-")
        self._acceptors.append(
            Acceptor(
                held,
                self.ports[name],
                loop=self._loop,
                spawn=self._spawn,
                log=self._log,
                secured=self._secured() if tls else None,
            )
        )

    def _secured(self) -> Secured:
        assert self.tls is not None
        settings = self._settings
        return Secured(
            context=self.tls.context,
            handshake_timeout_s=settings.tls_handshake_timeout_s,
            handshakes_max=settings.tls_handshakes_max,
            shutdown_timeout_s=settings.stall_timeout_s,
            on_result=self.meter.count_handshake,
        )

    def _read_certificate(self, clock: Clock) -> "TlsIdentity | None":
        settings = self._settings
        if not (settings.tls_port or settings.peer_tls_port):
            return None
        from madang.gateway.tls import TlsIdentity  # reading certificates costs memory that few workers need

        return TlsIdentity(settings, loop=self._loop, clock=clock, log=self._log)

    def _read_peer_roots(self) -> ssl.SSLContext | None:
        """Return who vouches for peers, where a file says so: one that cannot be used is an error now, not later.

        The system's roots, which cost memory, are read when a peer is first dialled with TLS.
        """
        if self._settings.peer_ca_file is None:
            return None
        from madang.gateway.tls import peer_context

        return peer_context(self._settings.peer_ca_file)

    def _peer_context(self) -> ssl.SSLContext:
        from madang.gateway.tls import peer_context

        return self._peer_roots or peer_context(None)

    def _list_warnings(self) -> list[str]:
        found = [
            self._files.shortfall,
            self.access.failure,
            self.tls.warning() if self.tls is not None else "",
            self._links.warning(),
            self._site_link.warning(),
        ]
        return [warning for warning in found if warning]

    def _look_for_others(self) -> None:
        self._inflight.refresh()
        self.rates.refresh()
        if self.access.tick():
            self.usage.poke()
        if bool(self.access.failure) != self._is_access_failing:
            self._is_access_failing = not self._is_access_failing
            self._log.warning("gateway_access_log", is_written=not self._is_access_failing, reason=self.access.failure)
        self.meter.access_written, self.meter.access_lost = self.access.written, self.access.lost
        self._links.look()
        self.meter.connections = self.ports["tenant"].connections
        self.meter.connections_refused = self.ports["tenant"].refusals_by_reason
        self.meter.connections_max = self._files.connections_max
        self.meter.certificate_not_after_s = 0.0 if self.tls is None else self.tls.not_after_s
        self._timers = [timer for timer in self._timers if not timer.cancelled() and timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(OTHERS_PERIOD_S, self._look_for_others))

    def _die(self, error: BaseException) -> None:
        """End the program by its task group: without its log a worker could answer nothing to the end."""

        async def raise_it() -> None:
            raise error

        self._spawn(raise_it())

    def _note_no_snapshot(self) -> None:
        if not self.feed.is_ready:
            self._log.error("gateway_has_no_snapshot", folder=str(self._settings.feed_dir))


def _make_folders(settings: GatewaySettings) -> Path:
    """Make sure of the folders that a worker writes to, and return the one of access records."""
    access_dir = settings.access_dir or settings.usage_dir.parent / ACCESS_FOLDER
    for folder in (settings.feed_dir, settings.usage_dir, access_dir):
        make_private_folder(folder)
    return access_dir


def inherited_sockets(environ: Mapping[str, str]) -> dict[str, socket.socket]:
    """Return the listening sockets that the supervisor handed down.

    Raises:
        Rejected: the variable is not `name=number` pairs, or a number is no listening socket.
    """
    found: dict[str, socket.socket] = {}
    for pair in filter(None, environ.get(LISTEN_FDS, "").split(",")):
        name, _, number = pair.partition("=")
        if name not in SOCKET_NAMES or not number.isdigit():
            raise Rejected(f"environment variable {LISTEN_FDS}: expected tenant=3,peer=4, found {pair!r}")
        try:
            held = socket.socket(fileno=int(number))
        except OSError as error:
            raise Rejected(f"environment variable {LISTEN_FDS}: {pair!r} is no socket: {error.strerror}") from error
        held.setblocking(False)
        found[name] = held
    return found


async def _serve(settings: GatewaySettings, worker: int, log: EventLog, clock: Clock, files: FileBudget) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.set_exception_handler(lambda _loop, context: _note_bug(log, context))
    async with asyncio.TaskGroup() as tasks:
        gateway = GatewayWorker(
            settings,
            worker,
            clock=clock,
            entropy=SystemEntropy(),
            log=log,
            tasks=tasks,
            sockets=inherited_sockets(os.environ),
            files=files,
        )
        await gateway.start()
        calm_collector()
        await stopped.wait()
        await gateway.stop()


def _note_bug(log: EventLog, context: dict[str, Any]) -> None:
    """Say where a callback broke; its connection is closed by the loop, the others are not touched."""
    error = context.get("exception")
    where = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
    log.error("gateway_bug", message=context.get("message", ""), traceback=where[-4000:])


def main(config: Path, worker: int = 0) -> int:
    """Run one worker until SIGTERM; returns the exit code."""
    if not __debug__:
        sys.stderr.write("refusing to run under -O: assertions state invariants here\n")
        return 2
    clock = SystemClock()
    log = EventLog(clock, program="gateway", worker=worker)
    try:
        settings = load_settings(GatewaySettings, config, env_prefix="MADANG_GATEWAY_")
        log = log.bind(site_id=settings.site)
        files = raise_file_limit(settings)
        uvloop.run(_serve(settings, worker, log, clock, files))
    except MadangError as error:
        log.error("gateway_failed", reason=str(error))
        return 1
    except ExceptionGroup as group:
        expected, bugs = group.split(MadangError)
        if bugs is not None:
            raise
        log.error("gateway_failed", reason="; ".join(str(error) for error in (expected or group).exceptions))
        return 1
    return 0
