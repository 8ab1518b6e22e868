"""The power, cooling and security of the embedded sites: a site file each, for devices that the plant twin answers.

Owns those files' text and the plant's settings. Refuses to know equations and protocols. Called by
`madang.federation.bootstrap`. All of it is simulated, and every device says so.
"""

import secrets
from pathlib import Path

import msgspec

from madang.federation.layout import HOST, PLANT_PORTS, Layout, SiteLayout, node_name
from madang.runtime.files import replace_file
from madang.sim.plant.settings import PlantSettings, PlantSite
from madang.site.settings import SiteSettings

FACILITY_FILE = "facility.toml"
PLANT_FILE = "plant.toml"
SECRETS_DIR = "secrets"
_SECRET_BYTES = 18
_OFFSETS = {"meter": 0, "ups": 1, "cooling_1": 2, "cooling_2": 3, "contacts": 4, "server": 5, "pdu": 6, "host_port": 7}
"""Ports of the devices, from the site's first plant port on."""
_TITLES = {
    "daegu": "대구 의원 옆 캐비닛 (모의) / cabinet beside a clinic (simulated)",
    "gumi": "구미 공장 옆 캐비닛 (모의) / cabinet beside a factory (simulated)",
    "gwangju": "광주 시청 옆 캐비닛 (모의) / cabinet beside a city hall (simulated)",
}

_TEXT = """\
# The simulated cabinet of the embedded site {site}. Written by `madang up` on each start: changes here do not last.
# examples/site-cabinet.toml shows how a real one is written.

[site]
name = "{site}"
title = "{title}"

[equipment.utility]
kind = "utility"
voltage_v = 220
power_w = 8000

[equipment.meter]
kind = "meter"
measures = ["utility"]

[equipment.breaker]
kind = "breaker"
voltage_v = 220
current_a = 40
fed_by = ["utility"]

[equipment.ups]
kind = "ups"
voltage_v = 220
power_w = 2700
apparent_va = 3000
fed_by = ["breaker"]

[battery.ups]
energy_wh = 600
chemistry = "vrla"
rated_h = 1
efficiency = 0.92
health = 1.0

[equipment.cabinet]
kind = "rack"
power_w = 2500
contains = ["ups"]
cooled_by = ["cooling_1", "cooling_2"]

[zone.cabinet]
thermal_class = "A2"
mass_j_k = 60000
air_j_k = 16000

[equipment.cooling_1]
kind = "cooling_unit"
voltage_v = 220
power_w = 1300
cooling_w = 3500
redundancy_group = "cooling"
redundancy_needed = 1
fed_by = ["breaker"]

[equipment.cooling_2]
kind = "cooling_unit"
voltage_v = 220
power_w = 1300
cooling_w = 3500
redundancy_group = "cooling"
redundancy_needed = 1
fed_by = ["breaker"]

[equipment.pdu]
kind = "rack_pdu"
rack = "cabinet"
voltage_v = 220
current_a = 16
fed_by = ["ups"]

[equipment.switch]
kind = "switch"
rack = "cabinet"
voltage_v = 220
power_w = 60
is_critical = true
fed_by = ["pdu"]

[equipment.server]
kind = "server"
rack = "cabinet"
node = "{node}"
voltage_v = 220
power_w = 1800
fed_by = ["pdu"]

[equipment.host]
kind = "sensor"
rack = "cabinet"
measures = ["server"]

[equipment.door]
kind = "door"

[equipment.loop]
kind = "pump"
rack = "cabinet"
voltage_v = 220
power_w = 60
fed_by = ["pdu"]

[equipment.leak]
kind = "leak_detector"
measures = ["loop"]

[equipment.smoke]
kind = "smoke_detector"

[equipment.lockout]
kind = "interlock"

[device.meter]
driver = "modbus"
address = "{host}:{meter}"
profile = "meter_single_phase"
equipment = "meter"
poll_s = 1
is_simulated = true

[device.ups]
driver = "snmp"
address = "{host}:{ups}"
profile = "ups_rfc1628_single"
equipment = "ups"
secret = "ups"
options = {{ "twin.notify" = "{host}:{traps}" }}
poll_s = 2
is_simulated = true

[device.cooling_1]
driver = "modbus"
address = "{host}:{cooling_1}"
profile = "cooling_unit"
equipment = "cooling_1"
poll_s = 1
is_simulated = true

[device.cooling_2]
driver = "modbus"
address = "{host}:{cooling_2}"
profile = "cooling_unit"
equipment = "cooling_2"
poll_s = 1
is_simulated = true

[device.contacts]
driver = "modbus"
address = "{host}:{contacts}"
profile = "contacts"
equipment = "cabinet"
parts = {{ door1 = "door", leak1 = "leak", smoke1 = "smoke", interlock1 = "lockout", pump1 = "loop" }}
poll_s = 1
is_simulated = true

[device.pdu]
driver = "redfish"
address = "http://{host}:{pdu}"
profile = "rack_pdu"
equipment = "pdu"
secret = "pdu"
poll_s = 5
is_simulated = true

[device.server]
driver = "redfish"
address = "http://{host}:{server}"
profile = "bmc"
equipment = "server"
secret = "bmc"
poll_s = 2
is_simulated = true

[device.host]
driver = "prometheus"
address = "{host}:{host_port}"
profile = "node_exporter"
equipment = "host"
parts = {{ link0 = "host", nvme0 = "host" }}
options = {{ link0 = "eth0", nvme0 = "nvme0n1" }}
poll_s = 5
is_simulated = true

[actuator.cap]
kind = "cap"
mode = "armed"
point_id = "server.power_limit"
readback_id = "server.power_limit"
target = "{node}"
value_low = 982
value_high = 1800
value_rest = 1800

[actuator.isolate_loop]
kind = "isolate_liquid"
mode = "armed"
point_id = "loop.state_pump"
readback_id = "loop.state_pump"
target = "loop"
value_low = 0
value_high = 0
value_rest = 1

[[pue]]
category = 2
facility = ["meter.power"]
it = ["pdu.power"]

[contract]
tariff = "general_a1_low"
power_w = 8000
base_by = "contract"
meter = "meter.energy"
idle_w = 700
"""
_ARMED = ("{site}.shed", "{site}.spill", "{node}.cap", "{node}.state")
"""Nothing but a twin hangs on these."""


def facility_path(site: SiteLayout) -> Path:
    """Return where a site's file is."""
    return site.folder / FACILITY_FILE


def secrets_dir(site: SiteLayout) -> Path:
    """Return where the secrets of a site's devices are."""
    return site.folder / SECRETS_DIR


def render_facility(site: SiteLayout) -> str:
    """Return a site file for the devices that the plant twin answers."""
    assert site.plant_port is not None
    assert len(_OFFSETS) == PLANT_PORTS
    ports = {name: site.plant_port + offset for name, offset in _OFFSETS.items()}
    return _TEXT.format(
        site=site.name,
        title=_TITLES.get(site.name, site.name),
        node=node_name(site),
        host=HOST,
        traps=site.trap_port,
        **ports,
    )


def armed_actuators(site: SiteLayout) -> tuple[str, ...]:
    """Return the actuators that an embedded site may use without being asked: only twins hang on them."""
    return tuple(name.format(site=site.name, node=node_name(site)) for name in _ARMED)


def make_secrets() -> dict[str, str]:
    """Return new secrets of a site's devices: file name and text."""

    def word() -> str:
        return secrets.token_urlsafe(_SECRET_BYTES)

    return {
        "ups.toml": f'[words]\ncommunity = "{word()}"\n',
        "pdu.toml": f'user = "madang"\n[words]\npassword = "{word()}"\n',
        "bmc.toml": f'user = "madang"\n[words]\npassword = "{word()}"\n',
    }


def with_facility(settings: SiteSettings, site: SiteLayout) -> SiteSettings:
    """Return a site's settings with its facility; an entry has none."""
    if site.plant_port is None:
        return settings
    return msgspec.structs.replace(
        settings,
        facility_file=facility_path(site),
        facility_secrets_dir=secrets_dir(site),
        facility_armed=armed_actuators(site),
        facility_trap_host=HOST,
        facility_trap_port=site.trap_port,
    )


def write_facility(site: SiteLayout) -> None:
    """Write a site's file, and the secrets of its devices unless they are there."""
    if site.plant_port is None:
        return
    replace_file(facility_path(site), render_facility(site).encode(), mode=0o600)
    secrets_dir(site).mkdir(mode=0o700, exist_ok=True)
    for name, text in make_secrets().items():
        if not (secrets_dir(site) / name).exists():
            replace_file(secrets_dir(site) / name, text.encode(), mode=0o600)


def plant_settings(layout: Layout) -> PlantSettings:
    """Return the settings of the one process that simulates all plants."""
    return PlantSettings(
        run_dir=layout.run_dir,
        sites=tuple(
            PlantSite(
                name=site.name,
                site_file=facility_path(site),
                secrets_dir=secrets_dir(site),
                node_metrics={node_name(site): f"http://{HOST}:{site.node_port}/metrics"},
            )
            for site in layout.sites
            if site.plant_port is not None
        ),
    )
