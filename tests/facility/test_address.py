"""Addresses as site files write them."""

import pytest

from madang.core import Rejected
from madang.facility.address import split_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.5:502", ("10.0.0.5", 502)),
        ("pdu-a", ("pdu-a", 161)),
        ("[fd00::5]:161", ("fd00::5", 161)),
        ("[fd00::5]", ("fd00::5", 161)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_host_and_port(address, expected):
    assert split_address(address, 161) == expected


@pytest.mark.parametrize(
    "address", ["", ":502", "a:b", "a:65536", "fd00::5", "[fd00::5", "[fd00::5]502", "a:-1", "a:5:6"]
)
def test_anything_else_is_rejected(address):
    with pytest.raises(Rejected, match="host:port"):
        split_address(address, 161)
