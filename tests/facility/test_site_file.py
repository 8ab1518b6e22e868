"""Site files: what a person may write, what comes of it, and how mistakes are named."""

import importlib
from pathlib import Path

import pytest

from madang.core import Rejected
from madang.facility.profile import PointSpec, Profile, list_profiles
from madang.facility.roster import DRIVERS, RELINQUISHERS
from madang.facility.site_file import load_site_file, parse_site_file
from madang.facility.tariff_files import load_tariff_book
from madang.model import EdgeKind, EquipmentKind, PointKind, Quantity
from madang.model.facility_site import ActuatorMode, Chemistry
from madang.policy.facility.check import check_site
from madang.policy.facility.check_texts import Severity

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEXT = """
[site]
name = "here"
title = "여기"

[equipment.utility]
kind = "utility"
phases = 3
power_w = 30000

[equipment.ups]
kind = "ups"
fed_by = ["utility L1"]
power_w = 3000

[equipment.rack]
kind = "rack"
cooled_by = ["cooling"]

[equipment.cooling]
kind = "cooling_unit"
fed_by = ["utility L2"]

[equipment.server]
kind = "server"
rack = "rack"
node = "node1"
fed_by = ["ups A 0.5", "utility B L3 0.5"]
power_w = 900

[equipment.door]
kind = "door"

[device.card]
driver = "snmp"
address = "10.0.0.1:161"
profile = "any_ups"
equipment = "ups"
parts = { door1 = "door" }
secret = "snmp"
poll_s = 5
is_simulated = true

[actuator.cap]
kind = "cap"
point_id = "ups.limit"
target = "node1"

[battery.ups]
energy_wh = 900
chemistry = "li_ion"

[zone.rack]
mass_j_k = 90000
air_j_k = 1800

[[pue]]
category = 1
facility = ["ups.power"]
it = ["ups.power"]

[contract]
tariff = "general_a1_low"
power_w = 6000
meter = "ups.energy"

[alarm.hot]
points = ["*.temperature"]
condition = "high"
limit = 30
"""


def fake_profile(driver: str, name: str, folder: Path) -> Profile:
    """Stand in for a driver's profile, so that this test needs no driver."""
    return Profile(
        name=name,
        driver=driver,
        title="a fake",
        points=(
            PointSpec(name="power", quantity=Quantity.POWER, ref="1", kind=PointKind.METER, context="output"),
            PointSpec(name="limit", quantity=Quantity.POWER_LIMIT, ref="2", kind=PointKind.SETPOINT),
            PointSpec(name="state_open[door1]", quantity=Quantity.STATE, ref="3", states={"0": "closed", "1": "open"}),
            PointSpec(name="state_open[door2]", quantity=Quantity.STATE, ref="4"),
        ),
    )


def parse(text: str):
    return parse_site_file(text, "site.toml", Path(), fake_profile)


def let_go(driver: str, kind: str = "setpoint", more: str = "") -> str:
    """Return a file whose actuator lets go of its command, behind a device of some driver."""
    text = TEXT.replace('driver = "snmp"', f'driver = "{driver}"').replace('kind = "cap"', f'kind = "{kind}"')
    return text.replace('target = "node1"', f'target = "node1"\nis_relinquished = true\n{more}')


def test_a_command_can_be_let_go_where_the_protocol_can() -> None:
    assert parse(let_go("bacnet")).plan.actuators[0].is_relinquished


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (let_go("snmp"), "devices of snmp cannot let go"),
        (let_go("bacnet", kind="cap"), "stands at a cap"),
        (let_go("bacnet", more="value_rest = 5"), "beside value_rest"),
    ],
)
def test_a_command_that_cannot_be_let_go_is_refused(text: str, message: str) -> None:
    with pytest.raises(Rejected, match=message):
        parse(text)


def test_the_roster_knows_who_can_let_go_of_a_command() -> None:
    able = set()
    for driver in DRIVERS:
        module = importlib.import_module(f"madang.facility.{driver}.driver")
        [kind] = [
            one for name, one in vars(module).items() if name.endswith("Driver") and one.__module__ == module.__name__
        ]
        able |= {driver} if hasattr(kind, "relinquish") else set()
    assert able == RELINQUISHERS


def test_a_file_becomes_a_site() -> None:
    site = parse(TEXT)
    kinds = {one.equipment_id: one.kind for one in site.model.equipment}
    assert (site.model.site, site.title) == ("here", "여기")
    assert (kinds["ups"], kinds["door"]) == (EquipmentKind.UPS, EquipmentKind.DOOR)
    cords = [edge for edge in site.model.edges if edge.kind is EdgeKind.FEEDS and edge.target == "server"]
    assert [(edge.source, edge.feed, edge.phase, edge.share) for edge in cords] == [
        ("ups", "A", "", 0.5),
        ("utility", "B", "L3", 0.5),
    ]
    contained = [(edge.source, edge.target) for edge in site.model.edges if edge.kind is EdgeKind.CONTAINS]
    assert contained == [("rack", "server")]
    points = {point.point_id: point for point in site.model.points}
    assert list(points) == ["ups.power", "ups.limit", "door.state_open"], "a part that is not named is not read"
    assert points["ups.power"].stale_s == 15
    assert points["ups.power"].is_simulated
    assert points["door.state_open"].states == {0: "closed", 1: "open"}
    assert site.point_devices == dict.fromkeys(points, "card")
    assert site.plan.actuators[0].mode is ActuatorMode.OBSERVE, "nothing is armed unless somebody says so"
    assert site.plan.batteries[0].chemistry is Chemistry.LI_ION
    assert site.plan.alarms[0].override_id == "hot"
    assert site.plan.zones[0].place == "rack"
    assert site.plan.contract is not None


def test_what_an_outlet_gives_is_said_to_be_its_output() -> None:
    text = TEXT.replace('kind = "ups"\n', 'kind = "rack_pdu"\n', 1)
    points = {point.point_id: point.context for point in parse(text).model.points}
    assert points == {"ups.power": "output", "ups.limit": "", "door.state_open": "output"}


WRONG = {
    "unknown table": (TEXT + "\n[typo]\nx = 1\n", "'typo'", "equipment"),
    "unknown key": (TEXT.replace("energy_wh = 900", "energy = 9"), "[battery.ups] has the unknown key 'energy'", "_wh"),
    "name given twice": (TEXT.replace("energy_wh = 900", 'energy_wh = 900\nups = "x"'), "'ups'", "head"),
    "wrong type": (TEXT.replace("energy_wh = 900", 'energy_wh = "much"'), "[battery.ups]", "float"),
    "missing key": (TEXT.replace("energy_wh = 900", ""), "[battery.ups]", "energy_wh"),
    "unknown kind": (TEXT.replace('kind = "door"', 'kind = "gate"'), "[equipment.door]", "gate"),
    "unknown source": (TEXT.replace("utility L2", "utillity L2"), "'utillity'", "[equipment.cooling] fed_by"),
    "odd feed": (TEXT.replace("ups A 0.5", "ups C"), "'C' is not understood", "A or B"),
    "feed named twice": (TEXT.replace("ups A 0.5", "ups A B"), "'B' is not understood", "A or B"),
    "share too large": (TEXT.replace("ups A 0.5", "ups A 1.5"), "'1.5' is not understood", "0 to 1"),
    "empty feed": (TEXT.replace('"ups A 0.5"', '""'), "names ''", "fed_by"),
    "no rack": (TEXT.replace('rack = "rack"', 'rack = "ups"'), "[equipment.server] rack", "kind rack"),
    "phases": (TEXT.replace("phases = 3", "phases = 2"), "phases = 2", "1 or 3"),
    "driver": (TEXT.replace('"snmp"', '"smtp"', 1), "driver = 'smtp'", "modbus"),
    "part not in the profile": (TEXT.replace("door1", "door9"), "parts.door9", "door1"),
    "part of nothing": (TEXT.replace('door1 = "door"', 'door1 = "gate"'), "'gate'", "parts.door1"),
    "poll": (TEXT.replace("poll_s = 5", "poll_s = 0"), "poll_s", "above 0"),
    "secret in clear": (TEXT.replace("poll_s = 5", 'options = { community = "x" }'), "a secret in clear", "store"),
    "secret in the address": (TEXT.replace("10.0.0.1:161", "https://me:word@10.0.0.1"), "a secret in clear", "store"),
    "pue no list": (TEXT.replace("[[pue]]", "[pue]"), "[pue]", "[[pue]]"),
    "no site": (TEXT.replace("[site]", "[place]"), "'place'", "site"),
    "no name": (TEXT.replace('name = "here"', ""), "[site]", "name"),
    "site name": (TEXT.replace('name = "here"', 'name = "Here!"'), "'Here!'", "a-z"),
    "id": (TEXT.replace("[equipment.door]", '[equipment."the door"]'), "'the door' is no name", "a-z"),
    "no table": ("device = 3\n" + TEXT.replace("[device.card]", "[x]"), "'x'", "device"),
    "device no table": ('[site]\nname = "a"\n[equipment]\nups = 3\n', "[equipment.ups] is no table", "line"),
    "equipment no tables": ('equipment = 3\n[site]\nname = "a"\n', "is no table of tables", "[equipment.NAME]"),
    "no equipment": ('[site]\nname = "a"\n', "[equipment.NAME]", "at least one"),
    "no toml": ("= 3", "is not TOML", "site.toml"),
    "two devices, one point": (
        TEXT + '\n[device.other]\ndriver = "snmp"\naddress = "x:1"\nprofile = "any"\nequipment = "ups"\n',
        "[device.other] gives ups.power, as card does already",
        "another piece",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_with_its_place_and_what_is_expected(case: str) -> None:
    text, place, expected = WRONG[case]
    with pytest.raises(Rejected) as refused:
        parse(text)
    assert place in str(refused.value), str(refused.value)
    assert expected in str(refused.value), str(refused.value)
    assert "word@" not in str(refused.value)


def test_a_file_that_cannot_be_read_or_names_no_profile(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"none\.toml cannot be read"):
        load_site_file(tmp_path / "none.toml")
    (tmp_path / "site.toml").write_bytes(b"\xff")
    with pytest.raises(Rejected, match="not UTF-8"):
        load_site_file(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(Rejected, match=r"\[device\.card\]: the driver snmp has no profile 'any_ups'"):
        load_site_file(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text(TEXT.replace('"any_ups"', '"mine.toml"'), encoding="utf-8")
    (tmp_path / "mine.toml").write_text('name = "mine"\ndriver = "nut"\ntitle = "t"\npoints = []\n', encoding="utf-8")
    with pytest.raises(Rejected, match="is for nut"):
        load_site_file(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text("x" * (5 << 20), encoding="utf-8")
    with pytest.raises(Rejected, match="at most"):
        load_site_file(tmp_path / "site.toml")


@pytest.mark.parametrize("name", ["container", "cabinet"])
def test_the_examples_have_no_errors_and_their_contracts_are_known(name: str) -> None:
    missing = [driver for driver in ("modbus", "nut", "redfish") if not list_profiles(driver)]
    if missing:
        pytest.skip(f"the equipment drivers {', '.join(missing)} are not here")
    site = load_site_file(EXAMPLES / f"site-{name}.toml")
    findings = check_site(site.model, site.plan)
    assert not [one for one in findings if one.severity is Severity.ERROR]
    assert all(one.mode is ActuatorMode.OBSERVE for one in site.plan.actuators)
    if name == "container":
        assert findings == (), "what has a second one of everything has no warnings either"
    assert site.plan.contract is not None
    assert site.plan.contract.tariff in load_tariff_book().names
