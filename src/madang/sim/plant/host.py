"""What a simulated plant's hosts read: file systems, disks, links, memory and clock of a server.

Owns their values, and the words of the faults that change them. Refuses to know protocols. Called by
`madang.sim.plant.reading`. Nothing of it follows from the plant's equations: a host is well until it is told otherwise.
"""

from madang.facility.profile import PointSpec
from madang.model import Quantity
from madang.sim.plant.plant import Plant

CONTEXTS = frozenset({"filesystem", "drive", "link", "memory", "clock", "chip"})
"""Of points that are about a host, as profiles call them."""
DISK_FULL = "disk_full"
DISK_WORN = "disk_worn"
DISK_READ_ONLY = "disk_read_only"
LINK_DOWN = "link_down"
CLOCK_LOST = "clock_lost"
_STATES = {"state_link": (LINK_DOWN, "down", "up"), "state_clock": (CLOCK_LOST, "unsynchronised", "synchronised")}
_ALARMS = {"alarm_read_only": DISK_READ_ONLY, "alarm_smart": DISK_WORN, "alarm_spare": DISK_WORN}
_LINK_BIT_S = 10e9
_BOOTED_AGO_S = 86_400.0


def read_host(plant: Plant, equipment_id: str, spec: PointSpec) -> float | None:
    """Return what a point about a host reads; None where a host has no such thing."""
    flags = plant.flags.get(equipment_id, set())
    is_worn = DISK_WORN in flags
    if spec.quantity is Quantity.STATE:
        return _find(spec, _word(spec.base_name, flags))
    values = {
        Quantity.LEVEL: 98.5 if DISK_FULL in flags else 41.0,
        Quantity.HEALTH: 3.0 if is_worn else 96.0,
        Quantity.LOAD: 55.0,
        Quantity.TEMPERATURE: 44.0,
        Quantity.COUNT: 0.0,
        Quantity.DATA_RATE: _LINK_BIT_S,
        Quantity.DURATION: _duration(plant, spec.base_name, is_clock_lost=CLOCK_LOST in flags),
    }
    return values.get(spec.quantity)


def _word(name: str, flags: set[str]) -> str:
    for beginning, (flag, bad, good) in _STATES.items():
        if name.startswith(beginning):
            return bad if flag in flags else good
    return "active" if any(name.startswith(one) and flag in flags for one, flag in _ALARMS.items()) else "clear"


def _find(spec: PointSpec, word: str) -> float | None:
    return next((float(number) for number, known in spec.states.items() if known == word), None)


def _duration(plant: Plant, name: str, *, is_clock_lost: bool) -> float:
    if name.startswith("duration_clock_error"):
        return 16.0 if is_clock_lost else 0.02
    return 0.0 if "clock" in name else _BOOTED_AGO_S + plant.now_s
