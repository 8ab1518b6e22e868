"""The contract that every chip driver keeps, as tests to inherit.

Owns what `madang.chip.contract` promises. Refuses to know any driver: a subclass gives one that has been read at
least once and has chips. Run against drivers on real machines and on their twins.
"""

# ruff: noqa: D102  the name of a test is its sentence

import asyncio
import math
import re
from typing import ClassVar

import msgspec

from madang.chip.contract import ChipDriver, CoreDriver
from madang.core import ChipId, Conflict
from madang.model import Chip, ChipHealth

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UNREAD = (ChipHealth.UNKNOWN, ChipHealth.FAILED)


_Readings = tuple[ChipDriver, tuple[Chip, ...], tuple[Chip, ...]]


class ChipDriverContract:
    """Inherit, and give `make_driver`."""

    is_simulated: bool
    _readings: ClassVar[_Readings]

    def make_driver(self) -> ChipDriver:
        """Return a driver of a node that has such chips."""
        raise NotImplementedError

    def read_twice(self) -> tuple[ChipDriver, tuple[Chip, ...], tuple[Chip, ...]]:
        """Return a driver and two readings of it, made once for each class: no test of this suite changes anything."""
        known: _Readings | None = type(self).__dict__.get("_readings")
        if known is None:
            driver = self.make_driver()
            known = driver, asyncio.run(driver.read()), asyncio.run(driver.read())
            type(self)._readings = known
        return known

    def test_chips_have_stable_unique_ids_and_the_drivers_kind(self) -> None:
        driver, first, second = self.read_twice()
        assert first
        assert [chip.chip_id for chip in first] == [chip.chip_id for chip in second]
        assert len({chip.chip_id for chip in first}) == len(first)
        assert list(first) == sorted(first, key=lambda chip: chip.chip_id)
        assert {chip.kind for chip in first} == {driver.kind}

    def test_quantities_are_plausible_or_absent(self) -> None:
        _, _, chips = self.read_twice()
        for chip in chips:
            assert chip.memory_bytes > 0 or (chip.memory_bytes == 0 and chip.health in _UNREAD)
            assert chip.engines_max >= 1
            assert chip.memory_free_bytes is None or 0 <= chip.memory_free_bytes <= chip.memory_bytes
            assert chip.utilisation is None or 0 <= chip.utilisation <= 1
            assert chip.temperature_c is None or -40 <= chip.temperature_c <= 150
            assert chip.power_w is None or (math.isfinite(chip.power_w) and chip.power_w >= 0)
            assert chip.observed_at_s > 0
            assert bool(chip.reason) == (chip.health is not ChipHealth.OK)

    def test_a_reading_says_whether_it_is_simulated(self) -> None:
        _, chips, _ = self.read_twice()
        assert {chip.is_simulated for chip in chips} == {self.is_simulated}

    def test_a_reading_survives_the_wire(self) -> None:
        _, chips, _ = self.read_twice()
        assert msgspec.json.decode(msgspec.json.encode(chips), type=tuple[Chip, ...]) == chips

    def test_identity_and_topology_are_well_formed_or_absent(self) -> None:
        _, _, chips = self.read_twice()
        for chip in chips:
            assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", chip.chip_id)
            assert not chip.pci_address or _PCI_ADDRESS.fullmatch(chip.pci_address)
            assert chip.numa_node is None or chip.numa_node >= 0
            assert chip.cores >= 1
            for cores in chip.core_sets:
                assert list(cores) == sorted(set(cores))
                assert cores
                assert 0 <= cores[0] <= cores[-1] < chip.cores
            assert chip.cores_occupied is None or set(chip.cores_occupied) <= set(range(chip.cores))
            assert chip.clock_mhz is None or chip.clock_mhz > 0
            assert chip.power_w_max is None or chip.power_w_max > 0
            assert all(chip.throttle_reasons)

    def test_a_grant_names_what_an_engine_needs(self) -> None:
        driver, chips, _ = self.read_twice()
        first = chips[0]
        card = tuple(chip.chip_id for chip in chips if chip is first or (first.group and chip.group == first.group))
        grant = driver.grant(card)
        assert len(grant.devices) == len(card)
        assert grant.cpu_threads >= 1
        assert list(grant.cpus) == sorted(set(grant.cpus))

    def test_parts_are_granted_as_core_sets_say_and_in_no_other_way(self) -> None:
        driver, chips, _ = self.read_twice()
        assert isinstance(driver, CoreDriver) == any(chip.core_sets for chip in chips)
        if not isinstance(driver, CoreDriver):
            return
        for chip in chips:
            named = {cores: driver.grant_cores(chip.chip_id, cores).devices for cores in chip.core_sets}
            assert len(set(named.values())) == len(named)
            whole = tuple(range(chip.cores))
            assert named.get(whole, driver.grant((chip.chip_id,)).devices) == driver.grant((chip.chip_id,)).devices
            for cores in ((), (chip.cores,), (0, 0)):
                try:
                    driver.grant_cores(chip.chip_id, cores)
                except Conflict:
                    continue
                raise AssertionError(f"granted cores {cores} of {chip.chip_id}")

    def test_chips_that_are_not_there_are_not_granted(self) -> None:
        driver, _, _ = self.read_twice()
        for chip_ids in ((), (ChipId("no-such-chip"),)):
            try:
                driver.grant(chip_ids)
            except Conflict:
                continue
            raise AssertionError(f"granted {chip_ids}")
