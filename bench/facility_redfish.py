"""What polling Redfish costs; `python -m bench.facility_redfish --help`.

Five BMCs of 21 points each, the twins in a process of their own. Rounds follow each other without a pause, and
what is measured is the CPU time of the polling process; a round every ten seconds takes that many ten-thousandths of
a core. Connections and sessions are kept, as they are at that pace. Simulated devices on loopback: the time that a
real BMC takes to answer costs waiting, not CPU.
"""

import argparse
import asyncio
import hashlib
import os
import platform
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from madang.facility.contract import Device, Secret
from madang.facility.profile import load_profile
from madang.facility.redfish.driver import RedfishDriver, make_driver
from madang.facility.redfish.twin import RedfishTwin
from madang.model import Quality
from madang.runtime.clock import SystemClock

GOAL = 0.20
"""Share of a core for 500 SNMP, 400 Modbus and 100 Redfish points together."""
PERIOD_S = 10.0
DEVICES, POINTS = 5, 21
SECRET = Secret(user="bench", words={"password": "bench"})
DRIVES = {"drive0": "drive0", "drive1": "drive1"}


class Plant:
    """A fake plant: every state is its first word, every number moves with each look at it."""

    def __init__(self) -> None:
        self._states = {spec.name for spec in load_profile("redfish", "bmc").points if spec.states}
        self._looks = 0

    def get(self, name: str) -> float | None:
        """Return some value; a cap that is in force."""
        self._looks += 1
        if name in self._states:
            return 1.0 if name in ("state_power_limit", "state_power") else 0.0
        return 40.0 + self._looks % 50

    def set(self, name: str, value: float) -> None:
        """Take no command."""


def make_device(number: int, address: str, **options: str) -> Device:
    """Return one BMC: fifteen points of the server, three of each of two drives."""
    return Device(
        device_id=f"bmc{number}",
        driver="redfish",
        address=address,
        profile="bmc",
        equipment=f"server{number}",
        parts=DRIVES,
        options=dict(options),
        poll_s=PERIOD_S,
        timeout_s=30.0,
        is_simulated=True,
    )


async def serve(certificate: str) -> None:
    """Serve the twins until standard input ends; each line asks for the CPU seconds spent so far."""
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    profile, plant = load_profile("redfish", "bmc"), Plant()
    twins = [
        RedfishTwin(make_device(number, "127.0.0.1:0"), profile, SECRET, plant, tls=tls) for number in range(DEVICES)
    ]
    for twin in twins:
        await twin.start()
    print(*(twin.address for twin in twins), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(time.process_time(), flush=True)
    for twin in twins:
        await twin.stop()


async def poll(drivers: list[RedfishDriver], rounds: int) -> float:
    """Return the CPU seconds of one round, having checked that every reading is good."""
    began = time.process_time()
    for _ in range(rounds):
        for driver in drivers:
            samples = await driver.read()
            assert len(samples) == POINTS
            assert all(one.quality is Quality.GOOD for one in samples), samples
    return (time.process_time() - began) / rounds


def warm_up(rounds: int) -> int:
    """Return how many rounds come before those that count: ways are found and sessions opened in the first."""
    return min(rounds, 5)


async def measure(addresses: list[str], pin: str, repeats: int, rounds: int) -> list[float]:
    """Return the CPU seconds of one round, once for each repeat."""
    options = {"fingerprint": pin} if pin else {}
    profile, clock = load_profile("redfish", "bmc"), SystemClock()
    devices = [make_device(number, address, **options) for number, address in enumerate(addresses)]
    drivers = [make_driver(device, profile, SECRET, clock) for device in devices]
    try:
        await poll(drivers, warm_up(rounds))
        return [await poll(drivers, rounds) for _ in range(repeats)]
    finally:
        for driver in drivers:
            await driver.close()


def make_certificate(folder: Path) -> tuple[str, str]:
    """Return the path of a certificate with its key, and its pin."""
    pem = folder / "twin.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*openssl, "-days", "2", "-subj", "/CN=twin", "-keyout", folder / "key", "-out", folder / "crt"],
        check=True,
        capture_output=True,
    )
    text = (folder / "crt").read_text()
    pem.write_text(text + (folder / "key").read_text())
    return str(pem), hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()


def run(is_tls: bool, repeats: int, rounds: int) -> tuple[list[float], float]:
    """Return the poller's CPU seconds a round, and the twins'."""
    with tempfile.TemporaryDirectory() as folder:
        certificate, pin = make_certificate(Path(folder)) if is_tls else ("", "")
        command = [sys.executable, "-m", "bench.facility_redfish", "--serve", certificate or "-"]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as twins:
            assert twins.stdin is not None
            assert twins.stdout is not None
            addresses = twins.stdout.readline().split()

            def spent() -> float:
                print(file=twins.stdin, flush=True)
                return float(twins.stdout.readline())

            before = spent()
            found = asyncio.run(measure(addresses, pin, repeats, rounds))
            twins_s = (spent() - before) / (repeats * rounds + warm_up(rounds))
            twins.stdin.close()
    return found, twins_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=40, help="in each repeat; a round reads every device once")
    parser.add_argument("--serve", metavar="CERTIFICATE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve("" if given.serve == "-" else given.serve))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    load = os.getloadavg()[0]
    print(f"commit {commit}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load average {load:.2f} before; simulated devices on loopback, {given.repeats} x {given.rounds} rounds")
    for name, is_tls in (("http", False), ("https, pinned", True)):
        found, twins_s = run(is_tls, given.repeats, given.rounds)
        share = statistics.median(found) / PERIOD_S
        spread = f"{min(found) * 1e3:.1f} to {max(found) * 1e3:.1f}"
        print(
            f"{name}: {DEVICES * POINTS} points cost {statistics.median(found) * 1e3:.1f} ms of CPU ({spread}), "
            f"at 0.1 Hz {share:.2%} of a core (all protocols together: {GOAL:.0%}); the twins {twins_s * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
