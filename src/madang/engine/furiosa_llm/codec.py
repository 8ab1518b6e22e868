"""The furiosa_llm engine's texts: names of devices and of parallelism.

Owns both. Refuses to open anything. A device is `npu:0`, a whole card of eight PEs, or `npu:0:4-7`, some of them
(`furiosa_llm/cli/serve.py`, help of `--devices`).
"""

import re

from madang.core import Rejected

PES_PER_CARD = 8
_DEVICE = re.compile(r"npu:(\d{1,4})(?::(\d)(?:-(\d))?)?\Z")
_PARALLELISM = re.compile(r"tp(\d{1,4})(?:[-x]?pp(\d{1,4}))?\Z")


def join_devices(devices: tuple[str, ...]) -> str:
    """Return the value of `--devices`; raises Rejected for none, or for what is no device of Furiosa's."""
    if not devices:
        raise Rejected("no device was granted, and furiosa-llm would take every idle one")
    count_pes(devices)
    return ",".join(devices)


def count_pes(devices: tuple[str, ...]) -> int:
    """Return how many PEs devices have; raises Rejected for what is no device of Furiosa's, or one named twice."""
    return sum(len(pes) for _, pes in parse_devices(devices))


def parse_devices(devices: tuple[str, ...]) -> tuple[tuple[int, range], ...]:
    """Return the number of the card and the PEs of each device; raises as `count_pes` does."""
    found: list[tuple[int, range]] = []
    for device in devices:
        match = _DEVICE.match(device)
        if match is None:
            raise Rejected(f"expected devices npu:N or npu:N:A-B, found {device[:80]!r}")
        card, first = int(match[1]), int(match[2] or 0)
        last = PES_PER_CARD - 1 if match[2] is None else int(match[3] or match[2])
        pes = range(first, last + 1)
        is_taken = any(other == card and set(taken) & set(pes) for other, taken in found)
        if not pes or last >= PES_PER_CARD or is_taken:
            raise Rejected(f"device {device!r}: expected PEs 0 to {PES_PER_CARD - 1}, each once")
        found.append((card, pes))
    return tuple(found)


def parse_parallelism(text: str) -> int | None:
    """Return how many PEs a model was compiled for, None when that is not said; raises Rejected for nonsense."""
    if not text:
        return None
    match = _PARALLELISM.match(text)
    if match is None:
        raise Rejected(f"parallelism {text[:80]!r}: expected tpN, or tpN-ppM")
    return int(match[1]) * int(match[2] or 1)
