"""Reads one exporter: a node_exporter, a smartctl_exporter, or whatever a profile says.

Owns when it is asked and what becomes of its answer. Refuses to interpret series (the codec does) and to command
anything: exporters only tell. Called by the site's poller.

One GET is one reading, and nothing of a former one is kept, so that a late answer is never taken for a later one.
"""

import asyncio

import msgspec

from madang.core import Clock, Rejected, Unavailable
from madang.facility.contract import Device, Secret
from madang.facility.profile import Profile, to_sample
from madang.facility.prometheus import codec
from madang.facility.prometheus.codec import Target
from madang.facility.prometheus.exposition import Exposition, parse
from madang.facility.prometheus.link import Link
from madang.facility.still import StillWatch
from madang.model import Quality, Sample

OPTIONS = ("ca_file",)
"""Of a device, besides what the refs of its profile leave to the site."""


class PrometheusDriver:
    """One session with one exporter.

    Args:
        device: where it is; the options that its profile's refs name say which disk, link and file system is which.
        profile: what is read.
        secret: `token`, or a user with `password`; without either nothing is sent.
        clock: time.
    """

    def __init__(self, device: Device, profile: Profile, secret: Secret, clock: Clock) -> None:
        known = {*OPTIONS, *codec.options_of(profile)}
        if unknown := sorted(set(device.options) - known):
            raise Rejected(
                f"{device.device_id}: unknown options {', '.join(unknown)}",
                next_step=f"the driver and the profile {profile.name} know {', '.join(sorted(known))}",
            )
        self._device = device
        self._clock = clock
        self._link = Link(device, secret)
        self._targets = codec.make_targets(profile, device)
        self._wanted = frozenset({codec.NOW}.union(*(target.families for target in self._targets)))
        self._still = StillWatch()
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"PrometheusDriver({self._link.what!r})"

    async def read(self) -> tuple[Sample, ...]:
        """Return one sample for each point, in the profile's order, within the device's time-out."""
        try:
            async with asyncio.timeout(self._device.timeout_s), self._lock:
                page = await self._link.fetch()
            exposition = parse(page.data, page.content_type, self._wanted)
            exposition = msgspec.structs.replace(exposition, trouble=self._link.mask(exposition.trouble))
        except TimeoutError:
            exposition = Exposition(trouble=f"the exporter did not answer within {self._device.timeout_s:g} s")
        except Unavailable as error:
            exposition = Exposition(trouble=self._link.mask(error.message))
        return tuple(self._judge(target, exposition) for target in self._targets)

    async def write(self, point_id: str, value: float) -> None:  # noqa: ARG002  the contract's
        """Refuse: exporters only tell."""
        raise Rejected(f"{self._device.device_id}: {point_id} cannot be commanded: exporters only tell")

    async def close(self) -> None:
        """End the connection."""
        async with self._lock:
            await self._link.close()

    def _judge(self, target: Target, exposition: Exposition) -> Sample:
        now_s, spec = self._clock.wall_s(), target.spec
        found = codec.read_number(target, exposition, now_s)
        doubt, is_stale = codec.age_of(found, target.stale_s, now_s)
        reason = found.reason or doubt
        sample = to_sample(spec, target.point_id, found.raw, now_s=now_s, reason=reason)
        if is_stale and sample.value is not None:
            return msgspec.structs.replace(sample, quality=Quality.STALE, reason=doubt)
        return self._still.judge(spec, sample, self._clock.monotonic_ns())


def make_driver(device: Device, profile: Profile, secret: Secret, clock: Clock) -> PrometheusDriver:
    """Return the driver of one device."""
    return PrometheusDriver(device, profile, secret, clock)
