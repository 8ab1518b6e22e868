"""The map of the embedded federation: the ports of the contract, no port twice, no way around the relay."""

import tomllib
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from madang.core import Rejected
from madang.federation.environment import choose_environment
from madang.federation.layout import (
    gateway_settings,
    hub_settings,
    make_layout,
    node_settings,
    relay_settings,
    site_settings,
)
from madang.federation.toml_text import render_toml
from madang.gateway.settings import GatewaySettings
from madang.hub.settings import HubSettings
from madang.node.settings import NodeSettings
from madang.runtime.settings import load_settings
from madang.site.settings import SiteSettings

STATE, CACHE = Path("/state"), Path("/cache")


def test_the_ports_of_the_contract():
    layout = make_layout(STATE, CACHE)
    assert layout.hub_url == "http://127.0.0.1:7700"
    assert layout.national.tenant_url == "http://127.0.0.1:7701"
    assert {site.name: (site.region, site.port) for site in layout.sites[1:]} == {
        "daegu": ("yeongnam", 7710),
        "gumi": ("yeongnam", 7720),
        "gwangju": ("honam", 7730),
    }


def test_no_port_is_used_twice_and_base_port_moves_all():
    usual, moved = make_layout(STATE, CACHE), make_layout(STATE, CACHE, 17700)
    assert {port - 7700 for port in usual.ports()} == {port - 17700 for port in moved.ports()}
    listed = [site_port for site in usual.sites for site_port in ports_of(site)] + [
        link.listen_port for link in usual.links
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) < set(usual.ports())
    assert max(usual.ports()) < 7800


def ports_of(site):
    fields = (site.port, site.admin_port, site.node_port, site.gateway_admin_port, site.peer_port)
    return [port for port in (*fields, site.nats_port, site.nats_monitor_port) if port is not None]


@pytest.mark.parametrize("port", [0, 80, 65500])
def test_a_base_port_that_does_not_fit_is_refused(port):
    with pytest.raises(Rejected, match=f"base port {port} does not fit"):
        make_layout(STATE, CACHE, port)


def test_every_way_out_of_a_site_leads_through_the_relay():
    layout = make_layout(STATE, CACHE)
    relayed = {link.listen_port for link in layout.links}
    for site in layout.sites:
        settings = site_settings(layout, site, "")
        ways = [settings.hub_leaf_url, *settings.peer_overrides.values()]
        if not site.is_entry_only:
            ways += node_settings(layout, site).artifact_stores
        assert {int(way.rpartition(":")[2]) for way in ways} <= relayed
        assert set(settings.peer_overrides) == {other.name for other in layout.sites} - {site.name}
    targets = {(link.site, link.other, link.purpose) for link in layout.links}
    assert len(targets) == len(layout.links) == 4 * 2 + 4 * 3
    ports = sorted(relayed)
    assert all(after == before + 1 for before, after in pairwise(ports))


def test_settings_survive_their_files(tmp_path):
    layout = make_layout(tmp_path, CACHE)
    daegu = layout.sites[1]
    for kind, value in (
        (HubSettings, hub_settings(layout, "ab" * 32)),
        (SiteSettings, site_settings(layout, daegu, "cd" * 32)),
        (NodeSettings, node_settings(layout, daegu)),
        (GatewaySettings, gateway_settings(daegu)),
        (type(relay_settings(layout)), relay_settings(layout)),
    ):
        path = tmp_path / "settings.toml"
        path.write_text(render_toml(value, "written by a test"))
        assert load_settings(kind, path, env_prefix="MADANG_TEST_", environ={}) == value


def test_awkward_values_survive_toml():
    class Odd(msgspec.Struct):
        text: str
        empty: tuple[str, ...]
        mapping: dict[str, str]
        number: float
        nothing: int | None = None

    odd = Odd(text='한글 "quoted" \\ \n\t\x7f', empty=(), mapping={"a.b": 'x"', "": "y"}, number=1e-7)
    found = tomllib.loads(render_toml(odd, "several\nlines"))
    assert found == {"text": odd.text, "empty": [], "mapping": odd.mapping, "number": odd.number}


def test_a_setting_may_come_from_the_environment_unless_the_map_decides_it():
    taken = [
        "MADANG_STATE",
        "MADANG_HUB_URL",
        "MADANG_ADMIN_TOKEN",
        "MADANG_HUB_PORT",
        "MADANG_SITE_NAME",
        "MADANG_SITE_REGION",
        "MADANG_SITE_PEER_OVERRIDES",
        "MADANG_NODE_TOKEN_FILE",
        "MADANG_GATEWAY_PORT",
        "MADANG_HUB_ADMIN_TOKEN_SHA256",
        "MADANG_SITE_ADMIN_TOKEN_SHA256",
        "MADANG_RELAY_LINKS",
        "MADANG_SITE_IS_ENTRY_ONLY",
    ]
    passed = ["PATH", "MADANG_NODE_ENGINE_THREADS", "MADANG_GATEWAY_IDLE_TIMEOUT_S", "MADANG_HUB_DATABASE_URL"]
    found = choose_environment(dict.fromkeys([*taken, *passed], "1"), make_layout(STATE, CACHE))
    assert sorted(found) == sorted(passed)
