"""The in-flight table: one writer a file, readers sum the files of the living."""

from pathlib import Path

import pytest

from madang.core import Unavailable
from madang.gateway.inflight import FILE_BYTES, INFLIGHT_SLOTS, InFlightTable
from madang.site.segments import sum_in_flight


def test_workers_see_each_other(tmp_path: Path) -> None:
    one, two = InFlightTable(tmp_path, 0), InFlightTable(tmp_path, 1)
    one.refresh()
    two.refresh()
    one.add(3, 1)
    one.add(3, 1)
    two.add(3, 1)
    two.add(INFLIGHT_SLOTS - 1, 1)
    assert (one.total(3), two.total(3), one.total(INFLIGHT_SLOTS - 1)) == (3, 3, 1)
    assert sum_in_flight(tmp_path)[3] == 3, "the site process reads the same"
    two.add(3, -1)
    two.add(3, -1)
    assert one.total(3) == 2, "never below zero"
    two.close()
    one.refresh()
    assert one.total(3) == 2
    one.close()
    assert sum_in_flight(tmp_path)[3] == 0
    assert (tmp_path / "inflight-0.bin").stat().st_size == FILE_BYTES


def test_slots_that_are_none_count_nothing(tmp_path: Path) -> None:
    table = InFlightTable(tmp_path, 0)
    for slot in (-1, INFLIGHT_SLOTS):
        table.add(slot, 1)
        assert table.total(slot) == 0
    table.close()


def test_the_file_of_the_dead_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "inflight-7.bin").write_bytes(b"\x09\0\0\0" * INFLIGHT_SLOTS)
    (tmp_path / "inflight-8.bin").write_bytes(b"short")
    table = InFlightTable(tmp_path, 0)
    table.refresh()
    assert table.total(0) == 0
    table.close()


def test_two_workers_of_one_number(tmp_path: Path) -> None:
    table = InFlightTable(tmp_path, 0)
    with pytest.raises(Unavailable, match=r"inflight-0\.bin"):
        InFlightTable(tmp_path, 0)
    table.close()
    InFlightTable(tmp_path, 0).close()
