"""Which ways to other sites are private: TLS, this machine, or the operator's word; nothing else."""

import pytest

from madang.model import DataClass
from madang.policy.links import most_over_link, most_over_url


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_this_machine_in_its_plainest_spellings_is_private(host: str) -> None:
    assert most_over_link(is_tls=False, host=host, is_encrypted=False) is DataClass.CLASSIFIED


@pytest.mark.parametrize(
    "host",
    [
        *("10.8.0.2", "192.168.0.4", "gumi.example", "0.0.0.0", "::", "", "fe80::1", "localhost.example"),
        *("127.1", "2130706433", "0x7f000001", "::ffff:127.0.0.1", "localhost.", "127.0.0.1.example", "127.0.0.256"),
    ],
)
def test_any_other_host_is_elsewhere(host: str) -> None:
    assert most_over_link(is_tls=False, host=host, is_encrypted=False) is DataClass.OPEN
    assert most_over_link(is_tls=True, host=host, is_encrypted=False) is DataClass.CLASSIFIED
    assert most_over_link(is_tls=False, host=host, is_encrypted=True) is DataClass.CLASSIFIED


@pytest.mark.parametrize(
    ("url", "most"),
    [
        ("http://gumi.example:7714", DataClass.OPEN),
        ("https://gumi.example:7444", DataClass.CLASSIFIED),
        ("http://127.0.0.1:7714", DataClass.CLASSIFIED),
        ("http://[::1]:7714", DataClass.CLASSIFIED),
        ("http://[::1", DataClass.OPEN),
        ("", DataClass.OPEN),
    ],
)
def test_what_people_are_shown_of_a_url(url: str, most: DataClass) -> None:
    assert most_over_url(url, is_encrypted=False) is most
    assert most_over_url("http://gumi.example", is_encrypted=True) is DataClass.CLASSIFIED
