"""Keeps one replica: feeds its machine with what happens and performs what comes out.

Owns the tasks and the engine of one replica. Refuses to decide (`madang.machine.replica` does). Created by the
node program for each replica of the plan and for each engine found running.
"""

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from madang.core import Clock, Entropy, MadangError, Rejected, ReplicaId, ns_to_s
from madang.engine.contract import EngineCapabilities, EngineDriver, Verdict
from madang.machine.replica import ReplicaRules, ReplicaState, adopt, step, wake_ns
from madang.machine.replica_events import (
    CancelFetch,
    Effect,
    Event,
    Exited,
    Fetch,
    Fetched,
    FetchFailed,
    Forget,
    Kill,
    Launch,
    Planned,
    Probe,
    ProbeFailed,
    ProbeOk,
    RestartAsked,
    Started,
    StartFailed,
    Terminate,
    Tick,
    Unplanned,
)
from madang.model import DataClass, ReplicaObserved, ReplicaPhase, ReplicaSpec
from madang.node.artifacts import ArtifactFetcher, FetchProgress
from madang.node.board import Board
from madang.node.chips import ChipBook
from madang.node.desk import ChipDesk
from madang.node.host import Engine, EngineHost
from madang.node.settings import NodeSettings
from madang.runtime.telemetry import EventLog

_LOOK_S = 0.2
"""How often an engine is looked for in /proc: its end is noticed within this time."""
_EVENTS_MAX = 16
"""One probe and one fetch are out at a time, and wishes replace each other; more than a few would be a bug."""
_PROGRESS_STEP = 0.01


@dataclass(frozen=True)
class KeeperParts:
    """What every keeper of a node shares."""

    settings: NodeSettings
    drivers: Mapping[str, EngineDriver]
    fetcher: ArtifactFetcher
    host: EngineHost
    chips: ChipBook
    desk: ChipDesk
    board: Board
    clock: Clock
    entropy: Entropy
    log: EventLog


def hash_spec(spec: ReplicaSpec, drivers: Mapping[str, EngineDriver]) -> str:
    """Return the identity of an engine: its specification, the program that plays it, and what runs that."""
    driver = drivers.get(spec.artifact.engine)
    # What somebody found out about the same files is no reason to start an engine anew.
    bare = msgspec.structs.replace(spec.artifact, tokenizer_sha256="", template_sha256="")
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(spec, artifact=bare), order="deterministic"))
    digest.update(b"\n" + (driver.identity_of(spec) if driver is not None else "").encode())
    return digest.hexdigest()


class ReplicaKeeper:
    """The keeper of one replica.

    Args:
        spec: what is wanted, or what the running engine was launched for.
        parts: what it shares with others.
        engine: the engine that was found running; None to start with nothing.
        launches: launches so far, from an earlier record.
    """

    def __init__(self, spec: ReplicaSpec, parts: KeeperParts, engine: Engine | None = None, launches: int = 0) -> None:
        self.replica_id: ReplicaId = spec.replica_id
        self._parts = parts
        self._log = parts.log.bind(replica_id=spec.replica_id, service=spec.service)
        self._events: asyncio.Queue[Event] = asyncio.Queue(_EVENTS_MAX)
        self._wish: Planned | Unplanned | None = None
        self._is_restart_asked = False
        self._fetch_task: asyncio.Task[None] | None = None
        self._engine = engine
        self._spec = spec
        self._specs = {hash_spec(spec, parts.drivers): spec}
        self._files: dict[str, dict[str, Path]] = {}
        self._cancel = threading.Event()
        self._progress: float | None = None
        self._since_s = parts.clock.wall_s()
        self._is_simulated = False
        self._is_refused = False
        self._is_done = False
        now_ns = parts.clock.monotonic_ns()
        self._state = ReplicaState(since_ns=now_ns, launch=launches)
        if engine is not None:
            record = engine.record
            self._state = adopt(record.spec_hash, record.launch, now_ns, self._rules(spec))
            self._log.info("engine_adopted", pid=record.engine.pid, port=record.port, launch=record.launch)
        self._publish()

    @property
    def phase(self) -> ReplicaPhase:
        """Return where the replica stands."""
        return self._state.phase

    @property
    def specs(self) -> tuple[ReplicaSpec, ...]:
        """Return what is wanted, and what may still run."""
        return tuple(self._specs.values())

    def plan(self, spec: ReplicaSpec) -> None:
        """Say what is wanted."""
        spec_hash = hash_spec(spec, self._parts.drivers)
        kept = {key: self._specs[key] for key in (self._state.running, self._state.wanted) if key in self._specs}
        self._specs = {**kept, spec_hash: spec}
        self._spec = spec
        self._wish = Planned(spec_hash)
        self._poke()

    def unplan(self) -> None:
        """Say that it is not wanted any more."""
        self._wish = Unplanned()
        self._poke()

    def restart(self) -> None:
        """Ask for a fresh engine."""
        self._is_restart_asked = True
        self._poke()

    def chips_freed(self) -> None:
        """Try again at once, if chips that somebody else had kept the engine from starting."""
        if self._is_refused:
            self.restart()

    async def run(self) -> None:
        """Live until the replica is forgotten; cancelled, it leaves the engine running."""
        try:
            async with asyncio.TaskGroup() as group:
                while not self._is_done:
                    event = await self._next_event()
                    if event is not None:
                        await self._feed(event, group)
                    await self._take_wishes(group)
                    await self._look(group)
        finally:
            self._cancel.set()

    # Events

    def _poke(self) -> None:
        # Wishes replace each other, so that no caller can fill the queue.
        if self._events.empty():
            self._events.put_nowait(Tick())

    async def _take_wishes(self, group: asyncio.TaskGroup) -> None:
        wish, self._wish = self._wish, None
        if wish is not None:
            await self._feed(wish, group)
        if self._is_restart_asked:
            self._is_restart_asked = False
            await self._feed(RestartAsked(), group)

    async def _next_event(self) -> Event | None:
        wake = wake_ns(self._state)
        wait_s = None if wake is None else max(ns_to_s(wake - self._parts.clock.monotonic_ns()), 0.0)
        if self._engine is not None:
            wait_s = _LOOK_S if wait_s is None else min(wait_s, _LOOK_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                return await self._events.get()
        return None

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Notice the end of the engine, and that time has passed."""
        engine = self._engine
        if engine is not None and engine.is_gone():
            self._engine = None
            reason = engine.exit_reason()
            self._log.warning("engine_ended", pid=engine.record.engine.pid, reason=reason)
            if self._may_blame_chips():
                self._parts.desk.engine_died(self._spec.chip_ids, self._spec.cores)
            self._parts.desk.gone(self.replica_id)
            await self._feed(Exited(engine.record.launch, reason), group)
        wake = wake_ns(self._state)
        if wake is not None and self._parts.clock.monotonic_ns() >= wake:
            await self._feed(Tick(), group)

    async def _feed(self, event: Event, group: asyncio.TaskGroup) -> None:
        """Take one step and perform its effects; an effect that answers at once feeds its answer in turn."""
        events: list[Event] = [event]
        while events:
            now_ns = self._parts.clock.monotonic_ns()
            before = self._state
            seed = self._parts.entropy.seed64()
            self._state, effects = step(before, events.pop(0), now_ns, seed, self._rules(self._spec))
            self._note(before)
            for effect in effects:
                answer = await self._perform(effect, group)
                if answer is not None:
                    events.append(answer)
        self._publish()

    def _note(self, before: ReplicaState) -> None:
        state = self._state
        if state.phase is before.phase:
            return
        self._since_s = self._parts.clock.wall_s()
        if state.phase in (ReplicaPhase.DRAINING, ReplicaPhase.STOPPING):
            self._parts.desk.leaving(self.replica_id)
        elif state.phase is ReplicaPhase.READY:
            self._parts.desk.staying(self.replica_id)
        self._log.info("replica_phase", phase=state.phase.value, was=before.phase.value, reason=state.reason)
        self._publish()

    # Effects

    async def _perform(self, effect: Effect, group: asyncio.TaskGroup) -> Event | None:
        match effect:
            case Fetch():
                self._fetch_task = group.create_task(self._fetch(effect), name=f"fetch-{self.replica_id}")
            case CancelFetch():
                self._cancel.set()
                if self._fetch_task is not None:
                    self._fetch_task.cancel()
            case Launch():
                return await self._launch(effect)
            case Probe():
                group.create_task(self._probe(effect.launch), name=f"probe-{self.replica_id}")
            case Terminate() | Kill():
                self._end_engine(effect)
            case Forget():
                self._forget()
        return None

    def _end_engine(self, effect: Terminate | Kill) -> None:
        if self._engine is None:
            return  # it went by itself; the next look says so
        if isinstance(effect, Kill):
            self._log.warning("engine_killed", pid=self._engine.record.engine.pid)
            self._engine.kill()
        else:
            self._engine.terminate()

    async def _fetch(self, effect: Fetch) -> None:
        spec = self._specs[effect.spec_hash]
        cancel = self._cancel = threading.Event()
        self._progress = None
        try:
            self._driver(spec).check(spec)
            files = await self._fetch_files(spec, cancel)
        except MadangError as error:
            self._events.put_nowait(FetchFailed(effect.fetch, str(error)))
            return
        self._files = {effect.spec_hash: files}
        self._progress = None
        self._events.put_nowait(Fetched(effect.fetch))

    async def _fetch_files(self, spec: ReplicaSpec, cancel: threading.Event) -> dict[str, Path]:
        """Fetch in a thread that the program need not wait for when it ends."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[dict[str, Path]] = loop.create_future()
        total_bytes = sum(file.size_bytes for file in spec.artifact.files)

        def finish(files: dict[str, Path], error: BaseException | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(files)

        def work() -> None:
            files: dict[str, Path] = {}
            problem: BaseException | None = None
            done_bytes = 0
            try:
                for file in spec.artifact.files:

                    def on_progress(progress: FetchProgress, base: int = done_bytes) -> None:
                        share = (base + progress.bytes_done) / max(total_bytes, 1)
                        loop.call_soon_threadsafe(self._see_progress, cancel, min(share, 1.0))

                    files[file.name] = self._parts.fetcher.ensure(file, on_progress, cancel)
                    done_bytes += file.size_bytes
            except BaseException as error:  # handed over to the task that waits
                problem = error
            with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
                loop.call_soon_threadsafe(finish, files, problem)

        threading.Thread(target=work, daemon=True, name=f"fetch-{self.replica_id}").start()
        return await done

    def _see_progress(self, cancel: threading.Event, share: float) -> None:
        is_current = cancel is self._cancel and self.phase is ReplicaPhase.FETCHING
        if is_current and (self._progress is None or abs(share - self._progress) >= _PROGRESS_STEP):
            self._progress = share
            self._publish()

    async def _launch(self, effect: Launch) -> Event:
        spec = self._specs[effect.spec_hash]
        parts = self._parts
        try:
            files = self._files.get(effect.spec_hash) or self._cached_files(spec)
            await self._end_remains()
            grant = parts.chips.grant(spec.chip_ids, spec.cores)
            self._take_chips(spec)
            grant = msgspec.structs.replace(grant, locks=parts.desk.lock_files(spec))
            engine = await parts.host.launch(self._driver(spec), spec, effect.spec_hash, effect.launch, files, grant)
        except MadangError as error:
            self._log.error("engine_not_started", reason=str(error))
            with contextlib.suppress(MadangError):
                await self._end_remains()
            return StartFailed(effect.launch, str(error))
        self._engine = engine
        self._is_simulated = False
        self._log.info("engine_started", pid=engine.record.engine.pid, port=engine.record.port, launch=effect.launch)
        return Started(effect.launch)

    def _take_chips(self, spec: ReplicaSpec) -> None:
        self._is_refused = True
        self._parts.desk.acquire(spec)
        self._is_refused = False

    async def _end_remains(self) -> None:
        """See to it that nothing lives of an earlier engine, and give its chips back; raises Unavailable otherwise."""
        record = self._parts.host.find_remains(self.replica_id)
        if record is not None:
            self._parts.desk.leaving(self.replica_id)
            await self._parts.host.end(record)
        self._parts.desk.gone(self.replica_id)

    def _may_blame_chips(self) -> bool:
        """Return whether an engine that ended unwanted may have died of its chips, rather than of its model.

        It may when it had served, or when another engine serves the same artifact, on other chips or other cores.
        """
        state, spec = self._state, self._spec
        if state.is_orderly or state.wanted is None or state.running != state.wanted:
            return False
        sha256 = spec.artifact.files[0].sha256 if spec.artifact.files else ""
        return state.ready_ns is not None or any(
            other.phase is ReplicaPhase.READY
            and other.artifact_sha256 == sha256
            and other.replica_id != self.replica_id
            for other in self._parts.board.replicas
        )

    def _cached_files(self, spec: ReplicaSpec) -> dict[str, Path]:
        """Return the files of an adopted engine's replica, which this program never fetched."""
        cache = self._parts.fetcher.cache
        return {file.name: cache.path_of(file.sha256) for file in spec.artifact.files}

    async def _probe(self, launch: int) -> None:
        engine = self._engine
        if engine is None or engine.record.launch != launch:
            self._events.put_nowait(ProbeFailed(launch, "the engine is gone"))
            return
        # The engine that runs may be of another specification than the one that is wanted by now.
        spec = self._specs.get(engine.record.spec_hash, self._spec)
        reading = await self._driver(spec).probe(engine.endpoint, engine.key)
        self._is_simulated = reading.is_simulated
        if reading.verdict is Verdict.READY:
            self._events.put_nowait(ProbeOk(launch, reading.is_idle))
        else:
            self._events.put_nowait(ProbeFailed(launch, reading.reason or reading.verdict.value))

    def _forget(self) -> None:
        self._parts.host.forget(self.replica_id)
        self._parts.board.forget_replica(self.replica_id)
        self._is_done = True

    # What others see

    def _driver(self, spec: ReplicaSpec) -> EngineDriver:
        driver = self._parts.drivers.get(spec.artifact.engine)
        if driver is None:
            known = ", ".join(sorted(self._parts.drivers))
            raise Rejected(f"engine {spec.artifact.engine!r} is not known to this node; known: {known}")
        return driver

    def _rules(self, spec: ReplicaSpec) -> ReplicaRules:
        driver, settings = self._parts.drivers.get(spec.artifact.engine), self._parts.settings
        rules = ReplicaRules(ready_probe_s=settings.engine_probe_s, drain_settle_s=settings.drain_settle_s)
        if driver is None:
            return rules
        times = driver.times
        return msgspec.structs.replace(
            rules,
            start_s_max=times.start_s_max,
            drain_s_max=times.drain_s_max,
            stop_s_max=times.term_s_max + 1.0,
        )

    def _capabilities(self, spec: ReplicaSpec) -> EngineCapabilities | None:
        driver = self._parts.drivers.get(spec.artifact.engine)
        try:
            return driver.capabilities_for(spec) if driver is not None else None
        except Rejected:
            return None  # the fetch says why

    def _publish(self) -> None:
        if self._is_done:
            return
        state, spec, engine = self._state, self._spec, self._engine
        can = self._capabilities(spec)
        self._parts.board.see_replica(
            ReplicaObserved(
                replica_id=self.replica_id,
                node=self._parts.board.node,
                service=spec.service,
                phase=state.phase,
                reason=state.reason,
                chip_kind=self._parts.chips.kind_of(spec.chip_ids),
                chip_ids=spec.chip_ids,
                endpoint=engine.endpoint if engine is not None else "",
                engine_key=engine.key if engine is not None else "",
                pid=engine.record.engine.pid if engine is not None else 0,
                restarts=max(state.launch - 1, 0),
                since_s=self._since_s,
                progress=self._progress if state.phase is ReplicaPhase.FETCHING else None,
                slots=spec.slots,
                artifact_sha256=spec.artifact.files[0].sha256 if spec.artifact.files else "",
                is_simulated=self._is_simulated and engine is not None,
                features=can.features if can is not None else (),
                data_class_max=can.data_class_max if can is not None else DataClass.OPEN,
            )
        )
