"""Two independent readings of one SNMP agent agree: NUT's snmp-ups behind upsd, and our own RFC 1628 profile.

The agent plays the recording of a real three-phase UPS (Eaton 93E 80 kVA, of snmpsim-data).
"""

import asyncio
import bz2
import importlib.util
import os

import pytest
from tests.facility.redfish_parts import device_of, driver_on, find_peer, read, running_quietly
from tests.facility.test_nut_peers import nut, read_until

from madang.facility.contract import Secret
from madang.testing.facility_contract import HANG_S
from madang.testing.ports import free_port

pytestmark = pytest.mark.peer
RECORDING = "eaton-93e-80"
SHARED_MIN = 21
"""That two readings share nothing is no agreement."""


def find_recording():
    root = find_peer("servers", "snmpsim-command-responder").parents[1]
    found = sorted(root.glob(f"lib/python*/site-packages/snmpsim_data/data/UPS/{RECORDING}.snmprec*"))
    if not found:
        pytest.skip(f"the recording {RECORDING} is not among the peers: snmpsim-data is not installed")
    return found[0]


def both_tell(one, other):
    """The pairs of values by point, of those that both readings know."""
    values = {name: (one[name].value, other[name].value) for name in one.keys() & other.keys()}
    return {name: pair for name, pair in values.items() if None not in pair}


async def read_both(nut_driver, snmp_driver):
    """Read both until they share enough: snmp-ups publishes few variables before it has walked the whole agent."""
    while True:
        by_snmp, by_nut = await read(snmp_driver), await read(nut_driver)
        has_state = by_nut["unit1.state_on_battery"].value is not None  # ups.status begins as WAIT
        if len(shared := both_tell(by_snmp, by_nut)) >= SHARED_MIN and has_state:
            return shared, by_nut, by_snmp
        await asyncio.sleep(0.5)


def test_two_readings_of_one_ups_agree_on_every_shared_value(tmp_path):
    if importlib.util.find_spec("madang.facility.snmp") is None:
        pytest.skip("the equipment driver snmp is not here")
    responder = find_peer("servers", "snmpsim-command-responder")
    recording = find_recording()
    data = recording.read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ups.snmprec").write_bytes(bz2.decompress(data) if recording.suffix == ".bz2" else data)
    port = free_port()
    command = [responder, f"--data-dir={tmp_path / 'data'}", f"--cache-dir={tmp_path / 'cache'}"]
    command += [f"--agent-udpv4-endpoint=127.0.0.1:{port}", "--logging-method=null"]
    if os.getuid() == 0:
        command += ["--process-user=root", "--process-group=root"]

    async def scene():
        section = f"port = 127.0.0.1:{port}\ncommunity = ups\nmibs = ietf\nsnmp_version = v2c\npollinterval = 2\n"
        community = Secret(words={"community": "ups"})
        ours = device_of("snmp", "ups_rfc1628", address=f"127.0.0.1:{port}", timeout_s=5.0)
        async with running_quietly(*command), driver_on(ours, community) as snmp:
            await read_until(snmp, lambda them: them["unit1.charge"].value is not None)
            async with nut(tmp_path, section, "snmp-ups") as nut_port:
                device = device_of("nut", "ups_three_phase", address=f"127.0.0.1:{nut_port}")
                async with driver_on(device) as driver:
                    shared, by_nut, by_snmp = await read_both(driver, snmp)
        assert {name: both for name, both in shared.items() if both[0] != pytest.approx(both[1], rel=1e-9)} == {}
        states = by_nut["unit1.state_on_battery"].value, by_snmp["unit1.state_source"].text
        assert states == (0.0, "normal")

    asyncio.run(asyncio.wait_for(scene(), 1.5 * HANG_S))
