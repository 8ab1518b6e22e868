"""Simulated NVIDIA GPUs: the PCI bus, and NVML as its Python package presents it.

Owns what the functions return and their faults. Refuses to know the driver; a test compares the names, constants
and errors with the package itself. Names of GPUs and serials begin with `MadangTwin`.
"""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from madang.chip.twin_machine import TwinMachine
from madang.chip.values import TWIN_VENDOR


class TwinNvmlError(Exception):
    """Plays pynvml.NVMLError."""

    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class TwinGpu(msgspec.Struct, kw_only=True):
    """One simulated GPU; readings that are None are not supported by it.

    Attributes:
        serial, uuid, bus_id: who and where it is.
        temperature, power, power_limit, clock, utilisation, memory_used: °C, mW, mW, MHz, percent, bytes.
        clock_events: mask of nvmlClocksEventReason.
        ecc_uncorrected: errors since the driver was loaded.
        remap_failure: 1 when a broken memory row could not be replaced.
        is_lost: whether it fell off the bus.
    """

    serial: str
    uuid: str
    bus_id: str
    temperature: int | None = 41
    power: int | None = 62_000
    power_limit: int | None = 300_000
    clock: int | None = 1740
    utilisation: int | None = 0
    memory_used: int = 0
    clock_events: int = 0x1
    ecc_uncorrected: int | None = 0
    remap_failure: int = 0
    is_lost: bool = False


class NvidiaTwin:
    """Simulated GPUs of one machine; the object itself plays the module `pynvml`.

    Args:
        root: the machine's folder; other twins may share it.
        gpus: how many.
    """

    # The names and values of pynvml.
    NVMLError = TwinNvmlError
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    memory_bytes = 48 * 1024**3

    def __init__(self, root: Path, *, gpus: int = 1) -> None:
        self.machine = TwinMachine(root)
        self.is_loaded = True
        self.hang_s = 0.0
        self.gpus = [
            TwinGpu(
                serial=f"{TWIN_VENDOR}-{number:04d}",
                uuid=f"GPU-00000000-0000-4000-8000-{number:012d}",
                bus_id=f"00000000:{0xC1 + number:02X}:00.0",
            )
            for number in range(gpus)
        ]
        for gpu in self.gpus:
            address = gpu.bus_id[4:].lower()
            self.machine.add_pci(address, "10de:26b9", numa_node=0, cpus="0-1", class_code="0x030200")

    # What pynvml offers, as far as the driver calls it

    def nvmlInit(self) -> None:  # noqa: N802  the vendor's name
        """Begin a session."""
        if self.hang_s:
            time.sleep(self.hang_s)
        if not self.is_loaded:
            raise TwinNvmlError(self.NVML_ERROR_DRIVER_NOT_LOADED)

    def nvmlShutdown(self) -> None:  # noqa: N802
        """End the session."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Return how many GPUs there are."""
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        """Return the driver's version."""
        return "580.95.05"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        """Return 1000 times the major version plus 10 times the minor."""
        return 13000

    def nvmlDeviceGetHandleByIndex(self, index: int) -> TwinGpu:  # noqa: N802
        """Return a handle."""
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: TwinGpu) -> str:  # noqa: N802
        """Return the product."""
        self._reach(handle)
        return f"{TWIN_VENDOR} L40S"

    def nvmlDeviceGetSerial(self, handle: TwinGpu) -> str:  # noqa: N802
        """Return the board's serial."""
        self._reach(handle)
        return handle.serial or self._refuse()

    def nvmlDeviceGetUUID(self, handle: TwinGpu) -> str:  # noqa: N802
        """Return the GPU's UUID."""
        self._reach(handle)
        return handle.uuid

    def nvmlDeviceGetPciInfo(self, handle: TwinGpu) -> Any:  # noqa: N802
        """Return where it is."""
        return SimpleNamespace(busId=handle.bus_id)

    def nvmlDeviceGetVbiosVersion(self, handle: TwinGpu) -> str:  # noqa: N802
        """Return the firmware's version."""
        self._reach(handle)
        return "95.02.66.00.02"

    def nvmlDeviceGetMemoryInfo(self, handle: TwinGpu) -> Any:  # noqa: N802
        """Return bytes in all, free and used."""
        self._reach(handle)
        free = self.memory_bytes - handle.memory_used
        return SimpleNamespace(total=self.memory_bytes, free=free, used=handle.memory_used)

    def nvmlDeviceGetTemperature(self, handle: TwinGpu, sensor: int) -> int:  # noqa: N802
        """Return degrees Celsius."""
        return self._value(handle, handle.temperature if sensor == self.NVML_TEMPERATURE_GPU else None)

    def nvmlDeviceGetPowerUsage(self, handle: TwinGpu) -> int:  # noqa: N802
        """Return milliwatts."""
        return self._value(handle, handle.power)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: TwinGpu) -> int:  # noqa: N802
        """Return milliwatts."""
        return self._value(handle, handle.power_limit)

    def nvmlDeviceGetUtilizationRates(self, handle: TwinGpu) -> Any:  # noqa: N802
        """Return percent."""
        return SimpleNamespace(gpu=self._value(handle, handle.utilisation), memory=0)

    def nvmlDeviceGetClockInfo(self, handle: TwinGpu, clock: int) -> int:  # noqa: N802
        """Return MHz."""
        return self._value(handle, handle.clock if clock == self.NVML_CLOCK_SM else None)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: TwinGpu) -> int:  # noqa: N802
        """Return a mask."""
        return self._value(handle, handle.clock_events)

    def nvmlDeviceGetTotalEccErrors(self, handle: TwinGpu, error: int, counter: int) -> int:  # noqa: N802
        """Return a count."""
        is_asked = (error, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return self._value(handle, handle.ecc_uncorrected if is_asked else None)

    def nvmlDeviceGetRemappedRows(self, handle: TwinGpu) -> tuple[int, int, int, int]:  # noqa: N802
        """Return corrected, uncorrected, whether some are pending, whether some failed."""
        self._reach(handle)
        return (0, 0, 0, handle.remap_failure)

    def _reach(self, handle: TwinGpu) -> None:
        if handle.is_lost:
            raise TwinNvmlError(self.NVML_ERROR_GPU_IS_LOST)

    def _value(self, handle: TwinGpu, value: int | None) -> int:
        self._reach(handle)
        return value if value is not None else int(self._refuse())

    def _refuse(self) -> str:
        raise TwinNvmlError(self.NVML_ERROR_NOT_SUPPORTED)
