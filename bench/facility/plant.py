"""Twins in a process of their own, so that their cost is not counted: prints their addresses, ends with its input."""

import asyncio
import json
import sys

import msgspec
from bench.facility.fleet import FLEET, SECRET, Kind

from madang.facility.profile import PointSpec, load_profile
from madang.facility.roster import make_twin
from madang.model import Quantity


class MovingPlant:
    """A fake plant whose numbers move at each reading, within what the profile takes for plausible."""

    def __init__(self, points: tuple[PointSpec, ...]) -> None:
        self._points = {point.name: point for point in points}
        self._count = 0

    def get(self, name: str) -> float:
        """Return another value than before."""
        point = self._points[name]
        if point.quantity is Quantity.STATE:
            return float(next(iter(point.states)))
        self._count += 1
        low, high = point.valid or (0.0, 1000.0)
        start = max(low, 0.0)
        share = 0.3 + 0.1 * (self._count % 4)
        return start + share * (min(high, start + 300.0) - start)

    def set(self, name: str, value: float) -> None:
        """Take a command and forget it."""


async def serve() -> None:
    """Run every twin of the fleet until the input ends."""
    addresses: list[tuple[str, str]] = []
    twins = []
    for kind in FLEET:
        profile = load_profile(kind.driver, kind.profile)
        for _ in range(kind.count):
            twin = make_twin(kind.device("127.0.0.1:0"), profile, SECRET, MovingPlant(profile.points))
            await twin.start()
            twins.append(twin)
            addresses.append((kind.name, twin.address))
    sys.stdout.write(json.dumps(addresses) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    for twin in twins:
        await twin.stop()


def devices_of(addresses: list[tuple[str, str]]) -> list[tuple[Kind, str]]:
    """Return each device's kind and address."""
    kinds = {kind.name: kind for kind in FLEET}
    return [(kinds[name], address) for name, address in msgspec.convert(addresses, list[tuple[str, str]])]


if __name__ == "__main__":
    asyncio.run(serve())
