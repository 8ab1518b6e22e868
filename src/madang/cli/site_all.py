"""`madang site run --all` and `madang site add`: a whole site on one machine under one supervisor.

Owns the composition. Refuses to know the programs: `madang.federation.programs` plans them, for embedded sites as
for real ones.
"""

import asyncio
from pathlib import Path

from madang.cli.programs import check_folder
from madang.core import Unavailable
from madang.federation.enrolment import enrol_site
from madang.federation.programs import SitePrograms, plan_site_programs
from madang.gateway.settings import GatewaySettings
from madang.node.bootstrap import prepare_node
from madang.node.settings import NodeSettings
from madang.runtime.admin_client import AdminClient
from madang.runtime.clock import SystemClock
from madang.runtime.leftovers import end_processes, find_leftovers, read_record
from madang.runtime.nats import nats_server_path
from madang.runtime.settings import load_settings
from madang.runtime.supervisor import Supervisor
from madang.runtime.telemetry import EventLog
from madang.site.bootstrap import prepare_site
from madang.site.settings import SiteSettings

_TERM_WAIT_S = 6.0


def run_all(config_dir: Path) -> int:
    """Run every program of a site until SIGTERM; return the exit status."""
    folder = check_folder(config_dir)
    programs = _read(folder)
    if programs.node is not None:
        prepare_node(programs.node)
    run_dir = programs.site.state_dir / "run"
    for path in (run_dir, programs.log_dir):
        _make_folder(path)
    record_path, marker = run_dir / "processes.json", str(run_dir)
    leftovers = find_leftovers(read_record(record_path), marker, is_detached_kept=True)
    if end_processes(leftovers, term_wait_s=_TERM_WAIT_S):
        raise Unavailable("processes of an earlier run do not end", next_step="look at them with: ps -ef")
    clock = SystemClock()
    supervisor = Supervisor(
        plan_site_programs(programs),
        record_path=record_path,
        marker=marker,
        clock=clock,
        log=EventLog(clock, program="supervisor", site=programs.site.name),
    )
    supervisor.open_listeners()
    asyncio.run(supervisor.run())
    return 0


def _read(folder: Path) -> SitePrograms:
    site = load_settings(SiteSettings, folder / "site.toml", env_prefix="MADANG_SITE_")
    gateway = load_settings(GatewaySettings, folder / "gateway.toml", env_prefix="MADANG_GATEWAY_")
    has_node = (folder / "node.toml").exists()
    node = load_settings(NodeSettings, folder / "node.toml", env_prefix="MADANG_NODE_") if has_node else None
    return SitePrograms(
        config_dir=folder,
        log_dir=site.state_dir / "logs",
        site=site,
        gateway=gateway,
        node=node,
        nats_server=nats_server_path(),
        nats_config=prepare_site(site).nats_config,
    )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot make the folder {path}: {error.strerror}") from error


def enrol(config_dir: Path, hub: AdminClient) -> SiteSettings:
    """Enrol the site whose settings are in a folder and install the credentials that the hub answers with."""
    settings = load_settings(SiteSettings, check_folder(config_dir) / "site.toml", env_prefix="MADANG_SITE_")
    enrol_site(settings, hub)
    return settings
