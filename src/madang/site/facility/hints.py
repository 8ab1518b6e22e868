"""What devices told by themselves and no reading has confirmed or denied yet.

Owns the doubtful point `alarm_notification` of the equipment of devices that are listened to. Refuses to take a value
from what was told, and to be part of a site's model: no alarm and no decision rests on a hint. Called by the poller.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from madang.core import Rejected
from madang.facility.contract import Device, Hint, Listener
from madang.model import Point, PointKind, Quality, Quantity, Sample

POINT_NAME = "alarm_notification"
NOTHING, SOMETHING = 0.0, 1.0
WORDS_MAX = 4
"""Of a device, that are shown together: a UPS that loses its mains tells two or three things at once."""


class Told(msgspec.Struct, frozen=True):
    """What a device told since it was last read: the newest words, and when the last of them came."""

    words: tuple[str, ...]
    at_s: float


class Hints:
    """What was told by the devices of one site.

    Args:
        devices: those that are listened to.
        is_heard: whether a driver's devices are heard now.

    Attributes:
        points: what the samples below belong to.
    """

    def __init__(self, devices: tuple[Device, ...] = (), is_heard: Callable[[str], bool] = lambda _: True) -> None:
        self._is_heard = is_heard
        self._drivers = {device.device_id: device.driver for device in devices}
        self._equipment = {device.device_id: device.equipment for device in devices}
        self._told: dict[str, Told] = {}
        points: dict[str, Point] = {}
        for device in devices:
            point = _make_point(device)
            known = points.get(point.point_id, point)
            points[point.point_id] = msgspec.structs.replace(
                point,
                stale_s=max(point.stale_s, known.stale_s),
                is_simulated=point.is_simulated or known.is_simulated,
            )
        self.points = tuple(points.values())

    def note(self, hint: Hint) -> tuple[Sample, ...]:
        """Take a hint and return what its equipment's point reads until the device has been read."""
        if hint.device_id not in self._equipment:
            return ()
        before = self._told.get(hint.device_id)
        words = tuple(word for word in before.words if word != hint.word) if before is not None else ()
        told = Told(words=(*words, hint.word)[-WORDS_MAX:], at_s=hint.received_at_s)
        self._told[hint.device_id] = told
        return (self._sample(self._equipment[hint.device_id], told.at_s),)

    def told(self, device_id: str) -> Told | None:
        """Return what a device told that it was not read after."""
        return self._told.get(device_id)

    def settle(self, device_id: str, told: Told | None, now_s: float) -> tuple[Sample, ...]:
        """Take it that a device was read after it told `told`; return what its equipment's point reads from now on.

        What was told while it was being read waits for the next reading.
        """
        equipment = self._equipment.get(device_id)
        if equipment is None:
            return ()
        if told is not None and self._told.get(device_id) is told:
            del self._told[device_id]
        sample = self._sample(equipment, now_s)
        if sample.value == NOTHING and not self._is_heard(self._drivers[device_id]):
            sample = Sample(
                point_id=sample.point_id,
                value=None,
                quality=Quality.BAD,
                observed_at_s=now_s,
                reason="notifications are not heard: their port cannot be had",
            )
        return (sample,)

    def _sample(self, equipment: str, now_s: float) -> Sample:
        """Return what a piece of equipment's point reads; several devices may answer for one piece."""
        waiting = [told for device_id, told in self._told.items() if self._equipment[device_id] == equipment]
        point_id = f"{equipment}.{POINT_NAME}"
        if not waiting:
            return Sample(point_id=point_id, value=NOTHING, quality=Quality.GOOD, observed_at_s=now_s, text="none")
        return Sample(
            point_id=point_id,
            value=SOMETHING,
            quality=Quality.UNCERTAIN,
            observed_at_s=max(told.at_s for told in waiting),
            text=", ".join(dict.fromkeys(word for told in waiting for word in told.words)),
            reason="a notification, which the next reading confirms or not",
        )


def make_hints(devices: Iterable[Device], listeners: Mapping[str, Listener], points: Iterable[Point]) -> Hints:
    """Return the hints of a site's devices; raises Rejected where one of its own points has the name of ours."""
    heard = (
        device
        for device in devices
        if device.driver in listeners and device.device_id not in listeners[device.driver].deaf_to
    )
    hints = Hints(tuple(heard), lambda driver: listeners[driver].is_listening)
    taken = {point.point_id for point in points}
    for point in hints.points:
        if point.point_id in taken:
            raise Rejected(
                f"{point.point_id} is what notifications show, and a profile has a point of that name",
                next_step="give the profile's point another name",
            )
    return hints


def _make_point(device: Device) -> Point:
    return Point(
        point_id=f"{device.equipment}.{POINT_NAME}",
        equipment_id=device.equipment,
        name=POINT_NAME,
        kind=PointKind.ALARM,
        quantity=Quantity.STATE,
        stale_s=3 * device.poll_s,
        states={int(NOTHING): "none"},
        is_simulated=device.is_simulated,
    )
