"""The vllm engine's texts: what a folder compiled for Rebellions chips says of itself, and names of devices.

Owns both. Refuses to open anything. Standard library and our errors only.

`rbln_config.json` is what optimum-rbln writes beside compiled programs (optimum/rbln/configuration_utils.py and
utils/optimum/rbln_params.py of vllm-rbln, 0.12.0): batch size and longest sequence at the top, or in `language_model`
or `text_model` where a model takes images; `kvcache_partition_len` stood for `kvcache_block_size` before.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from madang.core import Rejected

CONFIG_FILE = "rbln_config.json"
_INSIDE = ("language_model", "text_model")
_PARALLEL = ("num_devices", "tensor_parallel_size")
_DEVICE = re.compile(r"(?:rbln)?(\d{1,4})\Z")
_MOST = 1 << 31


@dataclass(frozen=True)
class CompiledShape:
    """What a compiled folder can take.

    Attributes:
        batch: requests at a time.
        context_tokens: longest sequence.
        devices: logical devices that it was split over.
    """

    batch: int
    context_tokens: int
    devices: int


def parse_rbln_config(data: bytes) -> CompiledShape:
    """Return the compiled shape; raises Rejected naming what is missing."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{CONFIG_FILE} is no JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise Rejected(f"{CONFIG_FILE}: expected an object")
    inner: dict[str, Any] = next((value[name] for name in _INSIDE if isinstance(value.get(name), dict)), {})
    batch = _number(value, inner, ("batch_size",))
    context = _number(value, inner, ("max_seq_len", "dec_max_seq_len"))
    if batch is None or context is None:
        missing = "batch_size" if batch is None else "max_seq_len"
        raise Rejected(f"{CONFIG_FILE}: expected {missing}, a positive number, at the top or in {' or '.join(_INSIDE)}")
    return CompiledShape(batch, context, _number(value, inner, _PARALLEL) or 1)


def _number(value: dict[str, Any], inner: dict[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        for place in (value, inner):
            found = place.get(name)
            if type(found) is int and 0 < found <= _MOST:
                return found
    return None


def rbln_numbers(devices: tuple[str, ...]) -> str:
    """Return `RBLN_VISIBLE_DEVICES` for devices named `rbln3` or `3`; raises Rejected for other names."""
    found = [_DEVICE.match(device) for device in devices]
    if not found or None in found:
        raise Rejected(f"expected devices named rblnN, found {', '.join(devices) or 'none'}")
    return ",".join(match[1] for match in found if match is not None)
