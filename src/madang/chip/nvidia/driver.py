"""Reads NVIDIA GPUs through NVML and the PCI bus.

Owns which functions of NVML are called. Refuses to interpret what they return (the codec does), to import the
vendor's package before a GPU is on the bus, and to hang with NVML. Called by the node program every few seconds.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from madang.chip.contract import ChipGrant
from madang.chip.host import Host, Patience
from madang.chip.inventory import Inventory, grant
from madang.chip.manifest import load_manifest
from madang.chip.nvidia import codec
from madang.chip.pci import PciFunction, find_functions, is_twin_machine
from madang.core import ChipId, Clock, NodeId, Unavailable
from madang.model import Chip

VENDOR = "10de"
_DISPLAY_CLASS = "03"
_GPUS_MAX = 64


def load_nvml() -> Any:
    """Return the vendor's package; raises Unavailable where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise Unavailable("nvidia-ml-py is not installed", next_step="pip install nvidia-ml-py") from error


def collect(nvml: Any) -> tuple[codec.Raw, ...]:
    """Return what NVML says of every GPU; raises Unavailable where it does not work at all."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise Unavailable(f"NVML cannot be initialised: {error}") from error
    try:
        count = min(int(nvml.nvmlDeviceGetCount()), _GPUS_MAX)
        system = {
            "driver": _try(nvml, lambda: nvml.nvmlSystemGetDriverVersion()),
            "cuda": _try(nvml, lambda: nvml.nvmlSystemGetCudaDriverVersion_v2()),
        }
        return tuple(raw for index in range(count) if (raw := _collect_gpu(nvml, index, system)) is not None)
    except nvml.NVMLError as error:
        raise Unavailable(f"NVML does not list the GPUs: {error}") from error
    finally:
        # Anew each time: a GPU that was lost, or came back, is seen only by a fresh session.
        _try(nvml, lambda: nvml.nvmlShutdown())


def _collect_gpu(nvml: Any, index: int, system: Mapping[str, object]) -> codec.Raw | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:
        # Without a handle it has no identity either; the PCI bus shows where it is.
        return None
    raw: dict[str, object] = dict(system)
    for name, read in _reads(nvml, handle):
        try:
            raw[name] = _plain(read())
        except nvml.NVMLError as error:
            raw[name] = None
            if getattr(error, "value", None) == nvml.NVML_ERROR_GPU_IS_LOST:
                raw["is_lost"] = True
        except AttributeError:
            raw[name] = None  # older packages lack newer functions
    return raw


def _reads(nvml: Any, handle: Any) -> tuple[tuple[str, Callable[[], object]], ...]:
    """Return what is asked of one GPU, by the codec's names."""
    return (
        ("name", lambda: nvml.nvmlDeviceGetName(handle)),
        ("serial", lambda: nvml.nvmlDeviceGetSerial(handle)),
        ("uuid", lambda: nvml.nvmlDeviceGetUUID(handle)),
        ("bus_id", lambda: nvml.nvmlDeviceGetPciInfo(handle).busId),
        ("firmware", lambda: nvml.nvmlDeviceGetVbiosVersion(handle)),
        ("memory_total", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        ("memory_free", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).free),
        ("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        ("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
        ("power_limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)),
        ("utilisation", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        ("clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        ("clock_events", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        (
            "ecc_uncorrected",
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
        ),
        ("remap_pending", lambda: nvml.nvmlDeviceGetRemappedRows(handle)[2]),
        ("remap_failure", lambda: nvml.nvmlDeviceGetRemappedRows(handle)[3]),
    )


def _try(nvml: Any, read: Callable[[], object]) -> object:
    try:
        return _plain(read())
    except (nvml.NVMLError, AttributeError):
        return None


def _plain(value: object) -> object:
    """Return bytes, which older packages give, as text."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


class NvidiaDriver:
    """The nvidia driver of one node.

    Args:
        node: whose chips these are.
        clock: time.
        host: the machine.
        load: gives the package `pynvml`; called only when a GPU is on the bus.
    """

    kind = codec.KIND

    def __init__(self, node: NodeId, clock: Clock, host: Host, load: Callable[[], Any] = load_nvml) -> None:
        self._node = node
        self._clock = clock
        self._host = host
        self._load = load
        self._manifest = load_manifest(__package__ or "madang.chip.nvidia")
        self._files = Patience("reading sysfs of NVIDIA GPUs")
        self._nvml = Patience("NVML")
        self._inventory = Inventory(clock)

    async def read(self) -> tuple[Chip, ...]:
        """Return every GPU; one that is gone is failed, and one that cannot be asked is unknown."""
        functions: tuple[PciFunction, ...] = ()
        raws: tuple[codec.Raw, ...] | None = None
        trouble, is_simulated = "", False
        try:
            functions, is_simulated = await self._files.call(self._read_files)
            if functions:
                raws = await self._nvml.call(lambda: collect(self._load()))
        except Unavailable as error:
            trouble = error.message
        wall_s = self._clock.wall_s()
        seen = codec.read_gpus(
            raws, trouble, functions, self._manifest, self._node, wall_s, is_twin_machine=is_simulated
        )
        # The chips that the bus alone shows now are those that NVML showed there before.
        before = tuple(gpu.chip for gpu in self._inventory.seen)
        seen = tuple(codec.recognise(gpu, before) for gpu in seen)
        return self._inventory.take(seen, wall_s, functions=functions, trouble=trouble)

    def grant(self, chip_ids: tuple[ChipId, ...]) -> ChipGrant:
        """Return the UUID of each GPU, as CUDA_VISIBLE_DEVICES takes them, and the CPUs near to all of them."""
        gpus = self._inventory.find(chip_ids)
        uuids = ",".join(gpu.name for gpu in gpus)
        return grant(gpus, env={"CUDA_VISIBLE_DEVICES": uuids, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})

    def _read_files(self) -> tuple[tuple[PciFunction, ...], bool]:
        found = find_functions(self._host, VENDOR)
        gpus = tuple(function for function in found if function.class_code.startswith(_DISPLAY_CLASS))
        return gpus, is_twin_machine(self._host)
