"""The site program: brings its database up to date, runs its parts under one roof, and stops in order.

Owns start, upkeep and stop. Refuses to do any part's work. A part that dies of a bug takes the program with it, and
its supervisor starts it again: nothing goes on half dead. The hub, NATS and nodes being away is no bug.
"""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

import madang
from madang.core import Clock, Entropy, MadangError, Unavailable, s_to_ns
from madang.runtime.admin_http import AdminServer, make_admin_app
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.collector import calm_collector
from madang.runtime.cordon_request import CordonReason
from madang.runtime.files import read_secret
from madang.runtime.settings import load_settings
from madang.runtime.store import upgrade_schema
from madang.runtime.telemetry import EventLog
from madang.site.api import find_problems, make_router
from madang.site.bootstrap import gateway_token_file, prepare_site
from madang.site.cordons import load_cordons
from madang.site.desired import read_desired, read_meta, write_meta
from madang.site.feed import remove_leftovers
from madang.site.internal import Doors, make_internal_app
from madang.site.nodes import read_nodes
from madang.site.outbox import prune_totals
from madang.site.parts import SiteParts, make_parts
from madang.site.settings import SiteSettings

MIGRATIONS = "madang.site:migrations"
UPKEEP_PERIOD_S = 10.0
"""How often the last contact with the hub is stored: the age shown after a restart is right to this."""
TICK_S = 1.0
"""How often the link is looked at, and a database that cannot be written is tried when nobody else writes."""
_CONTACT = "hub_contact_wall_s"


def main(config: Path) -> int:
    """Run the site process until SIGTERM or SIGINT; return the exit code."""
    if not __debug__:
        sys.stderr.write("madang refuses to run without assertions (python -O)\n")
        return 2
    clock = SystemClock()
    log = EventLog(clock, program="site")
    try:
        settings = load_settings(SiteSettings, config, env_prefix="MADANG_SITE_")
        log = log.bind(site_id=settings.name)
        uvloop.run(run_site(settings, clock, SystemEntropy(), log))
    except MadangError as error:
        log.error("site_refused_to_start", reason=error.message, next_step=error.next_step)
        return 1
    return 0


async def run_site(settings: SiteSettings, clock: Clock, entropy: Entropy, log: EventLog) -> None:
    """Run the site process until a signal or until its task is cancelled."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await asyncio.to_thread(prepare_site, settings, entropy)
    await asyncio.to_thread(remove_leftovers, settings.feed_dir)
    parts = make_parts(settings, clock, entropy, log)
    try:
        await asyncio.to_thread(_prepare_database, parts)
        await parts.importer.load()
        await parts.access.load()
        await parts.replicas.load()
        await parts.tenant_data.prepare()
        await parts.leases.keeper.load()
        if parts.facility is not None:
            await parts.facility.load()
        server = AdminServer(Doors(make_app(parts), make_internal(parts)), settings.listen_host, settings.port)
        port = await server.start()
        log.info("site_serving", port=port, boot_id=parts.boot_id, version=madang.__version__)
        calm_collector()
        try:
            await _run_parts(parts, server, stopping)
        finally:
            await server.stop()
            log.info("site_stopped")
    finally:
        for client in parts.clients.values():
            await client.close()
        await parts.tenant_data.close()
        if parts.facility is not None:
            await parts.facility.close()
        parts.leases.keeper.close()
        parts.database.close()


def _prepare_database(parts: SiteParts) -> None:
    upgrade_schema(parts.database.engine, MIGRATIONS)

    def load(connection: sa.Connection) -> None:
        parts.view.take(read_desired(connection))
        parts.book.load(read_nodes(connection))
        load_cordons(connection, parts.book)
        text = read_meta(connection, _CONTACT)
        parts.link.contact_wall_s = float(text) if text else None
        prune_totals(connection, parts.clock.wall_s())

    parts.database.write_now(load)


def list_loops(parts: SiteParts) -> dict[str, Coroutine[Any, Any, None]]:
    """Return every loop of the program by name; all of them run until cancelled."""
    settings = parts.settings
    loops = {
        "bus": parts.bus.run(),
        "pulls": parts.agent.run_pulls(),
        "commands": parts.agent.run_commands(),
        "importer": parts.importer.run(),
        "forwarder": parts.forwarder.run(),
        "access_archive": parts.access.run(),
        "receipts_prune": parts.receipts.run_prune(),
        "snapshot": parts.feed.run_snapshot(),
        "live": parts.feed.run_live(),
        "digests": parts.peers.run_digests(settings.digest_period_s),
        "digest_listener": parts.peers.run_listener(),
        "sweep": parts.peers.run_sweep(),
        "round_trips": parts.peers.round_trips.run(),
        "heartbeats": parts.pulse.run_heartbeats(settings.heartbeat_period_s),
        "status": parts.pulse.run_status(),
        "planner": parts.planner.run(),
        "replan": _replan_on_change(parts),
        "upkeep": _keep_up(parts),
        "artifacts": parts.artifacts.run(),
        "audit_watch": parts.audit_watch.run(),
        **parts.tenant_data.loops(),
        **parts.leases.loops(),
    }
    if parts.facility is not None:
        loops.update(parts.facility.loops())
    for name, client in parts.clients.items():
        loops[f"observe_{name}"] = client.run_observe()
        loops[f"plan_{name}"] = client.run_plans()
    return loops


async def _run_parts(parts: SiteParts, server: AdminServer, stopping: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part, name=name) for name, part in list_loops(parts).items()]
        tasks.append(group.create_task(server.wait(), name="admin_http"))
        await stopping.wait()
        for task in tasks:
            task.cancel()


async def _replan_on_change(parts: SiteParts) -> None:
    """Wake the planner, and whoever else follows the nodes, when desired state changes."""
    seen = parts.desired_changed.level
    while True:
        seen = await parts.desired_changed.wait(seen)
        parts.book.changed.rise()


async def _keep_up(parts: SiteParts) -> None:
    """Notice a lost link, store the last contact, and try a database that could not be written."""
    clock, store, link = parts.clock, parts.store, parts.link
    stored_s: float | None = link.contact_wall_s
    due_ns = 0
    while True:
        await asyncio.sleep(TICK_S)
        link.check()
        contact_s, now_ns = link.contact_wall_s, clock.monotonic_ns()
        is_due = contact_s != stored_s and now_ns >= due_ns
        if not is_due and not store.trouble:
            continue
        due_ns = now_ns + s_to_ns(UPKEEP_PERIOD_S)
        text = "" if contact_s is None else f"{contact_s:.3f}"
        # Unavailable: the guarded store has said so; this is tried again at the next tick.
        with contextlib.suppress(Unavailable):
            await store.write(partial(_write_upkeep, text=text, now_s=clock.wall_s()))
            stored_s = contact_s


def _write_upkeep(connection: sa.Connection, *, text: str, now_s: float) -> None:
    write_meta(connection, _CONTACT, text)
    prune_totals(connection, now_s)


def make_app(parts: SiteParts) -> FastAPI:
    """Return the admin API."""
    return make_admin_app(
        title=f"Madang site {parts.settings.name}",
        version=madang.__version__,
        token_sha256=parts.settings.admin_token_sha256,
        log=parts.log,
        registry=parts.registry,
        find_problems=lambda: find_problems(parts),
        structs=(CordonReason,),
        routers=[make_router(parts)],
    )


def make_internal(parts: SiteParts) -> ASGIApp:
    """Return what the site's own gateway asks, on behalf of tenants."""
    routes = [*parts.tenant_data.routes(), *parts.receipt_api.routes()]
    return make_internal_app(routes, read_secret(gateway_token_file(parts.settings)), parts.log)
