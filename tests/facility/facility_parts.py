"""What tests of equipment drivers share: devices on loopback, and where independent peers are."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from madang.facility.contract import Device, Secret
from madang.facility.profile import load_profile
from madang.facility.roster import make_driver, make_twin
from madang.testing.facility_contract import HANG_S, HeldPlant, StandingClock


def make_device(driver, profile, **options):
    given = {
        "device_id": "unit1",
        "address": "127.0.0.1:0",
        "equipment": "unit1",
        "timeout_s": 30.0,
        "poll_s": 60.0,
    }
    return Device(**(given | {"driver": driver, "profile": profile} | options))


class TwinRun:
    """A twin that runs while a test is in the `async with`."""

    def __init__(self, device, values, secret=None, profile=None):
        self.secret = secret or Secret()
        self.clock = StandingClock()
        self.profile = profile or load_profile(device.driver, device.profile)
        self.device = device
        self.plant = HeldPlant(values)
        self.twin = make_twin(device, self.profile, self.secret, self.plant)

    async def __aenter__(self):
        await self.twin.start()
        self.host, _, port = self.twin.address.partition(":")
        self.port = int(port)
        return self

    async def __aexit__(self, *_):
        await self.twin.stop()


async def read_device(device, profile=None, secret=None, readings=1):
    """Return the samples of one session's last reading, by point id."""
    profile = profile or load_profile(device.driver, device.profile)
    driver = make_driver(device, profile, secret or Secret(), StandingClock())
    try:
        async with asyncio.timeout(HANG_S):
            for _ in range(readings):
                samples = await driver.read()
        return {one.point_id: one for one in samples}
    finally:
        await driver.close()


def find_tool(name):
    """Return a command's path; skips the test where the machine has none."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/lib/nut")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def peer_python(kind, module):
    """Return the interpreter of the peers `servers` or `clients`; skips where they or the module are absent."""
    root = Path(os.environ.get("MADANG_PEERS", Path.home() / ".cache" / "madang" / "peers"))
    python = root / kind / "bin" / "python"
    if not any((root / kind).glob(f"lib/python*/site-packages/{module}")):
        pytest.skip(f"{module} is not among the {kind} of {root}")
    return python


async def run_tool(*command, stdin=""):
    """Return what a command prints; fails with what it complained about when it does not end well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(HANG_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command[0]} ended with {process.returncode}: {out!r} {err!r}"
    return out.decode()


class PeerServer:
    """A peer's server in a process of its own, told to print a line once it listens."""

    def __init__(self, *command):
        self._command = [str(one) for one in command]

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(HANG_S):
            self.line = (await self._process.stdout.readline()).decode().strip()
        assert self.line, f"{self._command[0]} ended at once"
        return self

    async def __aexit__(self, *_):
        self._process.stdin.close()
        self._process.kill()
        await self._process.communicate()
