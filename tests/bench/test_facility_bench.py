"""The fleet that the bench reads is as large as it claims."""

from bench.facility.fleet import FLEET

from madang.facility.contract import points_of
from madang.facility.profile import load_profile


def count(driver):
    return sum(
        kind.count * len(points_of(load_profile(driver, kind.profile), kind.device("127.0.0.1:9")))
        for kind in FLEET
        if kind.driver == driver
    )


def test_there_are_five_hundred_points_by_snmp_and_four_hundred_by_modbus():
    assert count("snmp") >= 500
    assert count("modbus") >= 400
