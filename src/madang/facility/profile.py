"""Profiles: what a kind of device offers and how its raw numbers become quantities, as data.

Owns the shape of profile files and the one way from a raw number to a sample: sentinel, scale, range. Refuses to
know protocols: what `ref` means is the driver's business. Called by drivers and by the check of site files.
"""

import math
import tomllib
from importlib import resources
from pathlib import Path

import msgspec

from madang.core import Rejected
from madang.model import UNITS, Point, PointKind, Quality, Quantity, Sample


class PointSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point of a profile.

    Attributes:
        name: as in `Point.name`; a part in brackets, `power[outlet3]`, puts it on another piece of equipment.
        ref: where the driver finds it: an OID, a register, a path, a variable's name.
        scale, offset: value = raw x scale + offset, in the quantity's unit.
        sentinels: raw values by which the maker says "no value".
        valid: smallest and largest plausible value, in the quantity's unit; outside of it the sample is bad.
        states: of a STATE: the word of each raw number.
        stale_s: when a sample is too old; 0 takes three polls of the device.
        still_s: after how long without a change a value is doubted; 0: never (see `madang.facility.still`).
        options: what the driver needs besides (register type, word order, SNMP index, …).
        source: where it is documented or was recorded.
    """

    name: str
    quantity: Quantity
    ref: str
    kind: PointKind = PointKind.SENSOR
    context: str = ""
    scale: float = 1.0
    offset: float = 0.0
    sentinels: tuple[float, ...] = ()
    valid: tuple[float, float] | None = None
    states: dict[str, str] = {}
    stale_s: float = 0.0
    still_s: float = 0.0
    options: dict[str, str | int | float | bool] = {}
    source: str = ""

    @property
    def part(self) -> str:
        """The part in brackets; empty without."""
        return self.name.partition("[")[2].rstrip("]")

    @property
    def base_name(self) -> str:
        """The name without its part."""
        return self.name.partition("[")[0]

    def point_id(self, equipment_id: str, parts: dict[str, str]) -> str:
        """Return its id on a device; empty when the site does not have the part."""
        owner = parts.get(self.part, "") if self.part else equipment_id
        return f"{owner}.{self.base_name}" if owner else ""

    def point(self, equipment_id: str, parts: dict[str, str], *, poll_s: float, is_simulated: bool) -> Point | None:
        """Return the point that a device makes of it; None when the site does not have the part."""
        point_id = self.point_id(equipment_id, parts)
        if not point_id:
            return None
        return Point(
            point_id=point_id,
            equipment_id=point_id.partition(".")[0],
            name=self.base_name,
            kind=self.kind,
            quantity=self.quantity,
            context=self.context,
            stale_s=self.stale_s or 3 * poll_s,
            states={int(number): word for number, word in self.states.items()},
            is_simulated=is_simulated,
        )


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device.

    Attributes:
        name: as site files name it, also the file's stem.
        verified_on: equipment, firmware and date, a named recording, or "twin only".
        options: what the driver's manifest lists for whole devices.
    """

    name: str
    driver: str
    title: str
    points: tuple[PointSpec, ...]
    maker: str = ""
    verified_on: str = "twin only"
    options: dict[str, str | int | float | bool] = {}


def to_sample(spec: PointSpec, point_id: str, raw: float | None, *, now_s: float, reason: str = "") -> Sample:
    """Return the sample that a raw number is; `raw` None or a reason to doubt it makes it bad or uncertain.

    A number that is not finite, is a sentinel, is no known state, or lies outside of what is plausible is bad and
    has no value: a device that lies gives no number.
    """

    def bad(why: str) -> Sample:
        return Sample(point_id=point_id, value=None, quality=Quality.BAD, observed_at_s=now_s, reason=why)

    if raw is None:
        return bad(reason or "the device gave no value")
    if not math.isfinite(raw):
        return bad("the device gave no finite number")
    if raw in spec.sentinels:
        return bad(f"the device says {raw:g}, its word for no value")
    word = spec.states.get(str(int(raw)), "") if spec.quantity is Quantity.STATE and raw == int(raw) else ""
    if spec.states and not word:
        return bad(f"{raw:g} is none of the states {', '.join(sorted(spec.states))}")
    value = raw * spec.scale + spec.offset
    if spec.valid is not None and not spec.valid[0] <= value <= spec.valid[1]:
        unit = UNITS[spec.quantity]
        return bad(f"{value:g} {unit} is outside of {spec.valid[0]:g} to {spec.valid[1]:g} {unit}")
    quality = Quality.UNCERTAIN if reason else Quality.GOOD
    return Sample(point_id=point_id, value=value, quality=quality, observed_at_s=now_s, text=word, reason=reason)


def to_raw(spec: PointSpec, value: float) -> float:
    """Return the raw number that stands for a value; raises Rejected for one that the profile does not allow."""
    if not math.isfinite(value) or (spec.valid is not None and not spec.valid[0] <= value <= spec.valid[1]):
        low, high = spec.valid or (-math.inf, math.inf)
        raise Rejected(
            f"{spec.name}: {value:g} {UNITS[spec.quantity]} is outside of {low:g} to {high:g}",
            next_step="give a value within the range of the device's profile",
        )
    return (value - spec.offset) / spec.scale


def load_profile(driver: str, name: str, *, folder: Path | None = None) -> Profile:
    """Return a profile of a driver, or the file `name` in `folder` when it ends in `.toml`.

    Raises Rejected naming file, place and what is expected.
    """
    if name.endswith(".toml"):
        path = (folder or Path()) / name
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise Rejected(f"the profile {path} cannot be read: {error}") from error
    else:
        known = list_profiles(driver)
        if name not in known:
            raise Rejected(f"the driver {driver} has no profile {name!r}; it has {', '.join(known) or 'none'}")
        source = resources.files(f"madang.facility.{driver}") / "profiles" / f"{name}.toml"
        text = source.read_text(encoding="utf-8")
    try:
        return msgspec.convert(tomllib.loads(text), Profile)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise Rejected(f"the profile {name} is malformed: {error}") from error


def list_profiles(driver: str) -> list[str]:
    """Return the names of a driver's own profiles, sorted; empty for an unknown driver."""
    try:
        folder = resources.files(f"madang.facility.{driver}") / "profiles"
    except ModuleNotFoundError:
        return []
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
