"""Site files: what stands in a box, how it hangs together and who answers for it, as a person writes it in TOML.

Owns the grammar, the references inside a file and the points that profiles make. Refuses to judge whether the site is
a good one (`madang.policy.facility.check` does) and to hold secrets: a file names them. Called by the site program,
by `madang facility check` and by the plant twin.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from madang.core import NodeId, Rejected, check_site_name
from madang.facility.contract import Device
from madang.facility.profile import Profile, load_profile
from madang.facility.roster import DRIVERS, RELINQUISHERS
from madang.model import Edge, EdgeKind, Equipment, EquipmentKind, Point, Ratings, SiteModel
from madang.model.facility_site import (
    Actuator,
    ActuatorKind,
    AlarmOverride,
    Battery,
    PueMeters,
    SitePlan,
    SupplyContract,
    ThermalZone,
)

_ID = re.compile(r"[a-z0-9_]{1,64}\Z")
_FEEDS = ("A", "B")
_PHASES = ("L1", "L2", "L3")
_SECRET_KEYS = frozenset({"password", "passphrase", "community", "token", "auth_key", "priv_key", "secret"})
_SECRET_URL = re.compile(r"[a-z]+://[^/@]*:[^/@]*@")
_DEVICES_MAX = 2000
_BYTES_MAX = 4 << 20
T = TypeVar("T")
Loader = Callable[[str, str, Path], Profile]


class SiteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A site as its file says.

    Attributes:
        profiles: by device.
        point_devices: the device that answers for each point.
    """

    title: str
    model: SiteModel
    devices: tuple[Device, ...]
    profiles: dict[str, Profile]
    point_devices: dict[str, str]
    plan: SitePlan


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str = ""


class _EquipmentTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table `[equipment.ID]`: the fields of `Equipment` and `Ratings`, and its edges seen from it."""

    kind: EquipmentKind
    title: str = ""
    rack: str = ""
    node: str = ""
    redundancy_group: str = ""
    redundancy_needed: int = 1
    is_critical: bool = False
    power_w: float | None = None
    apparent_va: float | None = None
    current_a: float | None = None
    voltage_v: float | None = None
    energy_wh: float | None = None
    cooling_w: float | None = None
    flow_l_min: float | None = None
    phases: int = 1
    fed_by: tuple[str, ...] = ()
    cooled_by: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()


def load_site_file(path: Path) -> SiteFile:
    """Return a site file's content with the points of its devices.

    Raises:
        Rejected: the file or a profile cannot be read; naming the place and what is expected there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _BYTES_MAX:
        raise Rejected(f"{path} has {len(data)} bytes; a site file has at most {_BYTES_MAX}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"{path} is not UTF-8: {error}", next_step="save it as UTF-8") from error
    return parse_site_file(text, str(path), path.parent)


def parse_site_file(text: str, name: str, folder: Path, load: Loader | None = None) -> SiteFile:
    """Return what a site file's text says.

    Args:
        text: TOML.
        name: what errors call it.
        folder: where profiles named by path are.
        load: gives the profile of a driver, a name and the folder; reads them where it is absent.

    Raises:
        Rejected: naming the place and what is expected there.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Rejected(f"{name} is not TOML: {error}") from error
    return _Reader(name, folder, load or _load_profile).read(raw)


def _load_profile(driver: str, name: str, folder: Path) -> Profile:
    return load_profile(driver, name, folder=folder)


class _Reader:
    """One reading of one file."""

    def __init__(self, name: str, folder: Path, load: Loader) -> None:
        self._name = name
        self._folder = folder
        self._load = load

    def read(self, raw: Mapping[str, Any]) -> SiteFile:
        tables = ("site", "equipment", "device", "actuator", "alarm", "battery", "zone", "pue", "contract")
        self._refuse_unknown(raw, tables, "the file")
        head = self._convert(raw.get("site"), _Head, "[site]")
        site = check_site_name(head.name)
        rows = dict(self._rows(raw, "equipment", _EquipmentTable))
        if not rows:
            self._refuse("has no [equipment.NAME]", "describe at least one piece of equipment")
        edges = tuple(edge for owner, row in rows.items() for edge in self._edges(owner, row, rows))
        devices, profiles = self._devices(raw, rows)
        points, point_devices = self._points(devices, profiles, rows)
        plan = self._plan(raw)
        self._check_relinquished(plan, {one.device_id: one.driver for one in devices}, point_devices)
        return SiteFile(
            title=head.title,
            model=SiteModel(
                site=site,
                equipment=tuple(_equipment(owner, row) for owner, row in rows.items()),
                edges=edges,
                points=points,
            ),
            devices=devices,
            profiles=profiles,
            point_devices=point_devices,
            plan=plan,
        )

    def _plan(self, raw: Mapping[str, Any]) -> SitePlan:
        contract = raw.get("contract")
        meters = raw.get("pue", [])
        if not isinstance(meters, list):
            self._refuse("[pue] is one table", "write it as [[pue]], once for each category that is measured")
        return SitePlan(
            actuators=self._named(raw, "actuator", Actuator, "actuator_id"),
            alarms=self._named(raw, "alarm", AlarmOverride, "override_id"),
            batteries=self._named(raw, "battery", Battery, "ups"),
            zones=self._named(raw, "zone", ThermalZone, "place"),
            pue=tuple(self._convert(one, PueMeters, f"[[pue]] number {n}") for n, one in enumerate(meters, 1)),
            contract=None if contract is None else self._convert(contract, SupplyContract, "[contract]"),
        )

    def _check_relinquished(self, plan: SitePlan, drivers: Mapping[str, str], point_devices: Mapping[str, str]) -> None:
        for one in plan.actuators:
            if not one.is_relinquished:
                continue
            place = f"[actuator.{one.actuator_id}] is_relinquished"
            if one.kind is not ActuatorKind.SETPOINT:
                self._refuse(f"{place} stands at a {one.kind.value}", "only what a setpoint commands can be let go")
            if one.value_rest is not None:
                self._refuse(f"{place} stands beside value_rest", "leave one of them out")
            driver = drivers.get(point_devices.get(one.point_id, ""), "")
            if driver and driver not in RELINQUISHERS:
                expected = f"give value_rest instead; only {', '.join(sorted(RELINQUISHERS))} can"
                self._refuse(f"{place}: devices of {driver} cannot let go of a command", expected)

    def _named(self, raw: Mapping[str, Any], table: str, kind: type[T], key: str) -> tuple[T, ...]:
        """Return the tables of a kind; what stands after the dot of a table's head fills its `key`."""
        return tuple(one for _, one in self._rows(raw, table, kind, key))

    def _rows(self, raw: Mapping[str, Any], table: str, kind: type[T], key: str = "") -> Iterator[tuple[str, T]]:
        rows = raw.get(table, {})
        if not isinstance(rows, dict):
            self._refuse(f"{table} is no table of tables", f"write each as [{table}.NAME]")
        for name, row in rows.items():
            place = f"[{table}.{name}]"
            if not _ID.match(name):
                self._refuse(f"{place}: {name!r} is no name", "use 1 to 64 of a-z, 0-9 and _")
            if not isinstance(row, dict):
                self._refuse(f"{place} is no table", f"write {place} on a line of its own")
            if key and key in row:
                self._refuse(f"{place} has the unknown key {key!r}", "its name stands in the table's head")
            yield name, self._convert({**row, key: name} if key else row, kind, place, hidden=key)

    def _convert(self, row: Any, kind: type[T], place: str, hidden: str = "") -> T:
        if not isinstance(row, dict):
            self._refuse(f"has no {place}", f"add a table {place}")
        known = [field.name for field in msgspec.structs.fields(kind)]  # type: ignore[arg-type]
        self._refuse_unknown(row, known, place, hidden)
        try:
            return msgspec.convert(row, kind)
        except msgspec.ValidationError as error:
            raise Rejected(f"{self._name}: {place}: {error}") from error

    def _refuse_unknown(self, row: Mapping[str, Any], known: Any, place: str, hidden: str = "") -> None:
        for key in row:
            if key not in known:
                expected = ", ".join(sorted(name for name in known if name != hidden))
                self._refuse(f"{place} has the unknown key {key!r}", f"expected are {expected}")

    def _refuse(self, what: str, next_step: str) -> None:
        raise Rejected(f"{self._name}: {what}", next_step=next_step)

    def _edges(self, owner: str, row: _EquipmentTable, rows: Mapping[str, Any]) -> Iterator[Edge]:
        place = f"[equipment.{owner}]"
        if row.phases not in (1, 3):
            self._refuse(f"{place} phases = {row.phases}", "expected are 1 or 3")
        for text in row.fed_by:
            yield self._feed(owner, text, rows, f"{place} fed_by")
        for source in row.cooled_by:
            yield Edge(kind=EdgeKind.COOLS, source=self._known(source, rows, f"{place} cooled_by"), target=owner)
        for kind, names in (
            (EdgeKind.CONTAINS, row.contains),
            (EdgeKind.MEASURES, row.measures),
            (EdgeKind.CONTROLS, row.controls),
        ):
            for target in names:
                yield Edge(kind=kind, source=owner, target=self._known(target, rows, f"{place} {kind}"))
        if row.rack:
            rack = self._known(row.rack, rows, f"{place} rack")
            if rows[rack].kind is not EquipmentKind.RACK:
                self._refuse(f"{place} rack = {rack!r} is a {rows[rack].kind}", "name a piece of kind rack")
            yield Edge(kind=EdgeKind.CONTAINS, source=rack, target=owner)

    def _known(self, name: str, rows: Mapping[str, Any], place: str) -> str:
        if name not in rows:
            self._refuse(f"{place} names {name!r}, which is not there", f"add [equipment.{name}] or correct the name")
        return name

    def _feed(self, owner: str, text: str, rows: Mapping[str, Any], place: str) -> Edge:
        """Return the edge of `SOURCE [A|B] [L1|L2|L3] [SHARE]`."""
        source, *words = text.split() or [""]
        self._known(source, rows, place)
        feed = phase = ""
        share: float | None = None
        for word in words:
            if word in _FEEDS and not feed:
                feed = word
            elif word in _PHASES and not phase:
                phase = word
            elif share is None and re.fullmatch(r"0(\.\d+)?|1(\.0+)?", word):
                share = float(word)
            else:
                expected = "the source, then where they apply A or B, L1, L2 or L3, and a share from 0 to 1"
                self._refuse(f"{place} = {text!r}: {word!r} is not understood", f"expected is {expected}")
        return Edge(kind=EdgeKind.FEEDS, source=source, target=owner, feed=feed, phase=phase, share=share)

    def _devices(
        self, raw: Mapping[str, Any], rows: Mapping[str, Any]
    ) -> tuple[tuple[Device, ...], dict[str, Profile]]:
        devices = self._named(raw, "device", Device, "device_id")
        if len(devices) > _DEVICES_MAX:
            self._refuse(f"has {len(devices)} devices", f"a site has at most {_DEVICES_MAX}")
        profiles: dict[str, Profile] = {}
        for device in devices:
            place = f"[device.{device.device_id}]"
            if device.driver not in DRIVERS:
                self._refuse(f"{place} driver = {device.driver!r}", f"expected are {', '.join(DRIVERS)}")
            if min(device.poll_s, device.timeout_s) <= 0:
                self._refuse(f"{place} poll_s and timeout_s", "expected are numbers of seconds above 0")
            if _SECRET_KEYS & set(device.options) or _SECRET_URL.match(device.address):
                # Neither the word nor the address is repeated: errors end in logs.
                self._refuse(
                    f"{place} holds a secret in clear", "put it into the site's secret store and name it: secret = NAME"
                )
            self._known(device.equipment, rows, f"{place} equipment")
            for part, owner in device.parts.items():
                self._known(owner, rows, f"{place} parts.{part}")
            profiles[device.device_id] = self._profile(device, place)
        return devices, profiles

    def _profile(self, device: Device, place: str) -> Profile:
        try:
            profile = self._load(device.driver, device.profile, self._folder)
        except Rejected as error:
            raise Rejected(f"{self._name}: {place}: {error.message}", next_step=error.next_step) from error
        if profile.driver != device.driver:
            self._refuse(f"{place} profile {device.profile!r} is for {profile.driver}", f"name one of {device.driver}")
        unknown = sorted(set(device.parts) - {spec.part for spec in profile.points})
        if unknown:
            parts = ", ".join(sorted({spec.part for spec in profile.points} - {""})) or "none"
            self._refuse(f"{place} parts.{unknown[0]}: the profile has no such part", f"it has {parts}")
        return profile

    def _points(
        self, devices: tuple[Device, ...], profiles: Mapping[str, Profile], rows: Mapping[str, _EquipmentTable]
    ) -> tuple[tuple[Point, ...], dict[str, str]]:
        points: list[Point] = []
        owners: dict[str, str] = {}
        for device in devices:
            for spec in profiles[device.device_id].points:
                point = spec.point(
                    device.equipment, device.parts, poll_s=device.poll_s, is_simulated=device.is_simulated
                )
                if point is None:
                    continue
                if spec.part and not spec.context and rows[device.equipment].kind is EquipmentKind.RACK_PDU:
                    # What an outlet gives is one cord of what hangs on it.
                    point = msgspec.structs.replace(point, context="output")
                if point.point_id in owners:
                    self._refuse(
                        f"[device.{device.device_id}] gives {point.point_id}, as {owners[point.point_id]} does already",
                        "give one of the devices another piece of equipment, or leave one out",
                    )
                owners[point.point_id] = device.device_id
                points.append(point)
        return tuple(points), owners


def _equipment(equipment_id: str, row: _EquipmentTable) -> Equipment:
    return Equipment(
        equipment_id=equipment_id,
        kind=row.kind,
        title=row.title,
        rack=row.rack,
        node=NodeId(row.node),
        ratings=Ratings(
            power_w=row.power_w,
            apparent_va=row.apparent_va,
            current_a=row.current_a,
            voltage_v=row.voltage_v,
            energy_wh=row.energy_wh,
            cooling_w=row.cooling_w,
            flow_l_min=row.flow_l_min,
            phases=row.phases,
        ),
        redundancy_group=row.redundancy_group,
        redundancy_needed=row.redundancy_needed,
        is_critical=row.is_critical,
    )
