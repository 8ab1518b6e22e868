"""A real node program on a simulated machine: the twins of chips show it, the twins of engines open its devices.

What the machine shows follows what is: a device is occupied while some process has it open, which only the kernel
says. The site's part is its own policy, called with what the node observed.
"""

import json
import re

from tests.engine.vendor_replicas import FURIOSA_HERE, VLLM_HERE
from tests.node.artifact_sources import file_of
from tests.node.node_lab import NodeLab

from madang.chip.furiosa.twin import FuriosaTwin
from madang.chip.rebellions.twin import RebellionsTwin
from madang.core import NodeId, ServiceName
from madang.engine.furiosa_llm.codec import parse_devices
from madang.model import Artifact, Assignment, CatalogEntry, ReplicaPhase, Service, Task
from madang.policy.placement import NodeView, plan_placement

GIB = 1024**3
NODE = NodeId("daegu-1")


class TwinLab(NodeLab):
    """A node with cards of FuriosaAI, and of Rebellions if told so."""

    def __init__(self, folder, *, rngd, atoms=0, **settings):
        machine = folder / "machine"
        machine.mkdir()
        self.rngd = FuriosaTwin(machine, cards=rngd)
        self.atoms = RebellionsTwin(machine, cards=atoms) if atoms else None
        self.machines = [twin for twin in (self.rngd, self.atoms) if twin is not None]
        for twin in self.machines:
            twin.add_devices()
        kinds = ("furiosa", "rebellions") if atoms else ("furiosa",)
        super().__init__(
            folder,
            chips=tuple(f"{kind}@{machine}" for kind in kinds),
            engine_twins=("furiosa_llm", "vllm"),
            engine_runtimes={"furiosa_llm": FURIOSA_HERE, "vllm": VLLM_HERE},
            **{"engine_probe_s": 2.0, **settings},
        )
        self.models, self.services, self.assignments, self.plans = {}, {}, {}, {}

    def wait(self, is_done, what, **options):
        def look():
            for twin in self.machines:
                twin.follow()
            return is_done()

        return super().wait(look, what, **options)

    # What the site does

    def want(self, name, replicas, engine, *, chips=1, cores=0, memory_bytes=GIB, **behaviour):
        """Ask for replicas of a model that was compiled for so many chips, or cores of one."""
        told = json.dumps({"machine": str(self.rngd.root)} | behaviour)
        if engine == "furiosa_llm":
            kind, sdk, parallelism = "furiosa", "furiosa-2026.4", f"tp{cores or 8 * chips}"
            texts = {"config.json": told, "model.fxb": name}
        else:
            kind, sdk, parallelism = "rebellions", "rebellions-0.12", ""
            shape = {"batch_size": 4, "max_seq_len": 4096, "num_devices": chips}
            texts = {"config.json": told, "rbln_config.json": json.dumps(shape), "prefill.rbln": name}
        self.models[name] = CatalogEntry(
            name=name,
            task=Task.CHAT,
            title=name,
            licence="x",
            artifacts=(
                Artifact(
                    artifact_id="a",
                    engine=engine,
                    chip_kinds=(kind,),
                    files=tuple(self._lay(file_name, text) for file_name, text in texts.items()),
                    memory_bytes=memory_bytes,
                    chips=chips,
                    cores=cores,
                    sdk=sdk,
                    parallelism=parallelism,
                ),
            ),
        )
        self.services[name] = Service(name=ServiceName(name), model=name, slots=2, context_tokens=1024)
        self.assignments[name] = Assignment(service=ServiceName(name), replicas=replicas)

    def _lay(self, name, text):
        file = file_of(text.encode(), name=name)
        (self.stick / file.sha256).write_bytes(text.encode())
        return file

    def place(self, **view):
        """Plan as a site does, and hand the plan over."""
        seen = self.observed()
        node = NodeView(node=NODE, chips=seen.chips, leases=seen.leases, cordons=seen.cordons, **view)
        placement = plan_placement(self.assignments.values(), self.services, self.models, [node], self.plans)
        self.plans = placement.replicas
        assert self.plan(*placement.replicas[NODE]).status_code == 200
        return placement

    @property
    def given(self):
        """Return what the plan gives to whom."""
        return {spec.replica_id: (spec.chip_ids, spec.cores) for spec in self.plans[NODE]}

    # What is

    def phase(self, replica_id):
        return next((one.phase for one in self.observed().replicas if one.replica_id == replica_id), None)

    def wait_all_ready(self, *replica_ids, after=()):
        """Return the replicas by id once these, or all of the plan, are ready with engines that `after` had not."""
        wanted = set(replica_ids or self.given)
        old = {one.pid for one in after}

        def look():
            ready = [one for one in self.observed().replicas if one.phase is ReplicaPhase.READY and one.pid not in old]
            found = {one.replica_id: one for one in ready}
            return found if wanted <= found.keys() else None

        return self.wait(look, f"{', '.join(sorted(wanted))} are ready")

    def chip(self, number):
        return self.observed().chips[number]

    def opened(self):
        """Return which process has which PE of which card open, as the kernel says: {(card, pe): pid}."""
        found = {}
        for card in range(len(self.rngd.cards)):
            for pe in range(8):
                pid = self.rngd.machine.find_holder(f"/dev/rngd/npu{card}mgmt", pe)
                found |= {(card, pe): pid} if pid else {}
        return found

    def told_devices(self, pid):
        """Return {(card, pe)} that an engine's command line names."""
        words = self._read(pid, "cmdline")
        devices = words[words.index("--devices") + 1].split(",")
        return {(card, pe) for card, pes in parse_devices(tuple(devices)) for pe in pes}

    def told_numbers(self, pid):
        """Return the devices that an engine's environment names."""
        values = dict(word.split("=", 1) for word in self._read(pid, "environ") if "=" in word)
        assert values["RBLN_DEVICES"] == values["RBLN_VISIBLE_DEVICES"]
        return tuple(int(number) for number in values["RBLN_DEVICES"].split(","))

    @staticmethod
    def _read(pid, name):
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return [word.decode() for word in file.read().split(b"\0")]

    def assert_never_busy(self):
        """No engine was ever started on a device that another one had open."""
        said = (self.folder / "node.log").read_text(encoding="utf-8")
        assert not re.search(r"resource busy|is in use\b", said), said[-3000:]
