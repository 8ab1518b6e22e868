"""Reads twins of 500 SNMP and 400 Modbus points once a second and measures the CPU; `python -m bench.facility --help`.

The twins run in a process of their own; what is counted is this process: drivers, codecs and samples, all of them
good ones. Where pysnmp and pymodbus are installed, the same points are asked for with them, for comparison: bare
values, without samples.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from bench.facility.fleet import SECRET, Kind
from bench.facility.plant import devices_of

from madang.facility.profile import load_profile
from madang.facility.roster import make_driver
from madang.facility.snmp.ber import say_oid
from madang.facility.snmp.driver import parse_ref
from madang.model import Quality
from madang.runtime.clock import SystemClock

GOAL = 0.20
"""Of a core, for SNMP and Modbus together with 100 Redfish points every ten seconds."""
Read = Callable[[], Awaitable[int]]


class Cost(NamedTuple):
    """What rounds of one second cost: points in each, and the share of a core in each."""

    points: int
    shares: list[float]

    def __str__(self) -> str:
        middle = statistics.median(self.shares)
        per_point_us = 1e6 * middle / self.points
        spread = f"{100 * min(self.shares):.2f}-{100 * max(self.shares):.2f}"
        return f"{self.points} points/s: {100 * middle:.2f} % of a core ({spread}), {per_point_us:.1f} us a point"


async def measure(reads: Sequence[Read], rounds: int, warm_up: int = 2) -> Cost:
    """Read everything once a second and return what it cost; raises RuntimeError where a value is not good."""
    shares: list[float] = []
    points = 0
    for number in range(warm_up + rounds):
        began, cpu = time.perf_counter(), time.process_time()
        points = sum(await asyncio.gather(*(read() for read in reads)))
        await asyncio.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
        if number >= warm_up:
            shares.append((time.process_time() - cpu) / (time.perf_counter() - began))
    return Cost(points, shares)


async def measure_ours(devices: list[tuple[Kind, str]], rounds: int) -> Cost:
    """Return what our drivers cost."""
    drivers = [
        make_driver(kind.device(address), load_profile(kind.driver, kind.profile), SECRET, SystemClock())
        for kind, address in devices
    ]

    def reader(driver: object) -> Read:
        async def read() -> int:
            samples = await driver.read()  # type: ignore[attr-defined]
            if bad := [one for one in samples if one.quality is not Quality.GOOD]:
                raise RuntimeError(f"not every sample is good: {bad[0]}")
            return len(samples)

        return read

    try:
        return await measure([reader(driver) for driver in drivers], rounds)
    finally:
        for driver in drivers:
            await driver.close()


async def measure_pysnmp(devices: list[tuple[Kind, str]], rounds: int) -> Cost:
    """Return what one engine of pysnmp costs for lists of GET of the same objects, MIB look-ups off."""
    from pysnmp.hlapi.v3arch import asyncio as peer

    engine = peer.SnmpEngine()
    reads: list[Read] = []
    for kind, address in devices:
        device, profile = kind.device(address), load_profile(kind.driver, kind.profile)
        specs = [spec for spec in profile.points if spec.point_id(device.equipment, device.parts)]
        oids = [say_oid(parse_ref(spec, {})[0]) for spec in specs]
        host, _, port = address.partition(":")
        target = await peer.UdpTransportTarget.create((host, int(port)), timeout=30)
        words = SECRET.words
        security = peer.CommunityData(words["community"])
        if kind.options.get("version") == "3":
            security = peer.UsmUserData(
                SECRET.user,
                words["auth_key"],
                words["priv_key"],
                authProtocol=peer.USM_AUTH_HMAC192_SHA256,
                privProtocol=peer.USM_PRIV_CFB128_AES,
            )

        async def read(oids: list[str] = oids, target: object = target, security: object = security) -> int:
            for at in range(0, len(oids), 24):
                types = [peer.ObjectType(peer.ObjectIdentity(oid)) for oid in oids[at : at + 24]]
                error, status, _, _ = await peer.get_cmd(
                    engine, security, target, peer.ContextData(), *types, lookupMib=False
                )
                if error or status:
                    raise RuntimeError(f"pysnmp: {error or status}")
            return len(oids)

        reads.append(read)
    try:
        return await measure(reads, rounds)
    finally:
        engine.close_dispatcher()


async def measure_pymodbus(devices: list[tuple[Kind, str]], rounds: int) -> Cost:
    """Return what pymodbus costs for the same blocks of registers."""
    from pymodbus.client import AsyncModbusTcpClient

    from madang.facility.modbus import codec, sunspec
    from madang.facility.modbus.driver import plan_points

    reads: list[Read] = []
    clients = []
    for kind, address in devices:
        specs = load_profile(kind.driver, kind.profile).points
        if any(sunspec.is_sunspec(spec) for spec in specs):
            continue
        host, _, port = address.partition(":")
        client = AsyncModbusTcpClient(host, port=int(port), timeout=30)
        await client.connect()
        clients.append(client)
        blocks = plan_points(list(specs), {}, 1, 40 if kind.name == "meter" else 8).blocks

        async def read(
            client: AsyncModbusTcpClient = client, blocks: list[codec.Block] = blocks, count: int = len(specs)
        ) -> int:
            for block in blocks:
                ask = {
                    codec.Table.INPUT: client.read_input_registers,
                    codec.Table.HOLDING: client.read_holding_registers,
                    codec.Table.DISCRETE: client.read_discrete_inputs,
                }[block.table]
                if (await ask(block.address, count=block.count)).isError():
                    raise RuntimeError(f"pymodbus: {block} was refused")
            return count

        reads.append(read)
    try:
        return await measure(reads, rounds)
    finally:
        for client in clients:
            client.close()


async def run(devices: list[tuple[Kind, str]], rounds: int) -> Cost:
    """Print each protocol and both together; return the latter."""
    by_driver = {name: [one for one in devices if one[0].driver == name] for name in ("snmp", "modbus")}
    for name, some in by_driver.items():
        sys.stdout.write(f"{name}, {len(some)} devices, ours, {await measure_ours(some, rounds)}\n")
    peers = (("snmp", "pysnmp", measure_pysnmp), ("modbus", "pymodbus, without SunSpec", measure_pymodbus))
    for name, peer, measure_peer in peers:
        try:
            cost = await measure_peer(by_driver[name], rounds)
        except ModuleNotFoundError as error:
            sys.stdout.write(f"{peer}: {error.name} is not installed\n")
            continue
        sys.stdout.write(f"{name}, {peer}, {cost}\n")
    both = await measure_ours(devices, rounds)
    sys.stdout.write(f"both, ours, {both}\n")
    return both


def main() -> int:
    """Print what was measured; exit 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.facility", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="seconds of each measure, default 20")
    rounds = parser.parse_args().rounds
    load = os.getloadavg()[0]
    machine = f"{os.cpu_count()} cores of {platform.machine()}, load average {load:.1f} before"
    sys.stdout.write(f"twins; Python {platform.python_version()}; {machine}; median of {rounds} rounds\n")
    plant = subprocess.Popen(
        [sys.executable, "-m", "bench.facility.plant"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert plant.stdin is not None
    assert plant.stdout is not None
    try:
        devices = devices_of(json.loads(plant.stdout.readline()))
        cost = asyncio.run(run(devices, rounds))
    finally:
        plant.stdin.close()
        plant.wait()
        plant.stdout.close()
    share = statistics.median(cost.shares)
    sys.stdout.write(f"goal: below {100 * GOAL:.0f} % of a core: {'met' if share < GOAL else 'MISSED'}\n")
    return 0 if share < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
