"""Fake NPUs: cards whose readings are computed from the processes that carry their name, and from files of the test.

An engine on a fake card has the card's name in its environment, so that a test can see in /proc which processes are
on it, whatever the node program believes. No vendor is played: the twins of `madang.chip` do that.

Run as a program it is a node program whose chip drivers are these: `fake_npus.py --config FILE`, where the folder of
FILE holds `npus.json` (the cards) and `npu_state.json` (what a test does to them).
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec

from madang.chip.contract import ChipGrant
from madang.core import NodeId
from madang.model import Chip, ChipHealth
from madang.node.program import NodeProgram
from madang.node.settings import NodeSettings
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.settings import load_settings
from madang.runtime.telemetry import EventLog

VARIABLE = "FAKE_NPUS"
_LOOKS = 20
"""A process that is being started shows its parent's environment for a moment; after so many looks it is a stranger."""


class Card(msgspec.Struct, frozen=True):
    """One fake chip as a test describes it."""

    chip_id: str
    kind: str
    model: str = "fake"
    memory_bytes: int = 48 * 1024**3


class CardState(msgspec.Struct, frozen=True):
    """What a test does to a card: memory that dead engines left, a bad health, a tool that does not say the memory."""

    left_bytes: int = 0
    health: ChipHealth = ChipHealth.OK
    reason: str = ""
    is_blind: bool = False


def find_engines(folder, strangers=None):
    """Return `{card: {pid, …}}`: which live processes of this folder's node are on which cards, shims left out.

    `strangers` counts looks at processes that turned out to be others', which are not looked at for ever.
    """
    found = {}
    mark = f"{folder}:".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or (strangers is not None and strangers.get(entry, 0) >= _LOOKS):
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                values = [v for v in file.read().split(b"\0") if v.startswith(f"{VARIABLE}=".encode())]
            if not values:
                if strangers is not None:
                    strangers[entry] = strangers.get(entry, 0) + 1
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                is_shim = b"/shim.py" in file.read()
            with open(f"/proc/{entry}/stat", "rb") as file:
                is_dead = file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except OSError:
            continue
        named = values[0].partition(b"=")[2]
        if is_shim or is_dead or not named.startswith(mark):
            continue
        for card in named.removeprefix(mark).decode().split(","):
            found.setdefault(card, set()).add(int(entry))
    return found


class FakeNpuDriver:
    """All fake cards of one kind on one node."""

    def __init__(self, kind, node, folder):
        self.kind = kind
        self._node = node
        self._folder = folder
        self._clock = SystemClock()

    def _cards(self):
        cards = msgspec.json.decode((self._folder / "npus.json").read_bytes(), type=list[Card])
        return [card for card in cards if card.kind == self.kind]

    async def read(self):
        states = read_states(self._folder)
        engines = await asyncio.to_thread(find_engines, self._folder)
        chips = []
        for card in sorted(self._cards(), key=lambda card: card.chip_id):
            state = states.get(card.chip_id, CardState())
            busy = card.memory_bytes * 9 // 10 if card.chip_id in engines else 0
            free = None if state.is_blind else card.memory_bytes - max(busy, state.left_bytes)
            chips.append(
                Chip(
                    **{name: getattr(card, name) for name in card.__struct_fields__},
                    node=NodeId(self._node),
                    memory_free_bytes=free,
                    health=state.health,
                    reason=state.reason,
                    is_simulated=True,
                    observed_at_s=self._clock.wall_s(),
                )
            )
        return tuple(chips)

    def grant(self, chip_ids):
        return ChipGrant(
            devices=tuple(f"{self.kind}:{chip_id}" for chip_id in chip_ids),
            env={VARIABLE: f"{self._folder}:{','.join(chip_ids)}"},
        )


def read_states(folder):
    path = folder / "npu_state.json"
    return msgspec.json.decode(path.read_bytes(), type=dict[str, CardState]) if path.exists() else {}


def write_states(folder, **states):
    """Change what is done to cards."""
    old = {name: msgspec.to_builtins(state) for name, state in read_states(folder).items()}
    temporary = folder / "npu_state.json.new"
    temporary.write_text(json.dumps({**old, **states}), encoding="utf-8")
    temporary.replace(folder / "npu_state.json")


def main(config):
    folder = config.parent
    settings = load_settings(NodeSettings, config, env_prefix="MADANG_NODE_")
    kinds = sorted({card["kind"] for card in json.loads((folder / "npus.json").read_text(encoding="utf-8"))})
    clock = SystemClock()
    log = EventLog(clock, program="node")
    drivers = tuple(FakeNpuDriver(kind, settings.name, folder) for kind in kinds)

    async def run():
        return await NodeProgram(settings, clock, SystemEntropy(), log, drivers).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[sys.argv.index("--config") + 1])))
