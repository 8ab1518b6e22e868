"""The hub program: brings its database up to date, runs its parts under one roof, and stops in order.

Owns start, readiness and stop. Refuses to do any part's work. A part that dies of a bug takes the program with it,
and its supervisor starts it again: nothing goes on half dead. NATS being away is no bug; the admin API serves and
SQL takes changes meanwhile.
"""

import asyncio
import signal
import sys
from pathlib import Path

import uvloop
from fastapi import FastAPI

import madang
from madang.core import Clock, Entropy, MadangError, Unavailable
from madang.hub.api import artifacts, builds, catalog, cordons, energy, money, records, sites, tenancy
from madang.hub.claims import merge_claims
from madang.hub.desired_store import read_live_generations, replan
from madang.hub.enrolment import Enrolment, SiteGrade
from madang.hub.keys_admin import KeyExpiry, KeyLimits, KeyRequest
from madang.hub.observed import SiteState
from madang.hub.parts import HubParts, database_url, make_parts
from madang.hub.prices_admin import TariffRequest
from madang.hub.settings import HubSettings
from madang.model import CatalogEntry, Project, Service, Tenant
from madang.model.build import BuildRequest, BuildWorker
from madang.runtime.admin_http import AdminServer, make_admin_app
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.cordon_request import CordonReason
from madang.runtime.settings import load_settings
from madang.runtime.store import upgrade_schema
from madang.runtime.telemetry import EventLog

MIGRATIONS = "madang.hub:migrations"
_GAUGE_PERIOD_S = 5.0


def main(config: Path) -> int:
    """Run the hub until SIGTERM or SIGINT; return the exit code."""
    if not __debug__:
        sys.stderr.write("madang refuses to run without assertions (python -O)\n")
        return 2
    clock = SystemClock()
    log = EventLog(clock, program="hub")
    try:
        settings = load_settings(HubSettings, config, env_prefix="MADANG_HUB_")
        uvloop.run(run_hub(settings, clock, SystemEntropy(), log))
    except MadangError as error:
        log.error("hub_refused_to_start", reason=error.message, next_step=error.next_step)
        return 1
    return 0


async def run_hub(settings: HubSettings, clock: Clock, entropy: Entropy, log: EventLog) -> None:
    """Run the hub until a signal or until its task is cancelled."""
    parts = make_parts(settings, clock, entropy, log)
    try:
        await asyncio.to_thread(_prepare_database, parts)
        server = AdminServer(make_app(parts), settings.listen_host, settings.port)
        port = await server.start()
        log.info("hub_serving", port=port, database=database_url(settings).split("@")[-1], version=madang.__version__)
        try:
            await _run_parts(parts, server)
        finally:
            await server.stop()
            log.info("hub_stopped")
    finally:
        parts.store.close()


def _prepare_database(parts: HubParts) -> None:
    upgrade_schema(parts.store.engine, MIGRATIONS)
    path = parts.paths.account_jwt
    file_jwt = path.read_text().strip() if path.exists() else ""
    parts.store.write_now(lambda c: merge_claims(c, parts.seeds, file_jwt, parts.clock.wall_s()))
    parts.store.write_now(parts.observed.load)
    # A release may put more into a fact, or into fewer places, than the one whose database this is.
    parts.store.write_now(lambda c: replan(c, parts.clock.wall_s()))


async def _run_parts(parts: HubParts, server: AdminServer) -> None:
    loops = {
        "bus": parts.bus.run(),
        "system_bus": parts.system_bus.run(),
        "caller": parts.caller.run(),
        "publisher": parts.publisher.run(),
        "claims": parts.claims.run(),
        "heartbeats": parts.heartbeats.run(),
        "statuses": parts.statuses.run(),
        "ingest": parts.ingest.run(),
        "leases": parts.leases.run(),
        "gauges": _show_gauges(parts),
        "artifact_store": parts.artifacts.run_measure(),
        "audit_watch": parts.audit_watch.run(),
        "server": server.wait(),
    }
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part, name=name) for name, part in loops.items()]
        await stopping.wait()
        for task in tasks:
            task.cancel()


async def _show_gauges(parts: HubParts) -> None:
    while True:
        try:
            states = [parts.observed.state(site) for site in await parts.store.read(read_live_generations)]
        except Unavailable as error:
            parts.log.warning("sites_not_counted", reason=error.message)
        else:
            for state in SiteState:
                parts.metrics.sites.labels(state.value).set(states.count(state))
        await asyncio.sleep(_GAUGE_PERIOD_S)


def find_problems(parts: HubParts) -> list[str]:
    """Return what keeps the hub from being ready, in words."""
    nats = f"NATS server at {parts.settings.nats_host}:{parts.settings.nats_port}"
    if not parts.bus.is_connected:
        return [f"{nats} is not connected: desired state waits, usage waits at the sites"]
    parts_by_text = {
        "desired state is not published": parts.publisher.problem,
        "usage is not being taken in": parts.ingest.problem,
        f"{nats} does not hold the newest revocations": parts.claims.problem,
    }
    return [f"{text}: {reason}" for text, reason in parts_by_text.items() if reason]


def make_app(parts: HubParts) -> FastAPI:
    """Return the admin API."""
    modules = (sites, tenancy, money, energy, catalog, cordons, records, artifacts, builds)
    bodies = (Enrolment, SiteGrade, Tenant, Project, KeyRequest, KeyLimits, KeyExpiry, TariffRequest)
    return make_admin_app(
        title="Madang hub",
        version=madang.__version__,
        token_sha256=parts.settings.admin_token_sha256,
        log=parts.log,
        registry=parts.metrics.registry,
        find_problems=lambda: find_problems(parts),
        routers=[module.make_router(parts) for module in modules],
        open_routers=[artifacts.make_store_router(parts), builds.make_work_router(parts)],
        structs=(*bodies, CatalogEntry, Service, BuildRequest, BuildWorker, CordonReason),
    )
