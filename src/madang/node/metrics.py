"""The node's metrics: phases and restarts of replicas, readings of chips, artifacts that come and are kept.

Owns their names, but those of artifacts. Refuses to keep numbers: each scrape reads the board and the fetcher. Called
by the admin API.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from madang.model import ChipLeaseState, ReplicaPhase
from madang.node.artifacts import ArtifactFetcher
from madang.node.board import Board
from madang.runtime.artifacts.metrics import collect_room, collect_transfers


class NodeCollector(Collector):
    """Turns the board, and what the fetcher knows, into metrics."""

    def __init__(self, board: Board, fetcher: ArtifactFetcher | None = None) -> None:
        self._board = board
        self._fetcher = fetcher

    def collect(self) -> Iterable[Metric]:
        """Return all of them."""
        yield GaugeMetricFamily(
            "madang_node_plan_generation", "Generation of the accepted plan", value=self._board.generation
        )
        replicas = self._board.replicas
        phases = GaugeMetricFamily("madang_node_replicas", "Replicas by phase", labels=("phase",))
        for phase in ReplicaPhase:
            phases.add_metric((phase.value,), sum(replica.phase is phase for replica in replicas))
        yield phases
        restarts = CounterMetricFamily(
            "madang_node_replica_restarts", "Starts of an engine after its first", labels=("replica", "service")
        )
        for replica in replicas:
            restarts.add_metric((replica.replica_id, replica.service), replica.restarts)
        yield restarts
        yield from self._chip_metrics()
        yield from self._desk_metrics()
        if self._fetcher is not None and self._fetcher.book is not None:
            yield from collect_transfers("madang_node", self._fetcher.book)
        if self._fetcher is not None and self._fetcher.room is not None:
            yield from collect_room("madang_node", self._fetcher.room)

    def _desk_metrics(self) -> Iterable[Metric]:
        leases = GaugeMetricFamily("madang_node_chip_leases", "Leases of chips by state", labels=("state",))
        for state in ChipLeaseState:
            leases.add_metric((state.value,), sum(lease.state is state for lease in self._board.leases))
        yield leases
        cordons = GaugeMetricFamily(
            "madang_node_chip_cordoned", "1 for each rule by which a chip is cordoned", labels=("chip", "cause")
        )
        for cordon in self._board.cordons:
            cordons.add_metric((cordon.chip_id, cordon.cause.value), 1.0)
        yield cordons

    def _chip_metrics(self) -> Iterable[Metric]:
        fields = (
            ("madang_node_chip_utilisation_ratio", "Utilisation of a chip, 0 to 1", "utilisation"),
            ("madang_node_chip_temperature_celsius", "Temperature of a chip", "temperature_c"),
            ("madang_node_chip_power_watts", "Power drawn by a chip", "power_w"),
            ("madang_node_chip_memory_bytes", "Memory that engines may use", "memory_bytes"),
            ("madang_node_chip_memory_free_bytes", "Memory that is free", "memory_free_bytes"),
        )
        for name, text, field in fields:
            family = GaugeMetricFamily(name, text, labels=("chip", "kind"))
            for chip in self._board.chips:
                value = getattr(chip, field)
                if value is not None:
                    family.add_metric((chip.chip_id, chip.kind), value)
            yield family


def make_registry(board: Board, fetcher: ArtifactFetcher | None = None) -> CollectorRegistry:
    """Return a registry that holds exactly the node's metrics."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(board, fetcher))
    return registry
