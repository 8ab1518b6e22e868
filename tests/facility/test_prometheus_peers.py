"""A real node_exporter says what the kernel does; Prometheus' own parser reads the twin, and judges ours."""

import asyncio
import os
import re
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import Counter, Gauge
from prometheus_client.openmetrics.exposition import generate_latest as generate_open_metrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from tests.facility.redfish_parts import LiveTwin, device_of, driver_on, find_tool, read, running
from tests.facility.test_prometheus import HOST, HOST_OPTIONS, HOST_PARTS

from madang.facility.prometheus.exposition import OPEN_METRICS, parse
from madang.model import Quality
from madang.runtime.clock import SystemClock
from madang.testing.facility_contract import HANG_S
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
PEERS = Path(os.environ.get("MADANG_PEERS", Path.home() / ".cache" / "madang" / "peers"))
NET = Path("/sys/class/net")
TEXT = "text/plain; version=0.0.4"
# What Debian's nvme_metrics.sh and smartmon.sh write, by their own text.
NVME = """\
# HELP nvme_available_spare_ratio SMART metric available_spare_ratio
# TYPE nvme_available_spare_ratio gauge
nvme_available_spare_ratio{device="nvme0n1"} 0.09
# HELP nvme_critical_warning_total SMART metric critical_warning_total
# TYPE nvme_critical_warning_total gauge
nvme_critical_warning_total{device="nvme0n1"} 5
# HELP nvme_media_errors_total SMART metric media_errors_total
# TYPE nvme_media_errors_total gauge
nvme_media_errors_total{device="nvme0n1"} 3
# HELP nvme_percentage_used_ratio SMART metric percentage_used_ratio
# TYPE nvme_percentage_used_ratio gauge
nvme_percentage_used_ratio{device="nvme0n1"} 1.04
# HELP nvme_temperature_celsius SMART metric temperature_celsius
# TYPE nvme_temperature_celsius gauge
nvme_temperature_celsius{device="nvme0n1"} 41
"""
SMARTMON = """\
# HELP smartmon_device_smart_healthy SMART metric device_smart_healthy
# TYPE smartmon_device_smart_healthy gauge
smartmon_device_smart_healthy{disk="/dev/sda",type="sat"} 0
# HELP smartmon_reallocated_sector_ct_raw_value SMART metric reallocated_sector_ct_raw_value
# TYPE smartmon_reallocated_sector_ct_raw_value gauge
smartmon_reallocated_sector_ct_raw_value{disk="/dev/sda",type="sat",smart_id="5"} 8.000000e+00
# HELP smartmon_temperature_celsius_raw_value SMART metric temperature_celsius_raw_value
# TYPE smartmon_temperature_celsius_raw_value gauge
smartmon_temperature_celsius_raw_value{disk="/dev/sda",type="sat",smart_id="194"} 3.300000e+01
"""


def play(scene):
    async def run():
        async with asyncio.timeout(1.5 * HANG_S):
            await scene()

    asyncio.run(run())


def find_exporter():
    # scripts/make-facility-peers unpacks it among the peers, where nothing starts it.
    unpacked = PEERS / "system" / "usr" / "bin" / "prometheus-node-exporter"
    return unpacked if unpacked.exists() else find_tool("prometheus-node-exporter")


def exporter(port, folder):
    program = find_exporter()
    return running(
        program, f"--web.listen-address=127.0.0.1:{port}", f"--collector.textfile.directory={folder}", port=port
    )


def links():
    """Return a link with a carrier, if there is one, and one that nobody has switched on."""
    found = {}
    for name in sorted(path.name for path in NET.iterdir() if path.name != "lo"):
        flags = int((NET / name / "flags").read_text(), 16)
        if flags & 1 and (NET / name / "carrier").read_text().strip() == "1":
            found.setdefault("link0", name)
        elif not flags & 1:
            found.setdefault("link1", name)
    return found


def test_a_real_node_exporter_says_what_the_kernel_says(tmp_path):
    (tmp_path / "nvme.prom").write_text(NVME)
    (tmp_path / "smartmon.prom").write_text(SMARTMON)
    named = {"data": "/", "nvme0": "nvme0n1", "disk0": "/dev/sda", **links()}
    options = {**named, "nvme_file": str(tmp_path / "nvme.prom"), "smartmon_file": str(tmp_path / "smartmon.prom")}
    port = free_port()
    device = device_of(
        "prometheus",
        "node_exporter",
        address=f"127.0.0.1:{port}",
        parts=dict.fromkeys((*named, "ecc", "hwmon"), "unit1"),
        options={**options, "hwmon": "no_such_chip"},
    )

    async def scene():
        async with exporter(port, tmp_path), driver_on(device, clock=SystemClock()) as driver:
            before = how_full("/")
            samples = {name.removeprefix("unit1."): one for name, one in (await read(driver)).items()}
            check_disks(samples)
            check_files(samples, sorted((before, how_full("/"))))
            check_host(samples)
            check_links(samples, named)
            os.utime(tmp_path / "nvme.prom", (time.time() - 4000, time.time() - 4000))
            async with asyncio.timeout(HANG_S):
                while (sample := (await read(driver))["unit1.health_nvme_0"]).quality is not Quality.STALE:  # noqa: ASYNC110  a file has no event
                    await asyncio.sleep(0.1)
            assert "link0" in named or "link1" in named or pytest.skip("this machine has no link to compare with")
            assert re.fullmatch(r"it is of \d+ s ago", sample.reason)

    play(scene)


def how_full(path):
    disk = os.statvfs(path)
    return 100.0 * (1.0 - disk.f_bavail / disk.f_blocks)


def check_files(samples, bounds):
    is_read_only = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
    for name in ("root", "data"):
        # Others write to this disk meanwhile.
        assert bounds[0] - 0.1 <= samples[f"level_{name}"].value <= bounds[1] + 0.1
        assert samples[f"alarm_read_only_{name}"].value == float(is_read_only)
        assert samples[f"alarm_lost_{name}"].text == "clear"


def check_host(samples):
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, whole = (int(memory[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    assert samples["load_memory"].value == pytest.approx(100.0 * (1.0 - free / whole), abs=10.0)
    assert samples["duration_up"].value == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=90.0)
    assert samples["state_clock"].text in ("synchronised", "unsynchronised")
    assert samples["duration_clock_error"].quality is Quality.GOOD
    assert samples["temperature_chip"].reason == 'the exporter has no node_hwmon_temp_celsius{chip="no_such_chip"}'


def check_links(samples, named):
    if "link0" in named:
        assert samples["state_link_0"].text == "up"
        counted = int((NET / named["link0"] / "statistics" / "rx_errors").read_text())
        assert samples["errors_in_link_0"].value == counted
        assert samples["errors_in_link_0"].quality is Quality.GOOD
        speed = int((NET / named["link0"] / "speed").read_text())
        assert samples["data_rate_link_0"].value == (speed * 1e6 if speed > 0 else None)
    if "link1" in named:
        assert samples["state_link_1"].text == "down", "what nobody has switched on has no carrier to tell of"


def check_disks(samples):
    expected = {
        "health_nvme_0": -4.0,
        "spare_nvme_0": 9.0,
        "alarm_spare_nvme_0": 1.0,
        "alarm_hot_nvme_0": 0.0,
        "alarm_degraded_nvme_0": 1.0,
        "errors_media_nvme_0": 3.0,
        "temperature_nvme_0": 41.0,
        "alarm_smart_disk_0": 0.0,
        "errors_reallocated_disk_0": 8.0,
        "temperature_disk_0": 33.0,
    }
    for name, value in expected.items():
        assert samples[name].value == pytest.approx(value), samples[name]
        assert samples[name].quality is Quality.GOOD, samples[name]
    assert samples["alarm_smart_disk_0"].text == "active"
    assert samples["errors_pending_disk_0"].value is None, "the script wrote none"


def test_ours_reads_of_a_real_node_exporter_what_prometheus_own_parser_does(tmp_path):
    (tmp_path / "odd.prom").write_text('odd{path="C:\\\\dir \\"x\\"\\n{,}"} 1e-300\n')
    port = free_port()

    async def scene():
        async with exporter(port, tmp_path), httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
        check_same(answer.content, answer.headers["content-type"])

    play(scene)


def test_prometheus_own_parser_reads_the_twin_as_ours_does():
    async def scene():
        device = device_of("prometheus", "node_exporter", parts=HOST_PARTS, options=HOST_OPTIONS)
        async with LiveTwin(device, HOST) as live, httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(live.address)
        families = check_same(answer.content, answer.headers["content-type"])
        assert all(one.documentation == "Simulated by madang." for one in families)
        [avail] = [one for one in families if one.name == "node_filesystem_avail_bytes"]
        assert {sample.labels["mountpoint"] for sample in avail.samples} == {"/", HOST_OPTIONS["data"]}

    play(scene)


def check_same(data, kind):
    families = list(text_string_to_metric_families(data.decode()))
    theirs = {(one.name, frozenset(one.labels.items())): one.value for each in families for one in each.samples}
    found = parse(data, kind, {name for name, _ in theirs})
    assert found.trouble == ""
    ours = {(one.name, frozenset(one.labels.items())): one for rows in found.series.values() for one in rows}
    assert ours.keys() == theirs.keys()
    assert len(theirs) > 20
    for key, value in theirs.items():
        assert not ours[key].is_twice
        assert ours[key].value == value or (value != value and ours[key].value != ours[key].value)
    return families


def test_open_metrics_of_prometheus_own_library_is_read():
    registry = CollectorRegistry()
    Counter("jobs", "Jobs.", ["kind"], registry=registry).labels('a "b"\n').inc(3, exemplar={"trace": "x"})
    Gauge("heat", "Heat.", registry=registry).set(-1.5)
    found = parse(generate_open_metrics(registry), OPEN_METRICS, {"jobs_total", "heat"})
    assert found.trouble == ""
    assert [(one.labels, one.value) for one in found.series["jobs_total"]] == [({"kind": 'a "b"\n'}, 3.0)]
    assert found.series["heat"][0].value == -1.5
    assert (found.type_of("jobs_total"), found.type_of("heat")) == ("counter", "gauge")
    assert "it was cut off" in parse(generate_open_metrics(registry)[:-6], OPEN_METRICS, {"heat"}).trouble
