"""Which processes make up a site, and which the embedded federation, as specifications for a supervisor.

Owns argument lists, names, ranks and gates. Refuses to start anything. `plan_site_programs` is the same for a real
site (`madang site run --all`) and for the embedded ones.
"""

import sys
from pathlib import Path

import msgspec

from madang.federation.layout import HOST, Layout, SiteLayout, gateway_settings, node_settings, site_settings
from madang.federation.plant import PLANT_FILE
from madang.gateway.settings import GatewaySettings
from madang.node.settings import NodeSettings
from madang.runtime.supervision import ListenSpec, ProcessSpec
from madang.site.bootstrap import creds_file
from madang.site.settings import SiteSettings

_RANK_RELAY, _RANK_HUB_NATS, _RANK_HUB, _RANK_NATS, _RANK_NODE, _RANK_SITE, _RANK_GATEWAY = range(7)
# Stopped from the last to the first: answers end before what carries their usage does.


class SitePrograms(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one site follow from.

    Attributes:
        config_dir: holds `site.toml`, `gateway.toml` and, for a site with a node, `node.toml`.
        log_dir: where log files go.
        site, gateway, node: what those files say; no node for an entry.
        nats_server: the program.
        nats_config: its configuration.
    """

    config_dir: Path
    log_dir: Path
    site: SiteSettings
    gateway: GatewaySettings
    node: NodeSettings | None
    nats_server: Path
    nats_config: Path


def plan_site_programs(facts: SitePrograms) -> tuple[ProcessSpec, ...]:
    """Return the processes of one site: NATS server, site, node if it has one, and gateway workers."""
    site, node = facts.site, facts.node

    def spec(part: str, argv: tuple[str, ...], rank: int, host: str, port: int) -> ProcessSpec:
        name = f"{site.name}-{part}"
        return ProcessSpec(
            name=name,
            argv=argv,
            cwd=site.state_dir,
            log_path=facts.log_dir / f"{name}.log",
            rank=rank,
            ready_url=f"http://{host}:{port}/healthz",
        )

    nats_argv = (str(facts.nats_server), "-c", str(facts.nats_config))
    nats = spec("nats", nats_argv, _RANK_NATS, site.nats_host, site.nats_monitor_port)
    site_argv = module_argv("madang.site", facts.config_dir / "site.toml")
    specs = [
        msgspec.structs.replace(nats, needs_files=(creds_file(site),)),
        spec("site", site_argv, _RANK_SITE, site.listen_host, site.port),
    ]
    if node is not None:
        node_argv = module_argv("madang.node", facts.config_dir / "node.toml")
        specs.append(spec("node", node_argv, _RANK_NODE, node.listen_host, node.port))
    gateway = facts.gateway
    listeners = _listeners(gateway)
    for worker in range(gateway.workers):
        part = "gateway" if gateway.workers == 1 else f"gateway{worker}"
        argv = (*module_argv("madang.gateway", facts.config_dir / "gateway.toml"), "--worker", str(worker))
        one = spec(part, argv, _RANK_GATEWAY, gateway.listen_host, gateway.admin_port + worker)
        specs.append(msgspec.structs.replace(one, listeners=listeners))
    return tuple(specs)


def _listeners(gateway: GatewaySettings) -> tuple[ListenSpec, ...]:
    every = (
        ("tenant", gateway.listen_host, gateway.port),
        ("peer", gateway.listen_host, gateway.peer_port),
        ("tenant-tls", gateway.tls_host, gateway.tls_port),
        ("peer-tls", gateway.tls_host, gateway.peer_tls_port),
    )
    return tuple(ListenSpec(name=name, host=host, port=port) for name, host, port in every if port)


def plan_federation_programs(
    layout: Layout, *, nats_server: Path, hub_nats_config: Path, site_nats_configs: dict[str, Path]
) -> tuple[ProcessSpec, ...]:
    """Return every process of the embedded federation.

    Args:
        layout: the map.
        nats_server: the program.
        hub_nats_config: configuration of the hub's NATS server.
        site_nats_configs: the same of each site, by name.
    """
    relay = ProcessSpec(
        name="relay",
        argv=module_argv("madang.federation.relay", layout.state_dir / "relay.toml"),
        cwd=layout.run_dir,
        log_path=layout.log_dir / "relay.log",
        rank=_RANK_RELAY,
    )
    plant = ProcessSpec(
        name="plant",
        argv=module_argv("madang.sim.plant", layout.state_dir / PLANT_FILE),
        cwd=layout.run_dir,
        log_path=layout.log_dir / "plant.log",
        rank=_RANK_RELAY,
    )
    hub_nats = ProcessSpec(
        name="hub-nats",
        argv=(str(nats_server), "-c", str(hub_nats_config)),
        cwd=layout.hub_dir,
        log_path=layout.log_dir / "hub-nats.log",
        rank=_RANK_HUB_NATS,
        ready_url=f"http://{HOST}:{layout.base_port + 5}/healthz",
    )
    hub = ProcessSpec(
        name="hub",
        argv=module_argv("madang.hub", layout.hub_dir / "hub.toml"),
        cwd=layout.hub_dir,
        log_path=layout.log_dir / "hub.log",
        rank=_RANK_HUB,
        ready_url=f"{layout.hub_url}/healthz",
        depends_on=("hub-nats",),
    )
    sites = (
        spec
        for site in layout.sites
        for spec in plan_site_programs(_embedded(layout, site, nats_server, site_nats_configs[site.name]))
    )
    return (relay, plant, hub_nats, hub, *sites)


def _embedded(layout: Layout, site: SiteLayout, nats_server: Path, nats_config: Path) -> SitePrograms:
    return SitePrograms(
        config_dir=site.folder,
        log_dir=layout.log_dir,
        site=site_settings(layout, site, ""),
        gateway=gateway_settings(site),
        node=None if site.is_entry_only else node_settings(layout, site),
        nats_server=nats_server,
        nats_config=nats_config,
    )


def module_argv(module: str, config: Path) -> tuple[str, ...]:
    """Return the argument list that runs one of our modules with a settings file."""
    # -P: a file that happens to lie in the working folder never shadows a module.
    return (sys.executable, "-P", "-m", module, "--config", str(config))
