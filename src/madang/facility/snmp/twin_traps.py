"""What a simulated UPS tells by itself when its state changes.

Owns which change is told by which notification, and its repetition. Refuses to know sockets, keys and time: the twin
asks it often, and sends. Called by the SNMP twin where its option `twin.notify` says to whom.

After RFC 1628: upsTrapOnBattery, which is sent again each minute, upsTrapAlarmEntryAdded and upsTrapAlarmEntryRemoved
with the well-known alarm that they are about.
"""

import ipaddress
from collections.abc import Callable, Iterable

from madang.core import Rejected
from madang.facility.address import split_address
from madang.facility.profile import PointSpec
from madang.facility.snmp import ber
from madang.facility.snmp.codec import Bind

OPTION = "twin.notify"
LOOK_S = 0.2
"""How often the twin asks: what a fault on command does is told well within a second."""
REPEAT_S = 60.0
"""RFC 1628, upsTrapOnBattery: resent at one minute intervals."""
TRAP_PORT = 162
_UPS = "1.3.6.1.2.1.33"
ON_BATTERY, ALARM_ADDED, ALARM_REMOVED = f"{_UPS}.2.1", f"{_UPS}.2.3", f"{_UPS}.2.4"
_ALARMS = (
    ("state_source", "battery", f"{_UPS}.1.6.3.2"),
    ("state_battery", "low", f"{_UPS}.1.6.3.3"),
    ("state_battery", "depleted", f"{_UPS}.1.6.3.4"),
)
"""Point and word that mean a well-known alarm: upsAlarmOnBattery, upsAlarmLowBattery, upsAlarmDepletedBattery."""
_MINUTES_LEFT, _SECONDS_ON_BATTERY, _LOW_MINUTES = f"{_UPS}.1.2.3.0", f"{_UPS}.1.2.2.0", f"{_UPS}.1.9.7.0"
_LOW_MINUTES_SET = 2
"""upsConfigLowBattTime, which upsTrapOnBattery carries; the twin has no such object to be set."""
_UPTIME, _TRAP_OID = "1.3.6.1.2.1.1.3.0", "1.3.6.1.6.3.1.1.4.1.0"


class UpsHerald:
    """Finds what changed since it was asked last.

    Args:
        specs: the profile's points that the device has.
        get: returns a point's value by its name.
    """

    def __init__(self, specs: Iterable[PointSpec], get: Callable[[str], float | None]) -> None:
        self._get = get
        states = {spec.name: {word: float(number) for number, word in spec.states.items()} for spec in specs}
        self._watched = [
            (name, states[name][word], alarm) for name, word, alarm in _ALARMS if word in states.get(name, {})
        ]
        if not self._watched:
            raise Rejected(f"{OPTION}: the profile has no state that a twin tells by itself")
        self._entries: dict[str, int] = {}
        self._count = 0
        self._told_battery_s = float("-inf")

    def look(self, now_s: float) -> list[tuple[Bind, ...]]:
        """Return the variables of every notification that is due; `now_s` is since the agent's start."""
        active = [alarm for name, number, alarm in self._watched if self._get(name) == number]
        found: list[tuple[Bind, ...]] = []
        on_battery = _ALARMS[0][2]
        if on_battery not in active:
            self._told_battery_s = float("-inf")
        elif now_s - self._told_battery_s >= REPEAT_S:
            self._told_battery_s = now_s
            found.append(self._say_on_battery(now_s))
        for alarm in active:
            if alarm not in self._entries:
                self._count += 1
                self._entries[alarm] = self._count
                found.append(_say_entry(ALARM_ADDED, alarm, self._count, now_s))
        over = [alarm for alarm in self._entries if alarm not in active]
        return found + [_say_entry(ALARM_REMOVED, alarm, self._entries.pop(alarm), now_s) for alarm in over]

    def _say_on_battery(self, now_s: float) -> tuple[Bind, ...]:
        minutes, seconds = (self._get("runtime") or 0.0) / 60.0, self._get("duration_on_battery") or 0.0
        return (
            *_head(ON_BATTERY, now_s),
            _integer(_MINUTES_LEFT, minutes),
            _integer(_SECONDS_ON_BATTERY, seconds),
            _integer(_LOW_MINUTES, _LOW_MINUTES_SET),
        )


def parse_sink(text: str) -> tuple[str, int]:
    """Return host and port that notifications go to; raises Rejected for what is no address in digits."""
    host, port = split_address(text, TRAP_PORT)
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise Rejected(f"{OPTION} = {text!r} is no address in digits", next_step="such as 127.0.0.1:1162") from error
    return host, port


def _say_entry(notification: str, alarm: str, number: int, now_s: float) -> tuple[Bind, ...]:
    """Return the variables of an entry of upsAlarmTable: its number, and which alarm it is."""
    return (
        *_head(notification, now_s),
        _integer(f"{_UPS}.1.6.2.1.1.{number}", number),
        Bind(ber.encode_oid(f"{_UPS}.1.6.2.1.2.{number}"), ber.OID, ber.encode_oid(alarm)),
    )


def _head(notification: str, now_s: float) -> tuple[Bind, ...]:
    ticks = ber.encode_integer(int(100 * now_s) & 0xFFFFFFFF)[2:]
    return (
        Bind(ber.encode_oid(_UPTIME), ber.TICKS, ticks),
        Bind(ber.encode_oid(_TRAP_OID), ber.OID, ber.encode_oid(notification)),
    )


def _integer(oid: str, number: float) -> Bind:
    return Bind(ber.encode_oid(oid), ber.INTEGER, ber.encode_integer(round(number))[2:])
