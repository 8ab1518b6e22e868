"""A real node program with fake cards, and a witness that asks /proc all the while which of its engines are where."""

import threading

import msgspec
from tests.node import fake_npus
from tests.node.fake_npus import find_engines
from tests.node.node_lab import NodeLab

from madang.core import ChipId


class NpuLab(NodeLab):
    """A node with fake cards, and a witness that looks at them in /proc."""

    program = staticmethod(fake_npus.main)

    def __init__(self, folder, *cards, **settings):
        super().__init__(folder, **settings)
        (folder / "npus.json").write_bytes(msgspec.json.encode(cards))
        self.crowded = []
        self._is_over = threading.Event()
        self._witness = threading.Thread(target=self._watch)
        self._witness.start()

    def _watch(self):
        strangers = {}
        while not self._is_over.is_set():
            self.crowded += [
                (card, pids) for card, pids in find_engines(self.folder, strangers).items() if len(pids) > 1
            ]
            self._is_over.wait(0.03)

    def close(self):
        super().close()
        self._is_over.set()
        self._witness.join()

    def on(self, name, *chip_ids, **behaviour):
        spec = self.spec(name, **behaviour)
        artifact = msgspec.structs.replace(spec.artifact, chip_kinds=("npu",))
        chips = tuple(ChipId(chip_id) for chip_id in chip_ids)
        return msgspec.structs.replace(spec, artifact=artifact, chip_ids=chips)

    def leases(self):
        return {lease.holder.split("-")[1]: lease for lease in self.observed().leases}

    def cordons(self):
        return {cordon.chip_id: cordon for cordon in self.observed().cordons}
