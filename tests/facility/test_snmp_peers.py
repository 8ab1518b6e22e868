"""Recorded devices of snmpsim-data read by our driver; our twin read by net-snmp and by NUT."""

import asyncio
import bz2
import os
import re
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from tests.facility.facility_parts import TwinRun, find_tool, make_device, peer_python, read_device, run_tool
from tests.facility.test_snmp import COMMUNITY, PDU, UPS, USER

from madang.facility.contract import Secret
from madang.model import Quality
from madang.testing.facility_contract import HANG_S
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer

RECORDINGS = {
    "apc-8641": "UPS",
    "apc-8932": "UPS",
    "apc-7902b": "UPS",
    "eaton-93e-80": "UPS",
    "eastpower-istars-swv053": "UPS",
    "huawei-gse200m": "UPS",
    "ingrasys-power-switch": "UPS",
    "phoenixtec-power": "UPS",
    "vertiv-power": "UPS",
    "geist-temperature-sensor": "iot",
}
SENSOR = "geist-temperature-sensor"
OUTLETS = {f"outlet{number}": f"outlet_{number}" for number in range(1, 25)}
V3 = ["--v3-user=dcim", "--v3-auth-key=auth-words-42", "--v3-auth-proto=SHA256"]
V3 += ["--v3-priv-key=priv-words-43", "--v3-priv-proto=AES"]


@pytest.fixture(scope="module")
def snmpsim(tmp_path_factory):
    """The port of an agent that plays every recording, each under its name as community or context."""
    python = peer_python("servers", "snmpsim_data")
    folder = tmp_path_factory.mktemp("snmpsim")
    (folder / "data").mkdir()
    code = "import os, snmpsim_data; print(os.path.join(os.path.dirname(snmpsim_data.__file__), 'data'))"
    source = subprocess.check_output([python, "-c", code], text=True, timeout=60).strip()
    for name, kind in RECORDINGS.items():
        packed = Path(f"{source}/{kind}/{name}.snmprec.bz2")
        data = bz2.decompress(packed.read_bytes()) if packed.exists() else packed.with_suffix("").read_bytes()
        (folder / "data" / f"{name}.snmprec").write_bytes(data)
    port = free_port()
    command = [python.parent / "snmpsim-command-responder", f"--cache-dir={folder}/cache", "--logging-method=null"]
    if os.geteuid() == 0:
        command += ["--process-user=root", "--process-group=root"]
    end = [f"--data-dir={folder}/data", f"--agent-udpv4-endpoint=127.0.0.1:{port}"]
    process = subprocess.Popen([*command, "--v3-engine-id=auto", *end, *V3], stdin=subprocess.DEVNULL)
    try:
        wait_for_agent(process, port)
        yield port
    finally:
        process.kill()
        process.wait()


def wait_for_agent(process, port):
    """Return when the agent answers: it indexes its recordings first."""
    probe = make_device("snmp", "geist_watchdog", address=f"127.0.0.1:{port}", timeout_s=1.0)
    deadline_s = time.monotonic() + HANG_S
    while asyncio.run(read_device(probe, None, community(SENSOR)))["unit1.humidity"].value is None:
        assert process.poll() is None, f"snmpsim ended with {process.returncode}"
        assert time.monotonic() < deadline_s, "snmpsim does not answer"
        time.sleep(0.1)


def community(name):
    return Secret(words={"community": name})


def read(port, recording, profile, **options):
    device = make_device("snmp", profile, address=f"127.0.0.1:{port}", **options)
    samples = asyncio.run(read_device(device, None, community(recording)))
    return {name.removeprefix("unit1."): one for name, one in samples.items()}


def values(samples):
    return {name: round(one.value, 6) for name, one in samples.items() if one.value is not None}


def bad(samples):
    return {name for name, one in samples.items() if one.quality is Quality.BAD}


LINES = ("l1", "l2", "l3")
CASES = [
    (
        "eaton-93e-80",
        "ups_rfc1628",
        set(),
        {"runtime": 65520, "charge": 100, "voltage_battery": 521.0, "power": 11400, "frequency": 49.0, "load_l1": 21},
    ),
    (
        "ingrasys-power-switch",
        "ups_rfc1628",
        {"runtime", "frequency"},
        {"power": 21100, "voltage_battery": 273.0, "load_l3": 33, "temperature_battery": 32},
    ),
    (
        "phoenixtec-power",
        "ups_rfc1628_single",
        {"runtime"},
        {"voltage_battery": 41.0, "voltage_l1": 231, "voltage_input_l1": 238, "frequency": 50.0, "power": 0},
    ),
    (
        "eastpower-istars-swv053",
        "ups_eastpower_ea9080",
        {"runtime", "power", *(f"{name}_{line}" for name in ("power", "current") for line in LINES)},
        {"voltage_battery": 213.0, "voltage_l1": 219, "load_l1": 20, "load_l2": 26, "load_l3": 30, "charge": 100},
    ),
    (
        "huawei-gse200m",
        "ups_huawei_5000",
        {"runtime", "charge", "temperature_battery"},
        {"voltage_battery": 538.5, "voltage_l1": 219.9, "frequency": 49.99, "current_l1": 18.3, "power_l1": 3400},
    ),
]


@pytest.mark.parametrize(("recording", "profile", "marked", "expected"), CASES, ids=[case[0] for case in CASES])
def test_every_value_of_a_recorded_ups_is_plausible_or_marked(snmpsim, recording, profile, marked, expected):
    samples = read(snmpsim, recording, profile)
    assert bad(samples) == marked, {name: samples[name] for name in bad(samples) ^ marked}
    found = values(samples)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (samples["state_battery"].text, samples["state_source"].text) == ("normal", "normal")
    doubted = {name for name, one in samples.items() if one.quality is Quality.UNCERTAIN}
    assert doubted == ({"power", "power_l1"} if recording == "huawei-gse200m" else set())
    # Volts, amperes and watts of a line agree, with the power factor that a server has.
    for line in LINES:
        if found.get(f"power_{line}"):
            ratio = found[f"power_{line}"] / (found[f"voltage_{line}"] * found[f"current_{line}"])
            assert 0.75 <= ratio <= 1.05, (line, ratio)


def test_the_outlets_of_a_recorded_pdu_add_up_to_the_device(snmpsim):
    samples = read(snmpsim, "apc-8641", "apc_rpdu2", parts=OUTLETS)
    assert not bad(samples)
    found = values(samples)
    assert found["power"] == 1210
    outlets = sum(found[f"{one}.power"] for one in OUTLETS.values())
    assert outlets == pytest.approx(found["power"], rel=0.10)
    assert sum(found[f"{one}.current"] for one in OUTLETS.values()) == pytest.approx(found["current_l1"], rel=0.10)
    assert found["current_l1"] * found["voltage_l1"] == pytest.approx(found["power_apparent"], rel=0.02)
    assert found["power"] / found["power_apparent"] == pytest.approx(found["power_factor"], abs=0.02)
    assert found["energy"] == 1_951_600


def test_a_recorded_pdu_without_metered_outlets_gives_the_device_and_marks_the_rest(snmpsim):
    samples = read(snmpsim, "apc-8932", "apc_rpdu2", parts={"outlet1": "outlet_1"})
    assert bad(samples) == {"outlet_1.power", "outlet_1.current", "outlet_1.energy"}
    found = values(samples)
    assert (found["power"], found["energy"], found["voltage_l1"]) == (160, 642_600, 121)


def test_a_recorded_pdu_that_measures_current_only_says_so(snmpsim):
    samples = read(snmpsim, "apc-7902b", "apc_rpdu2")
    assert bad(samples) == {"power", "power_apparent", "power_factor", "energy", "voltage_l1", "power_l1"}
    assert values(samples)["current_l1"] == 1.6
    assert "no value" in samples["power"].reason


def test_a_recorded_cooling_unit_is_read(snmpsim):
    samples = read(snmpsim, "vertiv-power", "liebert_pex")
    assert bad(samples) == {"temperature_supply"}
    found = values(samples)
    expected = {
        "temperature_return": 23,
        "temperature_setpoint": 23,
        "humidity_return": 42,
        "speed_fan": 100,
        "load": 0,
    }
    expected |= {"temperature_compressor1": 29, "temperature_compressor2": 37, "count_alarms": 0}
    assert {name: found[name] for name in expected} == expected
    assert (samples["state_unit"].text, samples["state_cooling"].text, samples["alarm_general"].text) == (
        "on",
        "off",
        "clear",
    )


def test_a_recorded_sensor_is_read_with_the_probes_that_a_site_names(snmpsim):
    samples = read(
        snmpsim, "geist-temperature-sensor", "geist_watchdog", parts={"probe2": "rack_2", "probe3": "rack_3"}
    )
    assert not bad(samples)
    found = values(samples)
    # The recording lets these grow with time up to 30 degrees and 50 %, and begin anew only when they are past that.
    assert 10 <= found["temperature"] <= 60
    assert 25 <= found["humidity"] <= 100
    assert 10 <= found["rack_2.temperature"] <= 60
    assert found["dew_point"] < found["temperature"]


def test_a_profile_of_another_device_gives_no_number(snmpsim):
    samples = read(snmpsim, "apc-8641", "ups_rfc1628")
    assert bad(samples) == set(samples)


def test_version_3_reads_the_same_as_version_2c(snmpsim):
    peer_python("servers", "pysnmpcrypto")
    plain = read(snmpsim, "eaton-93e-80", "ups_rfc1628")
    device = make_device(
        "snmp",
        "ups_rfc1628",
        address=f"127.0.0.1:{snmpsim}",
        options={"version": "3", "context": "eaton-93e-80"},
    )
    samples = asyncio.run(read_device(device, None, USER, readings=2))
    assert {name.removeprefix("unit1."): one for name, one in samples.items()} == plain


def security_arguments(version):
    if version != "3":
        return [f"-v{version}", "-c", COMMUNITY.words["community"]]
    words = USER.words
    keys = ["-A", words["auth_key"], "-x", "AES", "-X", words["priv_key"]]
    return ["-v3", "-l", "authPriv", "-u", USER.user, "-a", "SHA-256", *keys]


@pytest.mark.parametrize("version", ["1", "2c", "3"])
def test_net_snmp_reads_and_walks_our_twin(version):
    get, walk = find_tool("snmpget"), find_tool("snmpwalk" if version == "1" else "snmpbulkwalk")
    options = {"version": "3"} if version == "3" else {}
    device = make_device("snmp", "ups_rfc1628", options=options)
    arguments = ["-m", "", "-On", "-t", "30", "-r", "0", *security_arguments(version)]

    async def scene():
        async with TwinRun(device, UPS, USER if version == "3" else COMMUNITY) as run:
            address = run.twin.address
            one = await run_tool(get, *arguments, address, "1.3.6.1.2.1.33.1.2.5.0", "1.3.6.1.2.1.33.1.4.4.1.4.2")
            return one, await run_tool(walk, *arguments, address, "1.3.6.1.2.1.33")

    one, all_of_it = asyncio.run(scene())
    assert re.findall(r"INTEGER: (\d+)", one) == ["5215", "3600"]
    # Whoever walks to the end is told so, under the last name.
    names = re.findall(r"^\.([\d.]+) = (?!No more)", all_of_it, re.MULTILINE)
    assert len(names) == len(set(names)) == 34
    assert names == sorted(names, key=lambda name: [int(arc) for arc in name.split(".")])


def test_net_snmp_is_refused_with_the_standards_words():
    device = make_device("snmp", "apc_rpdu2", parts={"outlet1": "a", "outlet5": "b"})
    snmpset = find_tool("snmpset")
    secret = ["-v2c", "-c", COMMUNITY.words["write_community"]]

    async def scene():
        async with TwinRun(device, PDU, COMMUNITY) as run:
            command = (snmpset, "-m", "", "-t", "30", "-r", "0", *secret, run.twin.address)
            with pytest.raises(AssertionError, match="notWritable"):
                await run_tool(*command, "1.3.6.1.4.1.318.1.1.26.4.3.1.5.1", "i", "7")
            return run.plant.commands

    assert asyncio.run(scene()) == []


def dump_ups(text):
    return dict(line.split(": ", 1) for line in text.splitlines() if re.match(r"[a-z][\w.]+: ", line))


def check_against_nut(said, samples):
    """Fail unless NUT's driver and ours agree on every value that both have; return how many that were."""
    pairs = {"battery.charge": "charge", "battery.voltage": "voltage_battery", "battery.runtime": "runtime"}
    pairs |= {
        "battery.temperature": "temperature_battery",
        "output.frequency": "frequency",
        "input.frequency": "frequency_input",
    }
    for line in (1, 2, 3):
        pairs |= {
            f"input.L{line}-N.voltage": f"voltage_input_l{line}",
            f"output.L{line}-N.voltage": f"voltage_l{line}",
            f"output.L{line}.current": f"current_l{line}",
            f"output.L{line}.realpower": f"power_l{line}",
            f"output.L{line}.power.percent": f"load_l{line}",
        }
    shared = [(theirs, ours) for theirs, ours in pairs.items() if theirs in said and samples[ours].value is not None]
    for theirs, ours in shared:
        assert float(said[theirs]) == pytest.approx(samples[ours].value), (theirs, ours)
    return len(shared)


async def ask_nut(folder, port, word):
    """Return what NUT's snmp-ups reads, after one update."""
    driver = find_tool("snmp-ups")
    (folder / "ups.conf").write_text("")
    environment = f"NUT_CONFPATH={folder}", f"NUT_STATEPATH={folder}", f"NUT_ALTPIDPATH={folder}"
    arguments = ("-x", f"port=127.0.0.1:{port}", "-x", "mibs=ietf", "-x", f"community={word}", "-x", "snmp_version=v2c")
    command = ("env", *environment, driver, "-s", "peer", *arguments, "-d", "1")
    if os.geteuid() == 0:
        command = (*command, "-u", "root")
    return dump_ups(await run_tool(*command))


def test_nut_reads_our_twin_as_we_do(tmp_path):
    device = make_device("snmp", "ups_rfc1628")

    async def scene():
        async with TwinRun(device, UPS | {"state_source": 3.0}, COMMUNITY) as run:
            said = await ask_nut(tmp_path, run.port, COMMUNITY.words["community"])
            return said, await read_device(msgspec.structs.replace(device, address=run.twin.address), None, COMMUNITY)

    said, samples = asyncio.run(scene())
    assert check_against_nut(said, {name.removeprefix("unit1."): one for name, one in samples.items()}) >= 8
    assert said["ups.status"].split()[0] == "OL"
    assert "MadangTwin" in said.get("ups.model", "")


def test_nut_reads_a_recorded_ups_as_we_do(snmpsim, tmp_path):
    samples = read(snmpsim, "eaton-93e-80", "ups_rfc1628")
    said = asyncio.run(ask_nut(tmp_path, snmpsim, "eaton-93e-80"))
    assert check_against_nut(said, samples) >= 8
