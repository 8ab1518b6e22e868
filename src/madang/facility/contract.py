"""What an equipment driver must do, whatever the protocol.

Owns the protocol, the shape of a device as a site file names it and what a twin serves. Refuses to know wire
formats. Implemented by each folder of `madang.facility`; called by the site program's poller, the only owner of
sessions with devices.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from madang.facility.profile import Profile
from madang.model import Sample


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Something with an address that answers for one or more pieces of equipment.

    Attributes:
        device_id: one token, unique in its site.
        driver: the folder's name: redfish, snmp, modbus, nut, bacnet, opcua, mqtt, prometheus.
        address: `host:port` or a URL, as the driver's manifest says.
        profile: name of a profile of that driver, or path of one beside the site file.
        equipment: the piece that the profile's points belong to; points whose profile name carries a part in
            brackets belong to `parts[part]`.
        parts: equipment of each part of the device, such as outlets or servers.
        secret: name of the secret in the site's secret store; never the secret itself.
        options: what the driver's manifest lists, all optional.
        poll_s: how often it is read.
        timeout_s: of one exchange.
        is_simulated: a twin answers; everything from it says so.
    """

    device_id: str
    driver: str
    address: str
    profile: str
    equipment: str
    parts: dict[str, str] = {}
    secret: str = ""
    options: dict[str, str | int | float | bool] = {}
    poll_s: float = 5.0
    timeout_s: float = 2.0
    is_simulated: bool = False


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What a device wants to know of us; printed as stars.

    Attributes:
        user: account, security name or community's name; may be empty.
        words: the secret words by their use: `password`, `community`, `auth_key`, `priv_key`, `token`.
    """

    user: str = ""
    words: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Secret(user={self.user!r}, words=***)"

    __str__ = __repr__


class EquipmentDriver(Protocol):
    """One session with one device. It holds at most one connection and one exchange at a time."""

    async def read(self) -> tuple[Sample, ...]:
        """Return one sample for each point of the profile, in its order.

        Never raises for a device that is away, hangs, answers half or lies: such points are `bad` with the reason.
        Takes no longer than the device's time-out allows, whatever the device does; bounded in memory too.
        """
        ...

    async def write(self, point_id: str, value: float) -> None:
        """Command one point; the caller reads it back, since devices act late.

        Raises Rejected when the point cannot be commanded or the value is outside of what the profile and the
        device allow, Unavailable when the device did not take it.
        """
        ...

    async def close(self) -> None:
        """End the session and leave nothing behind."""
        ...


@runtime_checkable
class RelinquishingDriver(EquipmentDriver, Protocol):
    """A driver whose device keeps what each of its commanders wants, and can be told that we want nothing more.

    Most protocols know one value only: there the last command stands until the next one.
    """

    async def relinquish(self, point_id: str) -> None:
        """Let go of what was commanded, also in an earlier session; what holds then is the device's.

        Raises Rejected when the point cannot be commanded, Unavailable when the device did not take it.
        """
        ...


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """That a device told something by itself: a reason to read it now, never a value.

    Attributes:
        device_id: which one.
        word: what it told, in a word, or as its protocol names it.
        received_at_s: wall time.
    """

    device_id: str
    word: str
    received_at_s: float


class Listener(Protocol):
    """Hears what the devices of one protocol tell by themselves, and believes only those that it was made for.

    It keeps at most one hint for each device that nobody has taken, and looks into a bounded number of messages a
    second, whoever sends them.
    """

    @property
    def address(self) -> str:
        """Where it listens."""
        ...

    @property
    def is_listening(self) -> bool:
        """True between a start that succeeded and the stop."""
        ...

    @property
    def deaf_to(self) -> Sequence[str]:
        """Devices that it can never hear as the site names them, sorted."""
        ...

    @property
    def rejected(self) -> Mapping[str, int]:
        """What was heard and not believed since the start, by reason; every reason is there, also at 0."""
        ...

    @property
    def merged(self) -> int:
        """Hints that a newer one of the same device replaced before anybody took them."""
        ...

    async def start(self) -> None:
        """Listen; raises Unavailable saying why it cannot."""
        ...

    async def next_hint(self) -> Hint:
        """Return the oldest hint that has not been taken; waits for one."""
        ...

    async def stop(self) -> None:
        """Listen no longer; leave nothing behind."""
        ...


class PlantPort(Protocol):
    """What a twin answers from: the points of one device, by the profile's name of each.

    Values are in the point's unit (`madang.model.UNITS`); the twin converts them to what the wire carries.
    """

    def get(self, name: str) -> float | None:
        """Return the value now; None where the device would have none."""
        ...

    def set(self, name: str, value: float) -> None:
        """Take a command; raises Rejected for what cannot be commanded."""
        ...


class Twin(Protocol):
    """A simulated device that answers at protocol level on loopback."""

    @property
    def address(self) -> str:
        """Where a driver reaches it, as `Device.address` wants it."""
        ...

    async def start(self) -> None:
        """Listen; raises Unavailable naming port and holder when it cannot."""
        ...

    async def stop(self) -> None:
        """Answer no longer; leave nothing behind."""
        ...

    def fault(self, fault: "TwinFault | None") -> None:
        """Misbehave from now on; None: no longer."""
        ...


class TwinFault(msgspec.Struct, frozen=True, kw_only=True):
    """How a twin misbehaves until it is told otherwise.

    Attributes:
        kind: silent (no answer), slow, half (part of the points), garbage (bytes that are no message), stuck
            (values stand still), sentinel (the maker's "no value"), reordered, refuses_writes, ignores_writes.
        names: the points it touches; empty: all.
    """

    kind: str
    names: tuple[str, ...] = ()


def points_of(profile: Profile, device: Device) -> Sequence[str]:
    """Return the point ids that a device with this profile gives, in the profile's order.

    `power[outlet3]` of a device whose `parts` name outlet3 becomes `<that equipment>.power`; a part that is not
    named is not read.
    """
    return [point_id for spec in profile.points if (point_id := spec.point_id(device.equipment, device.parts))]
