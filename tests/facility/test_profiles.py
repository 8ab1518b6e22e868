"""Every profile that ships can be used as it is: it loads, its points are unique, plausible and sourced."""

import pytest

from madang.core import Rejected
from madang.facility.contract import Device, Secret
from madang.facility.profile import list_profiles, load_profile
from madang.facility.roster import DRIVERS, make_driver
from madang.model import PointKind, Quantity

PROFILES = [(driver, name) for driver in DRIVERS for name in list_profiles(driver)]
SECRET = Secret(user="u", words={"community": "c-o-m-m", "password": "p", "auth_key": "a" * 8, "priv_key": "p" * 8})
# Quantities whose smallest and largest plausible value nobody can state.
UNBOUNDED = {Quantity.COUNT, Quantity.STATE}


@pytest.mark.parametrize(("driver", "name"), PROFILES)
def test_a_profile_says_what_it_is_and_each_point_what_it_means(driver, name):
    profile = load_profile(driver, name)
    assert (profile.name, profile.driver) == (name, driver)
    assert profile.title
    assert "twin only" in profile.verified_on or "recording" in profile.verified_on
    names = [point.name for point in profile.points]
    assert len(names) == len(set(names))
    for point in profile.points:
        assert point.source, f"{point.name} has no source"
        assert point.scale != 0, point.name
        assert point.valid is None or point.valid[0] < point.valid[1], point.name
        assert point.valid is not None or point.quantity in UNBOUNDED, f"{point.name} has no range"
        assert bool(point.states) == (point.quantity is Quantity.STATE), point.name
        assert all(number.lstrip("-").isdigit() for number in point.states), point.name
        if point.kind is PointKind.ALARM:
            assert {"clear", "active"} <= set(point.states.values()), point.name


@pytest.mark.parametrize(("driver", "name"), [one for one in PROFILES if one[0] in ("modbus", "snmp")])
def test_a_driver_takes_every_point_of_a_profile(driver, name):
    profile = load_profile(driver, name)
    parts = {point.part: f"part_{point.part}" for point in profile.points if point.part}
    options = {"index.wan": 1, "index.wan_backup": 2} if name == "switch_wan" else {}
    device = Device(
        device_id="unit1",
        driver=driver,
        address="127.0.0.1:9",
        profile=name,
        equipment="unit1",
        parts=parts,
        options=options,
    )
    make_driver(device, profile, SECRET, None)


def test_an_unknown_profile_is_named_beside_those_that_there_are():
    with pytest.raises(Rejected, match="cooling_unit"):
        load_profile("modbus", "no_such_profile")
