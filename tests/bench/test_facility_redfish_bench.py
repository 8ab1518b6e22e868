"""The bench of the Redfish driver measures what it says: every point is read and good, over pinned HTTPS if it can."""

import shutil

from bench.facility_redfish import run


def test_a_round_is_measured_on_both_sides():
    found, twins_s = run(is_tls=shutil.which("openssl") is not None, repeats=2, rounds=1)
    assert len(found) == 2
    assert min(found) > 0
    assert twins_s > 0
