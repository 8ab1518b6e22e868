"""The node program: chips, engines and the admin API of one server, wired together.

Owns the composition and the accepted plan. Refuses to decide placements (the site does) and the lives of
engines (the replica machine does). Started by `madang.node.__main__`.

When it ends, engines go on; when it starts, it adopts those that its plan still wants and ends the others.
"""

import asyncio
import contextlib
import math
import signal
from collections.abc import Iterator, Sequence

import uvicorn

from madang.chip.contract import ChipDriver
from madang.core import ChipId, Clock, Entropy, NodeId, ReplicaId, SiteId, Unavailable
from madang.model import Chip, ReplicaSpec
from madang.node.api import make_app
from madang.node.board import Board
from madang.node.bootstrap import end_strays, prepare_node
from madang.node.chips import ChipBook
from madang.node.desk import ChipDesk
from madang.node.drivers import make_chip_drivers, make_engine_drivers
from madang.node.fetching import NodePins, make_fetcher
from madang.node.host import Engine, EngineHost
from madang.node.keeper import KeeperParts, ReplicaKeeper, hash_spec
from madang.node.plans import accept_plan, check_plan, load_plan
from madang.node.records import EngineRecord, is_any_alive
from madang.node.settings import NodeSettings
from madang.runtime.files import read_secret
from madang.runtime.listening import open_listener
from madang.runtime.telemetry import EventLog
from madang.wire.node_api import NodePlan

_STOP_S = 2.0
_KEEP_ALIVE_S = 90
_REMAINS_PERIOD_S = 1.0
_MEASURE_PERIOD_S = 15.0
_CONNECTIONS_MAX = 100


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the program owns them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class NodeProgram:
    """One node.

    Args:
        settings: which.
        clock, entropy: time and chance.
        log: its events.
        chip_drivers: in place of those that the settings name.
    """

    def __init__(
        self,
        settings: NodeSettings,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
        chip_drivers: tuple[ChipDriver, ...] | None = None,
    ) -> None:
        self._settings = settings
        self._log = log
        self._site, self._node = SiteId(settings.site), NodeId(settings.name)
        self._drivers = make_engine_drivers(
            settings.engine_twins, settings.engine_runtimes, settings.external_endpoints
        )
        self._fetcher = make_fetcher(settings, clock, entropy, log)
        book = self._fetcher.book
        self._board = Board(self._node, entropy.token_bytes(8).hex(), clock, book.rows if book else lambda: ())
        self._desk = ChipDesk(settings.state_dir, clock, log, on_change=self._see_desk, on_freed=self._wake_refused)
        self._chips = ChipBook(
            make_chip_drivers(settings.chips, self._node, clock) if chip_drivers is None else chip_drivers,
            self._see_chips,
            log,
            on_answer=self._desk.see,
            is_hurried=lambda: self._desk.is_waiting,
            clock=clock,
            period_s=settings.chip_read_period_s,
            hurry_period_s=settings.chip_hurry_period_s,
        )
        self._host = EngineHost(settings, clock, entropy)
        self._pins = NodePins(settings, log)
        self._parts = KeeperParts(
            settings=settings,
            drivers=self._drivers,
            fetcher=self._fetcher,
            host=self._host,
            chips=self._chips,
            desk=self._desk,
            board=self._board,
            clock=clock,
            entropy=entropy,
            log=log,
        )
        self._plan: NodePlan | None = None
        self._keepers: dict[str, ReplicaKeeper] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._stop = asyncio.Event()
        self._has_chips = False

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT and return the exit code; engines are left running."""
        prepare_node(self._settings)
        token = read_secret(self._settings.token_file).decode("utf-8")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        # Bound first: a second node on the same state must fail before it touches engines.
        listener = open_listener(self._settings.listen_host, self._settings.port)
        server = _Server(
            uvicorn.Config(
                make_app(self, self._board, token, self._log, self._fetcher),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                limit_concurrency=_CONNECTIONS_MAX,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(_STOP_S),
                server_header=False,
            )
        )
        self._plan = load_plan(self._settings.state_dir)
        self._pins.let_go(self._known_specs())
        self._desk.load()
        self._see_desk()
        await self._chips.read()
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self._adopt_engines()
            serving = group.create_task(server.serve(sockets=[listener]), name="admin_http")
            endless = [
                group.create_task(self._chips.run(), name="chips"),
                group.create_task(self._desk.run(), name="chip_desk"),
                group.create_task(self._watch_remains(), name="remains"),
                group.create_task(self._measure_cache(), name="cache"),
            ]
            self._log.info("node_started", port=self._settings.port, replicas=len(self._keepers))
            await self._stop.wait()
            self._board.wake()
            server.should_exit = True
            await serving
            for task in (*endless, *self._tasks):
                task.cancel()
        self._log.info("node_stopped", engines_left=sum(replica.pid > 0 for replica in self._board.replicas))
        return 0

    # What the admin API asks for

    def apply_plan(self, plan: NodePlan) -> None:
        """Accept a plan and start carrying it out."""
        check_plan(plan, self._site, self._node, self._settings.state_dir)
        # Before it is accepted: nothing that a plan wants may leave the cache.
        self._pins.hold([*plan.replicas, *self._known_specs()])
        if not accept_plan(plan, self._plan, self._settings.state_dir):
            return
        self._plan = plan
        self._log.info("plan_accepted", plan_gen=plan.generation, replicas=len(plan.replicas))
        self._carry_out(plan)

    def restart_replica(self, replica_id: str) -> bool:
        """Ask for a fresh engine of one replica."""
        keeper = self._keepers.get(replica_id)
        if keeper is not None:
            keeper.restart()
        return keeper is not None

    def uncordon_chip(self, chip_id: str) -> int | None:
        """Lift a chip's automatic cordons and return how many there were, None when there is no such chip."""
        is_known = self._chips.has(chip_id) or any(cordon.chip_id == chip_id for cordon in self._desk.cordons)
        return self._desk.uncordon(ChipId(chip_id)) if is_known else None

    def find_problems(self) -> Sequence[str]:
        """Return what keeps the node from being ready."""
        return () if self._has_chips else ("no chip was read yet",)

    def is_ending(self) -> bool:
        """Return whether SIGTERM came."""
        return self._stop.is_set()

    # Carrying out

    def _carry_out(self, plan: NodePlan) -> None:
        wanted = {spec.replica_id: spec for spec in plan.replicas}
        for replica_id, keeper in self._keepers.items():
            if replica_id not in wanted:
                keeper.unplan()
        for spec in wanted.values():
            kept = self._keepers.get(spec.replica_id)
            if kept is None:
                kept = self._keep(ReplicaKeeper(spec, self._parts))
            kept.plan(spec)
        self._board.accept(plan.generation)

    async def _adopt_engines(self) -> None:
        """Take over the engines that the plan wants, end the others, and start what is missing."""
        specs = self._plan.replicas if self._plan is not None else ()
        wanted: dict[str, ReplicaSpec] = {spec.replica_id: spec for spec in specs}
        records = {record.replica_id: record for record in self._host.records()}
        found = {key: self._find_engine(wanted[key], record) for key, record in records.items() if key in wanted}
        known = {record.shim.pid for record in records.values()}
        strays = await asyncio.to_thread(end_strays, self._settings.state_dir, known)
        if strays:
            self._log.warning("strays_ended", count=strays)
        async with asyncio.TaskGroup() as group:
            for key, record in records.items():
                if found.get(key) is None:
                    group.create_task(self._end_orphan(record, is_forgotten=key not in wanted))
        self._give_back_chips([key for key, engine in found.items() if engine is not None])
        for key, spec in wanted.items():
            launches = records[key].launch if key in records else 0
            self._keep(ReplicaKeeper(spec, self._parts, found.get(key), launches))
        if self._plan is not None:
            self._carry_out(self._plan)

    def _find_engine(self, spec: ReplicaSpec, record: EngineRecord) -> Engine | None:
        if record.spec_hash != hash_spec(spec, self._drivers):
            return None
        engine = self._host.adopt(record)
        return engine if engine is not None and self._desk.adopt(spec) else None

    async def _end_orphan(self, record: EngineRecord, *, is_forgotten: bool) -> None:
        if is_any_alive(record):
            self._log.warning("orphan_ended", replica_id=record.replica_id, pid=record.engine.pid)
            try:
                await self._host.end(record)
            except Unavailable as error:
                # Its chips stay with it; it is looked for until it is gone.
                self._log.error("orphan_survives", replica_id=record.replica_id, reason=str(error))
                self._desk.leaving(ReplicaId(record.replica_id))
                return
        if is_forgotten:
            self._host.forget(record.replica_id)

    def _give_back_chips(self, adopted: Sequence[str]) -> None:
        """End the leases of engines of which nothing lives and that no keeper looks after."""
        for holder in self._desk.list_holders():
            if holder not in adopted and holder not in self._keepers and self._host.find_remains(holder) is None:
                self._desk.gone(holder)

    async def _watch_remains(self) -> None:
        """Look for the end of engines that survived being ended and that nobody wants any more, for ever."""
        while True:
            self._give_back_chips(())
            await asyncio.sleep(_REMAINS_PERIOD_S)

    async def _measure_cache(self) -> None:
        """Look through the cache now and then, for metrics."""
        room = self._fetcher.room
        while room is not None:
            # Unavailable: it cannot be read, which the next fetch says; the last numbers stay.
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(room.measure)
            await asyncio.sleep(_MEASURE_PERIOD_S)

    def _keep(self, keeper: ReplicaKeeper) -> ReplicaKeeper:
        assert self._group is not None
        self._keepers[keeper.replica_id] = keeper
        task = self._group.create_task(self._run_keeper(keeper), name=f"keep-{keeper.replica_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return keeper

    async def _run_keeper(self, keeper: ReplicaKeeper) -> None:
        await keeper.run()
        del self._keepers[keeper.replica_id]
        specs = self._known_specs()
        self._pins.let_go(specs)
        if self._fetcher.book is not None:
            self._fetcher.book.keep_only({file.sha256 for spec in specs for file in spec.artifact.files})
        for spec in self._plan.replicas if self._plan is not None else ():
            if spec.replica_id == keeper.replica_id:  # planned again while it was being forgotten
                self._keep(ReplicaKeeper(spec, self._parts)).plan(spec)

    def _known_specs(self) -> list[ReplicaSpec]:
        """Return every specification that is wanted or may still run."""
        wanted = self._plan.replicas if self._plan is not None else ()
        return [*wanted, *(spec for keeper in self._keepers.values() for spec in keeper.specs)]

    def _see_desk(self) -> None:
        self._board.see_desk(self._desk.leases, self._desk.cordons)
        if self._desk.is_waiting:
            self._chips.hurry()

    def _wake_refused(self) -> None:
        for keeper in self._keepers.values():
            keeper.chips_freed()

    def _see_chips(self, chips: tuple[Chip, ...]) -> None:
        self._has_chips = self._has_chips or bool(chips)
        self._board.see_chips(chips)
