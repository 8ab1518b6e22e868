"""Where everything of the embedded federation is: ports, folders, links between sites, settings of each program.

Owns that map, computed from a state folder and a base port. Refuses to touch the disk or a socket: all of it is
values. Called by the bootstrap, by `madang up`, `down` and `status`, and by tests.
"""

from pathlib import Path

import msgspec

from madang.core import Rejected, SiteId
from madang.federation.relay_settings import HUB, RelayLink, RelaySettings
from madang.gateway.settings import GatewaySettings
from madang.hub.settings import HubSettings
from madang.node.settings import NodeSettings
from madang.site.settings import NodeLink, SiteSettings
from madang.wire.site_leg import GATEWAY_TOKEN_FILE

HOST = "127.0.0.1"
BASE_PORT = 7700
NATIONAL = SiteId("national")
NATION = "kr"
_REGIONS = {"daegu": "yeongnam", "gumi": "yeongnam", "gwangju": "honam"}
_RELAY_OFFSET = 40
_PLANT_OFFSET = 60
PLANT_PORTS = 8
"""Simulated devices of a site."""
_TRAP_OFFSET = 9
"""From a site's first plant port to where it hears notifications of its simulated devices."""
_PORTS_MAX = 100
"""Ports that a federation may use from its base port on; two of them side by side are this far apart."""


class SiteLayout(msgspec.Struct, frozen=True, kw_only=True):
    """One site, or the national entry, which has no node.

    Attributes:
        port: the tenants' API.
        node_port: its node's admin API; None without a node.
        plant_port: the first port of its simulated devices; None without any.
    """

    name: SiteId
    region: str
    folder: Path
    port: int
    admin_port: int
    gateway_admin_port: int
    peer_port: int
    nats_port: int
    nats_monitor_port: int
    node_port: int | None = None
    plant_port: int | None = None

    @property
    def trap_port(self) -> int:
        """Where the site hears notifications of its simulated devices (UDP); 0 without any."""
        return 0 if self.plant_port is None else self.plant_port + _TRAP_OFFSET

    @property
    def is_entry_only(self) -> bool:
        """Whether it has no chips."""
        return self.node_port is None

    @property
    def tenant_url(self) -> str:
        """Where tenants reach it."""
        return f"http://{HOST}:{self.port}"

    @property
    def peer_url(self) -> str:
        """Where other gateways reach it, before the relay."""
        return f"http://{HOST}:{self.peer_port}"

    @property
    def admin_url(self) -> str:
        """Where its admin API is."""
        return f"http://{HOST}:{self.admin_port}"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The whole embedded federation."""

    state_dir: Path
    cache_dir: Path
    base_port: int
    sites: tuple[SiteLayout, ...]
    links: tuple[RelayLink, ...]

    @property
    def hub_url(self) -> str:
        """Where the hub's admin API is."""
        return f"http://{HOST}:{self.base_port}"

    @property
    def hub_dir(self) -> Path:
        """The hub's own folder."""
        return self.state_dir / "hub"

    @property
    def run_dir(self) -> Path:
        """What lives only while the federation runs, and the WAN's state."""
        return self.state_dir / "run"

    @property
    def log_dir(self) -> Path:
        """Log files of all programs."""
        return self.state_dir / "logs"

    @property
    def credentials_path(self) -> Path:
        """URLs, tokens and keys for people and programs outside."""
        return self.state_dir / "credentials.json"

    @property
    def record_path(self) -> Path:
        """The supervisor's record of its children."""
        return self.run_dir / "processes.json"

    @property
    def national(self) -> SiteLayout:
        """The national entry."""
        return self.sites[0]

    def link_url(self, site: str, other: str, purpose: str) -> str:
        """Return the relay's URL for the way from `site` to `other`."""
        for link in self.links:
            if (link.site, link.other, link.purpose) == (site, other, purpose):
                return f"http://{HOST}:{link.listen_port}"
        raise AssertionError(f"no link {site} to {other} for {purpose}")

    def ports(self) -> dict[int, str]:
        """Return every port that is listened on, and what for."""
        base = self.base_port
        found = {base: "the hub", base + 3: "the hub's NATS server", base + 4: "the hub's NATS leaf port"}
        found[base + 5] = "the hub's NATS monitor"
        for site in self.sites:
            found |= {
                site.port: f"the tenants' API of {site.name}",
                site.admin_port: f"the admin API of {site.name}",
                site.gateway_admin_port: f"the gateway of {site.name}",
                site.peer_port: f"the peer port of {site.name}",
                site.nats_port: f"the NATS server of {site.name}",
                site.nats_monitor_port: f"the NATS monitor of {site.name}",
            }
            if site.node_port is not None:
                found[site.node_port] = f"the node of {site.name}"
            if site.plant_port is not None:
                devices = range(site.plant_port, site.plant_port + PLANT_PORTS)
                found |= {port: f"a simulated device of {site.name}" for port in devices}
                found[site.trap_port] = f"the notifications of {site.name}'s simulated devices"
        found |= {link.listen_port: f"the relay from {link.site} to {link.other}" for link in self.links}
        return found


def make_layout(state_dir: Path, cache_dir: Path, base_port: int = BASE_PORT) -> Layout:
    """Return the map; raises Rejected when the ports would not fit.

    Args:
        state_dir: an absolute path.
        cache_dir: content-addressed artifacts.
        base_port: the hub's port; all others follow.
    """
    if not 1024 <= base_port <= 65535 - _PORTS_MAX:
        raise Rejected(
            f"base port {base_port} does not fit: expected 1024 to {65535 - _PORTS_MAX}",
            next_step=f"choose another --base-port; the usual one is {BASE_PORT}",
        )
    national = SiteLayout(
        name=NATIONAL,
        region="national",
        folder=state_dir / NATIONAL,
        port=base_port + 1,
        admin_port=base_port + 2,
        gateway_admin_port=base_port + 9,
        peer_port=base_port + 8,
        nats_port=base_port + 6,
        nats_monitor_port=base_port + 7,
    )
    boxes = (
        _make_site(SiteId(name), region, state_dir, base_port, index)
        for index, (name, region) in enumerate(_REGIONS.items())
    )
    sites = (national, *boxes)
    return Layout(
        state_dir=state_dir,
        cache_dir=cache_dir,
        base_port=base_port,
        sites=sites,
        links=_make_links(sites, base_port),
    )


def _make_site(name: SiteId, region: str, state_dir: Path, base_port: int, index: int) -> SiteLayout:
    port = base_port + 10 * (index + 1)
    return SiteLayout(
        name=name,
        region=region,
        folder=state_dir / "sites" / name,
        port=port,
        admin_port=port + 1,
        node_port=port + 2,
        gateway_admin_port=port + 3,
        peer_port=port + 4,
        nats_port=port + 5,
        nats_monitor_port=port + 6,
        plant_port=base_port + _PLANT_OFFSET + 10 * index,
    )


def _make_links(sites: tuple[SiteLayout, ...], base_port: int) -> tuple[RelayLink, ...]:
    """Return every way between two sites, and from a site to the hub; each has a port of its own."""
    ways: list[tuple[str, str, str, int]] = []
    for site in sites:
        ways.append((site.name, HUB, "leaf", base_port + 4))
        ways.append((site.name, HUB, "http", base_port))
    ways += [(site.name, other.name, "peer", other.peer_port) for site in sites for other in sites if site is not other]
    return tuple(
        RelayLink(
            site=site,
            other=other,
            purpose=purpose,
            listen_port=base_port + _RELAY_OFFSET + index,
            target_port=target_port,
        )
        for index, (site, other, purpose, target_port) in enumerate(ways)
    )


def hub_settings(layout: Layout, admin_token_sha256: str) -> HubSettings:
    """Return the hub's settings."""
    return HubSettings(
        state_dir=layout.hub_dir,
        listen_host=HOST,
        port=layout.base_port,
        admin_token_sha256=admin_token_sha256,
        artifact_dir=layout.cache_dir,
        nats_host=HOST,
        nats_port=layout.base_port + 3,
        nats_leaf_port=layout.base_port + 4,
        nats_monitor_port=layout.base_port + 5,
    )


def site_settings(layout: Layout, site: SiteLayout, admin_token_sha256: str) -> SiteSettings:
    """Return the settings of a site process; every way out of the site leads through the relay."""
    nodes: tuple[NodeLink, ...] = ()
    if site.node_port is not None:
        node_url = f"http://{HOST}:{site.node_port}"
        nodes = (NodeLink(name=node_name(site), url=node_url, token_file=token_file(site)),)
    return SiteSettings(
        name=site.name,
        region=site.region,
        nation=NATION,
        state_dir=site.folder,
        listen_host=HOST,
        port=site.admin_port,
        admin_token_sha256=admin_token_sha256,
        nats_host=HOST,
        nats_port=site.nats_port,
        nats_monitor_port=site.nats_monitor_port,
        hub_leaf_url=layout.link_url(site.name, HUB, "leaf").replace("http://", "nats://"),
        tenant_url=site.tenant_url,
        peer_url=site.peer_url,
        is_entry_only=site.is_entry_only,
        peer_overrides={
            other.name: layout.link_url(site.name, other.name, "peer") for other in layout.sites if other is not site
        },
        nodes=nodes,
        feed_dir=site.folder / "feed",
        usage_dir=site.folder / "usage",
        own_gateway_url="" if site.is_entry_only else site.peer_url,
    )


def gateway_settings(site: SiteLayout) -> GatewaySettings:
    """Return the settings of a site's gateway."""
    return GatewaySettings(
        site=site.name,
        feed_dir=site.folder / "feed",
        usage_dir=site.folder / "usage",
        listen_host=HOST,
        port=site.port,
        peer_port=site.peer_port,
        admin_port=site.gateway_admin_port,
        workers=1,
        site_api_url=site.admin_url,
        site_api_token_file=site.folder / GATEWAY_TOKEN_FILE,
    )


def node_settings(layout: Layout, site: SiteLayout) -> NodeSettings:
    """Return the settings of the one node of a site that has chips."""
    assert site.node_port is not None
    return NodeSettings(
        name=node_name(site),
        site=site.name,
        state_dir=site.folder / "node",
        listen_host=HOST,
        port=site.node_port,
        token_file=token_file(site),
        cache_dir=layout.cache_dir,
        artifact_stores=(layout.link_url(site.name, HUB, "http"),),
    )


def relay_settings(layout: Layout) -> RelaySettings:
    """Return the settings of the relay that stands for the WAN."""
    return RelaySettings(host=HOST, run_dir=layout.run_dir, links=layout.links)


def node_name(site: SiteLayout) -> str:
    """Return the name of a site's only node."""
    return f"{site.name}-1"


def token_file(site: SiteLayout) -> Path:
    """Return the file with the token that a site's node asks for."""
    return site.folder / "node" / "token"


def folders(layout: Layout) -> tuple[Path, ...]:
    """Return the folders that must exist before any program starts, parents first."""
    found = [layout.state_dir, layout.run_dir, layout.log_dir, layout.hub_dir, layout.state_dir / "sites"]
    for site in layout.sites:
        found += [site.folder, site.folder / "feed", site.folder / "usage"]
        if not site.is_entry_only:
            found.append(site.folder / "node")
    return tuple(found)
