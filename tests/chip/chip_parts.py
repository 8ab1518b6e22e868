"""What tests of chip drivers share: time that they move, and one reading."""

import asyncio

from madang.core import NodeId

NODE = NodeId("daegu-1")
HANG_S = 0.25
"""How long tests wait for a tool that never ends; a tool that is merely slow to start would give the same answer."""


class FakeClock:
    """Time that the test moves."""

    def __init__(self):
        self.now_ns = 1

    def monotonic_ns(self):
        return self.now_ns

    def wall_s(self):
        return 1.0 + self.now_ns / 1e9

    def move(self, elapsed_s):
        self.now_ns += round(elapsed_s * 1e9)


def read(driver):
    """Return the chips of one reading, by id."""
    return {chip.chip_id: chip for chip in asyncio.run(driver.read())}


def read_one(driver):
    (chip,) = asyncio.run(driver.read())
    return chip
