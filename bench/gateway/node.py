"""A node that runs nothing: whatever its site plans, it says that the synthetic engine is it.

The node's own API and board, so that the site process plans, observes and feeds its gateway as ever; only the engine
behind is synthetic. Started by the bench as `python -m bench.gateway.node`; features are those of an engine that stops
a request when its client leaves, streamed or not.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from madang.core import ChipId, NodeId
from madang.model import Chip, ChipHealth, EngineFeature, ReplicaObserved, ReplicaPhase
from madang.node.api import make_app
from madang.node.board import Board
from madang.runtime.admin_http import AdminServer
from madang.runtime.clock import SystemClock
from madang.runtime.telemetry import EventLog
from madang.wire.node_api import NodePlan

CHIP_KIND = "cpu"
_MEMORY_BYTES = 1 << 34


class SyntheticNode:
    """Accepts every plan and has carried it out already."""

    def __init__(self, board: Board, endpoint: str, features: tuple[str, ...]) -> None:
        self._board, self._endpoint, self._features = board, endpoint, features
        chip = Chip(
            chip_id=ChipId("synthetic-0"),
            node=board.node,
            kind=CHIP_KIND,
            model="none: synthetic",
            memory_bytes=_MEMORY_BYTES,
            engines_max=16,
            health=ChipHealth.OK,
            is_simulated=True,
        )
        board.see_chips((chip,))

    def apply_plan(self, plan: NodePlan) -> None:
        """Say that every replica of the plan is ready."""
        for spec in plan.replicas:
            self._board.see_replica(
                ReplicaObserved(
                    replica_id=spec.replica_id,
                    node=self._board.node,
                    service=spec.service,
                    phase=ReplicaPhase.READY,
                    chip_kind=CHIP_KIND,
                    chip_ids=spec.chip_ids,
                    endpoint=self._endpoint,
                    engine_key="synthetic",
                    pid=os.getpid(),
                    slots=spec.slots,
                    is_simulated=True,
                    features=self._features,
                )
            )
        self._board.accept(plan.generation)

    def restart_replica(self, replica_id: str) -> bool:
        """Do nothing: there is nothing to restart."""
        return any(replica.replica_id == replica_id for replica in self._board.replicas)

    def find_problems(self) -> Sequence[str]:
        return ()

    def is_ending(self) -> bool:
        return False


async def serve(port: int, name: str, token: str, endpoint: str, features: tuple[str, ...]) -> None:
    """Play the node until SIGTERM."""
    clock = SystemClock()
    board = Board(NodeId(name), f"synthetic-{os.getpid()}", clock)
    node = SyntheticNode(board, endpoint, features)
    server = AdminServer(make_app(node, board, token, EventLog(clock, program="node")), "127.0.0.1", port)
    await server.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await stopping.wait()
    await server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.gateway.node")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--streamed-only", action="store_true", help="an engine that must always be asked for a stream")
    args = parser.parse_args()
    words = () if args.streamed_only else (EngineFeature.UNSTREAMED_ABORT.value,)
    asyncio.run(serve(args.port, args.name, args.token_file.read_text().strip(), args.endpoint, words))
